# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Two costs that no library counts for us: tokens that models process, and the most memory held meanwhile."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vgf_llm.models import VGFModel
from vgf_llm.models.language_model import inner_model

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class ForwardCounter:
    """Counts the tokens that enter policy, reference and the value's models: one forward pass of one token each.

    Prompts count as well as responses, and a row that an adapter doubles counts twice. A token of a value of whole
    responses whose gradient is taken counts three times: the backward pass costs about two forward passes.

    Args:
        model: The model.

    Attributes:
        tokens: Tokens so far.
    """

    def __init__(self, model: VGFModel) -> None:
        self.tokens = 0
        models = [m for m in (model.policy, model.value_model, model.ref_model) if m is not None]
        # The input embedding is the one module that every forward of every architecture enters with token ids.
        self._embeddings: dict[int, nn.Module] = {}
        for item in models:
            embedding = inner_model(item).get_input_embeddings()
            self._embeddings[id(embedding)] = embedding
        # It reads embeddings, moved ones among them, not ids.
        self._reader: nn.Module | None = getattr(model.sequence_value, "backbone", None)

    @contextmanager
    def counting(self) -> Iterator["ForwardCounter"]:
        """Counts for as long as the context lasts."""

        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids = args[0] if args else kwargs["input"]
            self.tokens += ids.numel()

        def count_embedded(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            embedded = kwargs["inputs_embeds"]
            passes = 3 if torch.is_grad_enabled() and embedded.requires_grad else 1
            self.tokens += embedded.shape[:-1].numel() * passes

        with ExitStack() as stack:
            if self._reader is not None:
                stack.callback(self._reader.register_forward_pre_hook(count_embedded, with_kwargs=True).remove)
            for embedding in self._embeddings.values():
                stack.callback(embedding.register_forward_pre_hook(count, with_kwargs=True).remove)
            yield self


class PeakMemory:
    """Measures the most memory in use within a context: the accelerator's, or the process's on a CPU.

    Args:
        device: Where the model runs.

    Attributes:
        megabytes: The peak; `None` where the platform does not tell (a CPU without Linux's `/proc`).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.megabytes: float | None = None

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif _CLEAR.exists():
            _CLEAR.write_text("5")  # sets the high-water mark back to what is resident now
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.device.type == "cuda":
            self.megabytes = torch.cuda.max_memory_allocated(self.device) / 2**20
        elif _STATUS.exists():
            lines = (line.split() for line in _STATUS.read_text().splitlines())
            peak = next((int(parts[1]) for parts in lines if parts and parts[0] == "VmHWM:"), None)
            self.megabytes = None if peak is None else peak / 1024
