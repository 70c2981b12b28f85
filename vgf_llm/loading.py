# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A saved model and its tokenizer, by the options that commands and evaluations name them with."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vgf_llm.models.config import VGFModelConfig
from vgf_llm.vgf_model import VGFModel


def dtype_and_device(dtype: str, device: str | None) -> tuple[Any, torch.device]:
    """Returns what two options name.

    Args:
        dtype: `auto`, or the name of a torch dtype.
        device: Name of a device; CUDA where there is one, by default.

    Returns:
        A dtype, or `"auto"`, and a device.

    Raises:
        ValueError: For an unknown dtype or device, and for CUDA where there is none.

    Example:
        >>> dtype_and_device("bfloat16", "cpu")
        (torch.bfloat16, device(type='cpu'))
    """
    resolved = dtype if dtype == "auto" else getattr(torch, dtype, None)
    if resolved != "auto" and not isinstance(resolved, torch.dtype):
        raise ValueError(f"`dtype` must be `auto` or a torch dtype such as float32 or bfloat16, got {dtype!r}.")
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"`device` must be a torch device such as cpu or cuda:0, got {device!r}.") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"`device` is {device!r}, but torch sees no CUDA device here; leave it out to run on the CPU.")
    return resolved, place


def load_model(
    path: str, *, base_model: str | None, dtype: str, device: str | None, trust_remote_code: bool
) -> VGFModel:
    """Loads a VGF model onto its device; the options are those of `dtype_and_device` and `VGFModel.from_pretrained`."""
    resolved, place = dtype_and_device(dtype, device)
    try:
        model = VGFModel.from_pretrained(
            path, base_model=base_model, dtype=resolved, trust_remote_code=trust_remote_code
        )
    except (ValueError, OSError) as error:
        if Path(path).is_dir():
            raise
        raise ValueError(
            f"`path` {path!r} is no folder on this machine, and the hub gave no model of that name: {error}"
        ) from error
    return model.to(place)


def load_tokenizer(
    path: str,
    config: VGFModelConfig | None,
    *,
    tokenizer: str | None = None,
    base_model: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Loads a model's tokenizer, padding left: the one that is named, else the folder's own, else the base's.

    Args:
        path: Folder or hub id of the model.
        config: Its configuration; `None` for a plain language model.
        tokenizer: Folder or hub id of another tokenizer.
        base_model: The policy, in place of the one that the configuration names at a pinned revision.
        trust_remote_code: Whether code that ships with the tokenizer runs.

    Raises:
        ValueError: If nothing says where the tokenizer is.
    """
    revision = None
    if tokenizer is None and Path(path).is_dir() and not (Path(path) / "tokenizer_config.json").is_file():
        tokenizer = base_model
        if tokenizer is None and config is not None:
            tokenizer, revision = config.base_model_name_or_path, config.base_model_revision
        if not tokenizer:
            raise ValueError(f"{path} holds no tokenizer and names no base model; pass `--tokenizer`.")
    return AutoTokenizer.from_pretrained(
        tokenizer or path, padding_side="left", revision=revision, trust_remote_code=trust_remote_code
    )
