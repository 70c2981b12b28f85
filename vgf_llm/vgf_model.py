# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`VGFModel`: a policy with its value, which generates under transport and is saved and loaded."""

from pathlib import Path
from typing import Any, Self

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import PushToHubMixin

from vgf_llm.generation.generate import generate
from vgf_llm.generation.output import VGFGenerateOutput
from vgf_llm.models.merging import merge_value
from vgf_llm.models.saving import load_vgf_model, save_vgf_model
from vgf_llm.models.valued_policy import ValuedPolicy


class VGFModel(ValuedPolicy, PushToHubMixin):
    """A policy and a value over its next tokens.

    Without transport it is the policy: `generate(transport_steps=0, num_particles=1)` is the policy's own `generate`.
    Its arguments are those of `ValuedPolicy`.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        >>> model = VGFModel(LlamaForCausalLM(config))
        >>> ids = torch.tensor([[1, 5, 7]])
        >>> model.generate(ids, transport_steps=4, num_particles=3, do_sample=True, max_new_tokens=5).shape[0]
        1
    """

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor | VGFGenerateOutput:
        """Samples responses, transported by the value. See `vgf_llm.generation.generate` for every argument."""
        return generate(self, input_ids, attention_mask, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes the policy, the value and `vgf_config.json`. See `vgf_llm.models.saving.save_vgf_model`."""
        save_vgf_model(self, save_directory, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Loads what `save_pretrained` wrote. See `vgf_llm.models.saving.load_vgf_model`."""
        return load_vgf_model(cls, pretrained_model_name_or_path, **kwargs)

    def merge_value(self, budget: float = 1.0) -> PreTrainedModel:
        """Returns the plain model behind a log-ratio value. See `vgf_llm.models.merging.merge_value`."""
        return merge_value(self, budget)
