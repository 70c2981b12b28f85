# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Gradient checkpointing of a policy whose rows run under different adapters."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from vgf_llm.models.adapter_rows import AdapterBlocks, recompute_context
from vgf_llm.models.backbones import disable_checkpointing, enable_checkpointing
from vgf_llm.models.language_model import inner_model
from vgf_llm.models.sequence_value import DifferentiableValue


class RecomputationMixin(nn.Module):
    """Trades compute for memory in every trained backbone: activations are computed again in the backward."""

    policy: Any  # a transformers model or PEFT's wrapper of one, whose attributes are its layers'
    value_model: PreTrainedModel | None
    sequence_value: DifferentiableValue | None
    _checkpointing: tuple[dict[str, Any], dict[str, Any]] | None = None

    def value_blocks(self) -> AdapterBlocks:
        """The adapter of each row block of a forward."""
        raise NotImplementedError

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Always false: TRL's generation context reads it to switch checkpointing off and on again, losing row blocks.

        Nothing is lost by leaving it on: transformers ignores it in evaluation mode, in which responses are sampled.
        """
        return False

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Trades compute for memory in every trained backbone; non-reentrant only.

        Args:
            activation_checkpointing_kwargs: Handed to `torch.utils.checkpoint`; `use_reentrant=True` is refused, since
                recomputation would not see which adapter a row block had.
            **options: Handed to transformers' method, such as `every_n_layers`.
        """
        kwargs = dict(activation_checkpointing_kwargs or {})
        if kwargs.setdefault("use_reentrant", False):
            raise ValueError("`gradient_checkpointing_kwargs['use_reentrant']` must be False for a VGFModel.")
        self._checkpointing = (kwargs, options)
        self._checkpoint_blocks(self.value_blocks())
        for model in self._own_backbones():
            enable_checkpointing(model, kwargs, options)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The name of `activation_checkpointing_enable` before transformers 5.20."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        """Turns gradient checkpointing off."""
        self._checkpointing = None
        for model in (inner_model(self.policy), *self._own_backbones()):
            disable_checkpointing(model)

    def _own_backbones(self) -> list[PreTrainedModel]:
        own = [self.value_model, getattr(self.sequence_value, "backbone", None)]
        return [model for model in own if model is not None]

    def _checkpoint_blocks(self, blocks: AdapterBlocks) -> None:
        if self._checkpointing is not None:
            kwargs, options = self._checkpointing
            inner = inner_model(self.policy)
            enable_checkpointing(inner, {**kwargs, "context_fn": recompute_context(inner, blocks)}, options)
