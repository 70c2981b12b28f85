# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The `vllm.general_plugins` entry point: keeps what a value reads of the step that the engine is in.

A logits processor of vLLM sees logits and token ids. Every model of vLLM makes its logits in one layer, which is given
the hidden states and the output embedding; that layer's `forward` is wrapped, in every process that vLLM starts. What
a value with an adapter or a model of its own reads is left by a model that is made known to vLLM here.
"""

import functools
from typing import Any

from torch import Tensor

from vgf_llm.serving.captured import CAPTURED
from vgf_llm.serving.pair import ARCHITECTURE, PolicyAndValueForCausalLM


def register() -> None:
    """Wraps vLLM's logits layer and makes the model known; calling it again changes nothing."""
    from vllm import ModelRegistry
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    wrap_forward(LogitsProcessor)
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, PolicyAndValueForCausalLM)


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
