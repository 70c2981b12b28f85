# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`VGFModel`: a language model, the policy, together with the value that transports its samples."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import PushToHubMixin

from vgf_llm.models.adapter_rows import AdapterBlocks, check_plain_lora
from vgf_llm.models.backbones import (
    VALUE_ADAPTER,
    add_value_adapter,
    check_value_fits,
    copy_without_adapters,
    own_adapter,
)
from vgf_llm.models.config import TransportConfig, VGFModelConfig
from vgf_llm.models.language_model import (
    inner_model,
    output_embedding,
    output_vocab_size,
    output_width,
)
from vgf_llm.models.sequence_value import DifferentiableValue
from vgf_llm.models.teacher_forcing import TeacherForcingMixin
from vgf_llm.models.value import ValueModel, build_value

if TYPE_CHECKING:
    from vgf_llm.generation.output import VGFGenerateOutput

BackboneName = Literal["policy", "lora", "copy"]


class VGFModel(TeacherForcingMixin, PushToHubMixin):
    """A policy and a value over its next tokens.

    Without transport it is the policy: `generate(transport_steps=0, num_particles=1)` is the policy's own `generate`.

    Args:
        base_model: The policy, a causal language model, PEFT-wrapped or not.
        value: The value; `None` builds an untrained bilinear head.
        backbone: `"policy"`: the value reads the policy's own features; `"lora"`: features under a LoRA adapter on
            the policy; `"copy"`: a trainable copy of the policy. Ignored when `value_model` is given.
        value_model: A language model of its own for the value, with the policy's vocabulary.
        ref_model: The reference of a log-ratio value once the policy's own weights have been trained; `None` when the
            policy, its adapters off, still is the reference.
        lora_config: The value adapter, for `backbone="lora"`; plain LoRA on linear layers.
        sequence_value: The value of whole responses that sequence spaces move along; optional.
        transport: Defaults of `generate`.

    Raises:
        ValueError: If the value does not fit the backbone, or the vocabularies differ.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        >>> model = VGFModel(LlamaForCausalLM(config))
        >>> ids = torch.tensor([[1, 5, 7]])
        >>> model.generate(ids, transport_steps=4, num_particles=3, do_sample=True, max_new_tokens=5).shape[0]
        1
    """

    def __init__(
        self,
        base_model: PreTrainedModel | PeftModel,
        value: ValueModel | None = None,
        *,
        backbone: BackboneName = "policy",
        value_model: PreTrainedModel | None = None,
        ref_model: PreTrainedModel | None = None,
        lora_config: LoraConfig | None = None,
        sequence_value: DifferentiableValue | None = None,
        transport: TransportConfig | None = None,
    ) -> None:
        super().__init__()
        if value_model is None and backbone not in ("policy", "lora", "copy"):
            raise ValueError(f"`backbone` must be 'policy', 'lora' or 'copy', got {backbone!r}; or pass `value_model`.")
        vocab_size = output_vocab_size(base_model)
        if value_model is None and backbone == "copy":
            value_model = copy_without_adapters(base_model)
        if value_model is not None and output_vocab_size(value_model) != vocab_size:
            raise ValueError(
                f"`value_model` has {output_vocab_size(value_model)} logits, the policy {vocab_size}: a value needs "
                "the policy's tokenizer and vocabulary. Pick a model of the same family."
            )
        width = output_width(value_model if value_model is not None else base_model)
        embedding_width = output_width(base_model)
        if value is None:
            value = build_value("bilinear", width=width, vocab_size=vocab_size, embedding_width=embedding_width)
        check_value_fits(value, width=width, vocab_size=vocab_size, embedding_width=embedding_width)
        if value.needs_logits and value_model is None and backbone == "policy":
            raise ValueError(
                "A log_ratio value needs weights of its own: choose `backbone='lora'` or 'copy', or pass `value_model`."
            )
        if value_model is None and backbone == "lora":
            base_model = add_value_adapter(base_model, lora_config)
        own = own_adapter(base_model)
        if own is not None:
            check_plain_lora(base_model, own)
        self.policy = base_model
        self.value = value
        self.value_model = value_model
        self.ref_model = ref_model
        self.sequence_value = sequence_value
        self.has_value_adapter = value_model is None and backbone == "lora"
        self.transport = transport or TransportConfig()
        self.set_trainable()

    # What kind of model this is

    @property
    def config(self) -> PreTrainedConfig:
        """The policy's configuration."""
        return inner_model(self.policy).config

    @property
    def generation_config(self) -> GenerationConfig:
        """The policy's generation defaults."""
        return inner_model(self.policy).generation_config

    @property
    def device(self) -> torch.device:
        """The policy's device."""
        return inner_model(self.policy).device

    @property
    def dtype(self) -> torch.dtype:
        """The policy's dtype."""
        return inner_model(self.policy).dtype

    @property
    def vgf_config(self) -> VGFModelConfig:
        """What `save_pretrained` writes into `vgf_config.json`."""
        return VGFModelConfig(
            parametrization=self.value.parametrization,
            backbone="model" if self.value_model is not None else "lora" if self.has_value_adapter else "policy",
            hidden_size=output_width(self.value_model if self.value_model is not None else self.policy),
            vocab_size=output_vocab_size(self.policy),
            head_hidden_size=getattr(getattr(self.value, "head", None), "hidden_size", None),
            reward_kind=self.value.reward_kind,
            base_model_name_or_path=self.config._name_or_path or None,
            base_model_revision=getattr(self.config, "_commit_hash", None),
            transport=self.transport,
        )

    def value_blocks(self) -> AdapterBlocks:
        """The adapter of each row block that a decode step stacks: policy, value, and reference where it differs."""
        blocks: list[str | None] = [self.policy_adapter]
        if self.has_value_adapter:
            blocks.append(VALUE_ADAPTER)
        if self.value.needs_logits and self.policy_adapter is not None and self.ref_model is None:
            blocks.append(None)
        return tuple(blocks)

    def train(self, mode: bool = True) -> "VGFModel":
        """Sets training mode where something trains; frozen models stay in evaluation mode, without dropout."""
        super().train(mode)
        for model in (self.policy, self.value_model, self.ref_model, self.sequence_value):
            if model is not None and not any(parameter.requires_grad for parameter in model.parameters()):
                model.eval()
        return self

    def set_trainable(self, *, value: bool = True, policy: bool = False, sequence_value: bool = False) -> None:
        """Chooses what receives gradients.

        Args:
            value: Head, value adapter or value model.
            policy: The policy's own LoRA adapter, or all its weights if it has none.
            sequence_value: The value of whole responses.
        """
        self.requires_grad_(False)
        if self.sequence_value is not None:
            self.sequence_value.requires_grad_(sequence_value)
        self.value.requires_grad_(value)
        if self.value_model is not None:
            self.value_model.requires_grad_(value)
            if not self.value.needs_logits:
                output_embedding(self.value_model).requires_grad_(False)
        own = self.policy_adapter
        for name, parameter in self.policy.named_parameters():
            if f".{VALUE_ADAPTER}." in name and "lora_" in name:
                parameter.requires_grad_(value and self.has_value_adapter)
            elif policy and (own is None or (f".{own}." in name and "lora_" in name)):
                parameter.requires_grad_(True)
        self.train(self.training)

    @property
    def _no_split_modules(self) -> list[str]:
        """The layers that FSDP shards one by one: those of every language model in it."""
        models = [model for model in (self.policy, self.value_model, self.ref_model) if model is not None]
        return sorted({name for model in models for name in inner_model(model)._no_split_modules or ()})

    # Generation and artefacts: the layers above implement them

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> "Tensor | VGFGenerateOutput":
        """Samples responses, transported by the value. See `vgf_llm.generation.generate` for every argument."""
        from vgf_llm.generation.generate import generate  # a method of the model, implemented two layers above

        return generate(self, input_ids, attention_mask, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes the policy, the value and `vgf_config.json`. See `vgf_llm.models.saving.save_vgf_model`."""
        from vgf_llm.models.saving import save_vgf_model

        save_vgf_model(self, save_directory, **kwargs)

    def merge_value(self) -> PreTrainedModel:
        """Returns the plain model behind a log-ratio value. See `vgf_llm.models.merging.merge_value`."""
        from vgf_llm.models.merging import merge_value

        return merge_value(self)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "VGFModel":
        """Loads what `save_pretrained` wrote. See `vgf_llm.models.saving.load_vgf_model`."""
        from vgf_llm.models.saving import load_vgf_model

        return load_vgf_model(cls, pretrained_model_name_or_path, **kwargs)
