# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What the engine's step leaves for a value to read, in the process that the step runs in."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vgf_llm.models.value import StateFeatures, ValueModel


@dataclass
class Captured:
    """What a value reads of the last step."""

    # `[R, D]`, what the logits layer was given, or states of the value's own model in their place
    hidden: Tensor | None = None
    lm_head: Any = None  # the engine's output embedding
    value_logits: Tensor | None = None  # `[R, V]`, of the model behind a `log_ratio` value
    ref_logits: Tensor | None = None  # `[R, V]`, of the policy beside it, as they were before the engine changed them

    def features(self, value: ValueModel, vocab_size: int) -> StateFeatures:
        """Returns what `value` reads; raises RuntimeError if the engine left nothing."""
        if value.needs_logits and self.value_logits is not None and self.ref_logits is not None:
            return StateFeatures(
                value_logits=self.value_logits[:, :vocab_size], ref_logits=self.ref_logits[:, :vocab_size]
            )
        if value.needs_logits or self.hidden is None:
            raise RuntimeError(
                "The engine made logits without the layer that the plugin watches. Check that `VLLM_PLUGINS` is unset "
                "or names `vgf`, that vgf-llm is installed in the engine's environment, and that no `hf_overrides` of "
                "your own replace those of `engine_arguments`."
            )
        embedding = self.embedding(vocab_size) if value.parametrization == "bilinear" else None
        return StateFeatures(hidden=self.hidden, embedding=embedding)

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
