# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`VGFModel`: a language model, the policy, together with the value that transports its samples."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import PushToHubMixin

from vgf_llm.functional import candidate_set
from vgf_llm.models.adapter_rows import AdapterBlocks, adapter_rows, check_plain_lora
from vgf_llm.models.backbones import (
    VALUE_ADAPTER,
    add_value_adapter,
    check_value_fits,
    copy_without_adapters,
    drops,
    evaluating,
    own_adapter,
)
from vgf_llm.models.config import TransportConfig, VGFModelConfig
from vgf_llm.models.language_model import (
    STATES_AT_A_TIME,
    chosen_logps,
    inner_model,
    last_hidden_states,
    output_embedding,
    output_vocab_size,
    output_weight,
    output_width,
    project_hidden,
)
from vgf_llm.models.outputs import Candidates, VGFModelOutput, VGFScore
from vgf_llm.models.recomputation import RecomputationMixin
from vgf_llm.models.sequence_value import DifferentiableValue
from vgf_llm.models.value import StateFeatures, StateValue, ValueModel, build_value

if TYPE_CHECKING:
    from vgf_llm.generation.output import VGFGenerateOutput

BackboneName = Literal["policy", "lora", "copy"]


class VGFModel(RecomputationMixin, PushToHubMixin):
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
    def policy_adapter(self) -> str | None:
        """The policy's own LoRA adapter, or `None` if the policy has none."""
        return own_adapter(self.policy)

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

    # Teacher-forced passes

    @contextmanager
    def _blocks(self, *blocks: str | None) -> Iterator[None]:
        self._checkpoint_blocks(blocks)
        with adapter_rows(self.policy, *blocks):
            yield

    # The layers' forwards are replaced for this call. A compiler compiles what they run, not the replacing.
    @torch.compiler.disable(recursive=False)
    def _policy_hidden(self, input_ids: Tensor, attention_mask: Tensor, *blocks: str | None) -> Tensor:
        repeated = len(blocks)
        with self._blocks(*blocks):
            return last_hidden_states(self.policy, input_ids.repeat(repeated, 1), attention_mask.repeat(repeated, 1))

    def _value_hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if self.value_model is not None:
            return last_hidden_states(self.value_model, input_ids, attention_mask)
        if self.has_value_adapter:
            return self._policy_hidden(input_ids, attention_mask, VALUE_ADAPTER)
        with torch.no_grad():  # the policy's own features are frozen inputs of the head
            return self._policy_hidden(input_ids, attention_mask, self.policy_adapter)

    def _ref_hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if self.ref_model is not None:
            return last_hidden_states(self.ref_model, input_ids, attention_mask)
        return self._policy_hidden(input_ids, attention_mask, None)

    def _states(self, hidden: Tensor, num_tokens: int) -> Tensor:
        # Q and log-ratios belong to the state that chooses a token; a state value to the state the token leads to.
        if isinstance(self.value, StateValue):
            return hidden[:, -num_tokens:]
        return hidden[:, -num_tokens - 1 : -1]

    def _token_scores(
        self, hidden: Tensor, input_ids: Tensor, attention_mask: Tensor, num_tokens: int, ref: Tensor | None
    ) -> Tensor:
        states, tokens = self._states(hidden, num_tokens), input_ids[:, -num_tokens:].unsqueeze(-1)
        if self.value.needs_logits:
            if ref is None:
                ref = self.ref_logps(input_ids, attention_mask, num_tokens)
            return chosen_logps(self.value_model or self.policy, states, tokens).squeeze(-1) - ref
        features = StateFeatures(hidden=states, embedding=output_weight(self.policy).detach())
        return self.value.scores(features, tokens).squeeze(-1)

    @torch.no_grad()
    def ref_logps(self, input_ids: Tensor, attention_mask: Tensor, num_tokens: int) -> Tensor:
        """Log-probabilities of the last `num_tokens` tokens under the reference.

        Args:
            input_ids: `[B, P + T]`, prompts padded left, responses padded right.
            attention_mask: `[B, P + T]`.
            num_tokens: T.

        Returns:
            `[B, T]`, in nats; meaningless on padding.
        """
        hidden = self._ref_hidden(input_ids, attention_mask)[:, -num_tokens - 1 : -1]
        model = self.ref_model if self.ref_model is not None else self.policy
        return chosen_logps(model, hidden, input_ids[:, -num_tokens:].unsqueeze(-1)).squeeze(-1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_tokens: int,
        *,
        ref_logps: Tensor | None = None,
        candidate_ids: Tensor | None = None,
        response_mask: Tensor | None = None,
        candidates: tuple[int, float] | None = None,
    ) -> VGFModelOutput:
        """Scores every response token, and on request the policy's log-probabilities of candidates.

        Everything that receives gradients is computed in this one call, so that DDP sees it.

        Args:
            input_ids: `[B, P + T]`, prompts padded left, responses padded right.
            attention_mask: `[B, P + T]`.
            num_tokens: T.
            ref_logps: `[B, T]` from `ref_logps`, for a log-ratio value; computed here when left out.
            candidate_ids: `[B, T, K]`, tokens whose log-probabilities under the policy are wanted.
            candidates: `top_k` and `min_prob` of `candidate_values`, for distillation: the reference's candidates with
                their potentials, and their log-probabilities under the policy. Features that the value or the policy is
                run for anyway are not computed a second time, unless dropout would be in them.
            response_mask: `[B, P + T]`, 1 on response tokens: the sequence value is asked for whole responses,
                instead of the token-level value for scores.

        Returns:
            A `VGFModelOutput`.

        Raises:
            ValueError: `candidate_ids` and `candidates` are both given.
        """
        if candidates is not None and candidate_ids is not None:
            raise ValueError("`candidate_ids` and `candidates` exclude each other; pass one of them.")
        scores = values = policy_hidden = hidden = found = None
        if candidates is not None or candidate_ids is not None:
            policy_hidden = self._policy_hidden(input_ids, attention_mask, self.policy_adapter)
        if response_mask is None:
            reads_policy = self.value_model is None and not self.has_value_adapter
            if policy_hidden is not None and reads_policy:
                hidden = policy_hidden.detach()
            else:
                hidden = self._value_hidden(input_ids, attention_mask)
            scores = self._token_scores(hidden, input_ids, attention_mask, num_tokens, ref_logps)
        elif self.sequence_value is not None:
            values = self.sequence_value.from_ids(input_ids, attention_mask, response_mask)
        if candidates is not None:
            clean = None if hidden is None or drops(self) else hidden.detach()
            found = self._candidates(input_ids, attention_mask, num_tokens, *candidates, clean)
            candidate_ids = found.ids
        if policy_hidden is None or candidate_ids is None:
            return VGFModelOutput(scores, sequence_values=values)
        states = policy_hidden[:, -num_tokens - 1 : -1]
        return VGFModelOutput(scores, chosen_logps(self.policy, states, candidate_ids), values, found)

    @torch.no_grad()
    def score(self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> VGFScore:
        """Values finished responses in one teacher-forced pass.

        Args:
            input_ids: `[B, P + T]`.
            attention_mask: `[B, P + T]`.
            completion_mask: `[B, T]`, 1 on response tokens, up to and with the end-of-sequence token.

        Returns:
            A `VGFScore`.
        """
        hidden = self._value_hidden(input_ids, attention_mask)
        scores = self._token_scores(hidden, input_ids, attention_mask, completion_mask.shape[1], None)
        return VGFScore(self.value.sequence_values(scores, completion_mask), scores)

    @torch.no_grad()
    def sequence_scores(self, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor) -> Tensor:
        """Values whole responses `[B, P + T]` without gradients; returns one value per member, `[B, H]`."""
        if self.sequence_value is None:
            raise ValueError("This VGFModel has no `sequence_value`; set it to a SequenceValue.")
        return self.sequence_value.from_ids(input_ids, attention_mask, response_mask)

    @torch.no_grad()
    def candidate_values(
        self, input_ids: Tensor, attention_mask: Tensor, num_tokens: int, *, top_k: int, min_prob: float
    ) -> Candidates:
        """Evaluates the value at the reference's candidates of every response state: distillation's raw material.

        Args:
            input_ids: `[B, P + T]`.
            attention_mask: `[B, P + T]`.
            num_tokens: T.
            top_k: K.
            min_prob: A candidate's least probability under the reference.

        Returns:
            `Candidates`.

        Raises:
            ValueError: For a state value, which cannot tell candidates apart.
        """
        return self._candidates(input_ids, attention_mask, num_tokens, top_k, min_prob)

    # A switch of modes breaks a compiled graph; what runs in between is compiled.
    @torch.compiler.disable(recursive=False)
    @torch.no_grad()
    def _candidates(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_tokens: int,
        top_k: int,
        min_prob: float,
        hidden: Tensor | None = None,
    ) -> Candidates:
        """`candidate_values`, given the value's features `[B, P + T, D]` where they are known."""
        if isinstance(self.value, StateValue):
            raise ValueError("A v_head value does not rank candidate tokens; use log_ratio, bilinear or vocab.")
        with evaluating(self):  # targets have no dropout, and nothing to checkpoint
            ref_hidden = self._ref_hidden(input_ids, attention_mask)
            hidden = self._value_hidden(input_ids, attention_mask) if hidden is None else hidden
        ref, own = (states[:, -num_tokens - 1 : -1].flatten(0, 1) for states in (ref_hidden, hidden))
        parts = [
            self._candidates_of(*pair, top_k, min_prob)
            for pair in zip(ref.split(STATES_AT_A_TIME), own.split(STATES_AT_A_TIME), strict=True)
        ]
        shape = (input_ids.shape[0], num_tokens, -1)
        return Candidates(*(torch.cat(tensors).view(shape) for tensors in zip(*parts, strict=True)))

    def _candidates_of(self, ref_hidden: Tensor, hidden: Tensor, top_k: int, min_prob: float) -> tuple[Tensor, ...]:
        """The fields of `Candidates` `[S, K]` for states `[S, D]`."""
        ref_logits = project_hidden(self.ref_model if self.ref_model is not None else self.policy, ref_hidden)
        ids, mask = candidate_set(ref_logits, top_k=top_k, min_prob=min_prob)
        value_logits = project_hidden(self.value_model or self.policy, hidden) if self.value.needs_logits else None
        features = StateFeatures(hidden, output_weight(self.policy), value_logits, ref_logits)
        return ids, mask, ref_logits.log_softmax(-1).gather(-1, ids), self.value.q_values(features, ids)

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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "VGFModel":
        """Loads what `save_pretrained` wrote. See `vgf_llm.models.saving.load_vgf_model`."""
        from vgf_llm.models.saving import load_vgf_model

        return load_vgf_model(pretrained_model_name_or_path, **kwargs)
