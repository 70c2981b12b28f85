# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The `vllm.general_plugins` entry point: keeps the hidden states that a step's logits come from.

A logits processor of vLLM sees logits and token ids. Every model of vLLM makes its logits in one layer, which is given
the hidden states and the output embedding; that layer's `forward` is wrapped, in every process that vLLM starts.
"""

import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Captured:
    """What the last call of the logits layer was given: hidden states `[R, D]` and the engine's output embedding."""

    hidden: Tensor | None = None
    lm_head: Any = None

    def embedding(self, vocab_size: int) -> Tensor:
        """Returns E `[V, D]`; refused where this process holds a part of it, or a quantised form."""
        weight = getattr(self.lm_head, "weight", None)
        if weight is None or not weight.is_floating_point() or weight.shape[0] < vocab_size:
            found = "no plain weight" if weight is None else f"{tuple(weight.shape)} of {weight.dtype}"
            raise ValueError(
                f"A bilinear value reads the whole output embedding of {vocab_size} rows; this process holds {found}. "
                "Serve it with `tensor_parallel_size=1` and an unquantised output embedding, or train a `vocab` head."
            )
        return weight[:vocab_size]


CAPTURED = Captured()


def register() -> None:
    """Wraps vLLM's logits layer; calling it again changes nothing."""
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    wrap_forward(LogitsProcessor)


def wrap_forward(layer: type) -> None:
    """Makes `layer.forward(lm_head, hidden_states, ...)` leave its arguments in `CAPTURED`."""
    original = layer.forward  # type: ignore[attr-defined]
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def forward(self: Any, lm_head: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        CAPTURED.lm_head, CAPTURED.hidden = lm_head, hidden_states
        return original(self, lm_head, hidden_states, *args, **kwargs)

    layer.forward = forward  # type: ignore[attr-defined]
