# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`vgf inspect`: what a saved model is made of."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError, safe_open

from vgf_llm.models.config import VGFModelConfig

_TRAINING_DATA = ("value_buffer", "value_round")  # beside the model in a checkpoint
# Folders of a saved model and what their weights are.
_PARTS = {
    ".": "policy",
    "value": "value adapter (LoRA)",
    "value_model": "value model",
    "ref_model": "reference model",
    "sequence_value": "sequence value",
}


def inspect(directory: Path) -> None:
    """Prints the settings, the defaults of transport and the weights of a folder that holds a VGF model."""
    settings = asdict(VGFModelConfig.load(directory))
    transport = settings.pop("transport")
    budget = transport["transport_steps"] * transport["step_size"]
    del settings["files"]
    console = Console()
    console.print(
        _table(directory, ("setting", "value"), {**settings, "policy weights": _policy_weights(directory)}.items())
    )
    transport["transport_steps * step_size"] = f"{budget:g}"
    console.print(_table("transport defaults", ("setting", "value"), transport.items()))
    console.print(_table("weights", ("file", "part", "parameters", "size"), _weights(directory)))


def _policy_weights(directory: Path) -> str:
    if (directory / "adapter_config.json").is_file():
        return "a LoRA adapter in this folder"
    return "in this folder" if (directory / "config.json").is_file() else "not here, loaded from the base model"


def _weights(directory: Path) -> Iterator[tuple[str, ...]]:
    """File, part, parameters and size of all weights of a folder."""
    own = {"value_head.safetensors": "value head", "adapter_model.safetensors": "policy adapter (LoRA)"}
    for folder, part in _PARTS.items():
        for path in sorted((directory / folder).glob("*.safetensors")):
            if not path.name.startswith(_TRAINING_DATA):
                role = own.get(path.name, part) if folder == "." else part
                size = f"{path.stat().st_size / 1e6:.2f} MB"
                yield str(path.relative_to(directory)), role, f"{_count_parameters(path):,}", size


def _count_parameters(path: Path) -> int:
    try:
        with safe_open(path, framework="pt") as file:  # reads the header alone
            return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no iterator)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); it is truncated or foreign.") from error


def _table(title: Any, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    table = Table(title=escape(str(title)), title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index > 1 else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    return table
