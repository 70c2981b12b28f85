# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The value's LoRA adapter as the files that an engine loads beside the base."""

import secrets
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from vgf_llm.models.backbones import VALUE_ADAPTER
from vgf_llm.models.valued_policy import ValuedPolicy

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM sets room aside for


class ValueAdapter:
    """The value's adapter in a temporary folder, in PEFT's format; other weights get another folder and number.

    `state` gives the adapter's whole tensors on the CPU, by their names in the policy, where its argument says that
    this process needs them; every process has to take part. `name` is the same for all adapters of a run, and of no
    other run.
    """

    def __init__(self, model: ValuedPolicy, state: Callable[[bool], dict[str, Tensor]]) -> None:
        self.config = model.policy.peft_config[VALUE_ADAPTER]
        if self.config.rank_pattern or self.config.alpha_pattern:
            raise ValueError(
                "vLLM reads one rank and one scale for all layers of an adapter, and `peft_config` has a "
                "`rank_pattern` or an `alpha_pattern`. Leave them out, or sample with transformers (`use_vllm=False`)."
            )
        self.model = model
        self.state = state
        self.number = 0
        self.name = f"vgf-value-{secrets.token_hex(4)}"  # a server may serve several runs
        self._written: dict[str, Tensor] = {}
        self._folder: TemporaryDirectory[str] | None = None

    @property
    def max_rank(self) -> int:
        """The smallest of the ranks that vLLM sets room aside for."""
        rank: int = self.config.r
        return next((size for size in _VLLM_RANKS if size >= rank), rank)

    @property
    def path(self) -> Path:
        """The files of the adapter written last; there until the next is written."""
        assert self._folder is not None
        return Path(self._folder.name) / VALUE_ADAPTER

    def write(self, state: dict[str, Tensor]) -> bool:
        """Writes what `state` gave, if it is not what was written last, and tells whether it did."""
        known = self._written.keys() == state.keys()
        if known and all(torch.equal(tensor, self._written[name]) for name, tensor in state.items()):
            return False
        self.number += 1
        self._written = state
        if self._folder is not None:
            self._folder.cleanup()
        self._folder = TemporaryDirectory(prefix="vgf-value-", ignore_cleanup_errors=True)
        self.model.policy.save_pretrained(
            self._folder.name, selected_adapters=[VALUE_ADAPTER], state_dict=state, save_embedding_layers=False
        )
        return True
