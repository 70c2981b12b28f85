# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Log-probabilities of sampled tokens, read from the forwards that sampled them."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from vgf_llm.generation.hooks import forward_hooks


class TokenLogps:
    """Hooks that keep log p(token) of every token that a model's `generate` samples.

    They are those of the model's raw logits, ahead of temperature, penalties and candidates: what a pass over the
    finished responses would find, without that pass.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        >>> model, found = LlamaForCausalLM(config), TokenLogps()
        >>> with found.installed(model):
        ...     ids = model.generate(torch.tensor([[1, 5]]), do_sample=True, min_new_tokens=3, max_new_tokens=3)
        >>> found.of(ids[:, 2:]).shape
        torch.Size([1, 3])
    """

    def __init__(self) -> None:
        self._logits: Tensor | None = None
        self._tokens: list[Tensor] = []
        self._logps: list[Tensor] = []

    def installed(self, model: nn.Module) -> AbstractContextManager[None]:
        """Hooks a causal language model, ahead of hooks that share a prompt among its rows."""
        return forward_hooks(model, self._before, self._after)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        if ids is not None:
            self._read(ids[:, -1])

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._logits = output.logits[:, -1]

    def _read(self, tokens: Tensor) -> None:
        logits, self._logits = self._logits, None
        if logits is None or len(tokens) % len(logits):  # beams: rows are not what they were
            return
        logits = logits.float()
        # A prompt's first tokens are sampled from one row, which stands for all rows of that prompt.
        logps = logits.gather(-1, tokens.view(len(logits), -1)) - logits.logsumexp(dim=-1, keepdim=True)
        self._tokens.append(tokens)
        self._logps.append(logps.flatten())

    def of(self, tokens: Tensor) -> Tensor | None:
        """Returns the log-probabilities of what `generate` returned, once.

        Args:
            tokens: `[R, T]`, the new tokens of its rows.

        Returns:
            `[R, T]` in nats, meaningless on padding; `None` if they were not sampled token by token in these rows, as
            by beam search or with an assistant.
        """
        if tokens.shape[1] == 0:
            return None
        self._read(tokens[:, -1])
        if any(len(step) != len(tokens) for step in self._tokens):
            return None
        if not torch.equal(torch.stack(self._tokens, dim=1), tokens):
            return None
        return torch.stack(self._logps, dim=1)
