# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`ValuedPolicy`: a language model, the policy, together with the value that transports its samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from vgf_llm.functional import candidate_set
from vgf_llm.models.adapter_rows import (
    AdapterBlocks,
    adapter_parameters,
    adapter_rows,
    prepare_rows,
    recompute_context,
)
from vgf_llm.models.backbones import (
    VALUE_ADAPTER,
    add_value_adapter,
    check_policy_adapters,
    check_value_fits,
    copy_without_adapters,
    disable_checkpointing,
    drops,
    enable_checkpointing,
    own_adapter,
)
from vgf_llm.models.config import TransportConfig, VGFModelConfig
from vgf_llm.models.language_model import (
    STATES_AT_A_TIME,
    chosen_logps,
    evaluating,
    inner_model,
    last_hidden_states,
    logits_of_states,
    output_embedding,
    output_vocab_size,
    output_weight,
    output_width,
    probe_logits,
)
from vgf_llm.models.outputs import Candidates, VGFModelOutput, VGFScore
from vgf_llm.models.prompt_sharing import can_share_prompts, grouped_hidden_states
from vgf_llm.models.sampling import Sampling
from vgf_llm.models.sequence_value import DifferentiableValue
from vgf_llm.models.value import StateFeatures, ValueModel, build_value

BackboneName = Literal["policy", "lora", "copy"]
PLAIN = (Sampling(),)


@dataclass(frozen=True)
class Rows:
    """Prompts with their responses, as every pass over them takes them.

    Attributes:
        input_ids: `[B, P + T]`, prompts padded left, responses padded right.
        attention_mask: `[B, P + T]`.
        num_tokens: T.
        group_size: Adjacent rows that share a prompt: one number, or one for every prompt.
        samplings: How tokens were drawn.
        sampler: `[B]`, which of `samplings` drew each row; the first where left out.
    """

    input_ids: Tensor
    attention_mask: Tensor
    num_tokens: int
    group_size: int | Sequence[int] = 1
    samplings: Sequence[Sampling] = PLAIN
    sampler: Tensor | None = None

    def __post_init__(self) -> None:
        rows, size = self.input_ids.shape[0], self.group_size
        if isinstance(size, int) and (size < 1 or rows % size):
            raise ValueError(f"`group_size` must divide the {rows} rows of the batch, got {size}.")
        if not isinstance(size, int) and (sum(size) != rows or min(size) < 1):
            raise ValueError(f"`group_size` must be positive and add up to the {rows} rows, got {list(size)}.")
        if not self.samplings:
            raise ValueError("`samplings` must hold at least one Sampling, got none.")
        if self.sampler is not None and self.sampler.shape != (rows,):
            raise ValueError(f"`sampler` must have shape ({rows},), got {tuple(self.sampler.shape)}.")

    @property
    def group_sizes(self) -> Sequence[int]:
        """Rows of each prompt."""
        size = self.group_size
        return [size] * (self.input_ids.shape[0] // size) if isinstance(size, int) else size

    @property
    def tokens(self) -> Tensor:
        """`[B, T]`, the responses."""
        return self.input_ids[:, -self.num_tokens :]

    def states(self, model: nn.Module) -> Tensor:
        """`[B, T, D]`, the hidden states of a model that choose the tokens of the responses.

        Prompts are read apart from responses wherever the model allows it, also for groups of one row: which forwards
        run must not depend on the groups of a batch, since processes that shard a model have to run the same ones.
        """
        if can_share_prompts(model):
            ids, mask = self.input_ids, self.attention_mask
            hidden = grouped_hidden_states(model, ids, mask, self.num_tokens, self.group_sizes)
        else:
            hidden = last_hidden_states(model, self.input_ids, self.attention_mask)
        return hidden[:, -self.num_tokens - 1 : -1]

    def logps(self, model: nn.Module, states: Tensor) -> Tensor:
        """`[B, T]`, log-probabilities of the responses from states `[B, T, D]`, under what drew each row."""
        return self.logps_and_entropies(model, states, entropy=False).squeeze(-1)

    def logps_and_entropies(self, model: nn.Module, states: Tensor, *, entropy: bool = True) -> Tensor:
        """`[B, T, 2]`: `logps`, and the entropy of the distribution that each token is from; `[B, T, 1]` without."""
        return chosen_logps(
            model,
            states,
            self.tokens.unsqueeze(-1),
            contexts=self.input_ids.masked_fill(self.attention_mask == 0, -1),
            samplings=self.samplings,
            sampler=self.sampler,
            entropy=entropy,
        )


class ValuedPolicy(nn.Module):
    """A policy and a value over its next tokens: scores, log-probabilities and candidates of finished responses.

    `VGFModel` is this with generation and files on top.

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
        ValueError: If the value does not fit the backbone, the vocabularies differ, an adapter is not plain LoRA, or
            the hidden states of a model do not give its logits.
    """

    policy: Any  # a transformers model or PEFT's wrapper of one, whose attributes are its layers'

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
        check_policy_adapters(base_model)
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
        self.has_value_adapter = value_model is None and backbone == "lora"
        if self.has_value_adapter:
            base_model = add_value_adapter(base_model, lora_config)
        else:
            probe_logits(base_model)
        for model in (value_model, ref_model):
            if model is not None:
                probe_logits(model)
        prepare_rows(base_model)
        self.policy = base_model
        self.value = value
        self.value_model = value_model
        self.ref_model = ref_model
        self.sequence_value = sequence_value
        self.transport = transport or TransportConfig()
        self.set_trainable()

    def __getattr__(self, name: str) -> Any:
        """Finds layers that only the policy has, such as `lm_head`, as PEFT's wrapper finds its base model's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            found = getattr(self._modules.get("policy"), name, None)
            if not isinstance(found, nn.Module):
                raise
            return found

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

    def get_input_embeddings(self) -> nn.Module:
        """The policy's input embedding; a value model of its own has another."""
        return inner_model(self.policy).get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The policy's output embedding."""
        return output_embedding(self.policy)

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

    @property
    def policy_adapter(self) -> str | None:
        """The policy's own LoRA adapter, or `None` if the policy has none."""
        return own_adapter(self.policy)

    def value_blocks(self) -> AdapterBlocks:
        """The adapter of each row block that a decode step stacks: policy, value, and reference where it differs."""
        blocks: list[str | None] = [self.policy_adapter]
        if self.has_value_adapter:
            blocks.append(VALUE_ADAPTER)
        if self.value.needs_logits and self.policy_adapter is not None and self.ref_model is None:
            blocks.append(None)
        return tuple(blocks)

    def train(self, mode: bool = True) -> "ValuedPolicy":
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
        for parameter in self.policy_parameters().values():
            parameter.requires_grad_(policy)
        for parameter in self.value_adapter_parameters().values():
            parameter.requires_grad_(value)
        self.train(self.training)

    def value_adapter_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the value's adapter, by their names in `policy.named_parameters()`."""
        return adapter_parameters(self.policy, VALUE_ADAPTER) if self.has_value_adapter else {}

    def policy_parameters(self) -> dict[str, nn.Parameter]:
        """What trains with the policy, by name: its own adapter's parameters, or all of its own if it has none."""
        if self.policy_adapter is not None:
            return adapter_parameters(self.policy, self.policy_adapter)
        value = self.value_adapter_parameters()
        return {name: parameter for name, parameter in self.policy.named_parameters() if name not in value}

    @property
    def _no_split_modules(self) -> list[str]:
        """The layers that FSDP shards one by one: those of every language model in it."""
        models = [model for model in (self.policy, self.value_model, self.ref_model) if model is not None]
        return sorted({name for model in models for name in inner_model(model)._no_split_modules or ()})

    # Gradient checkpointing

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Always false: TRL's generation context reads it to switch checkpointing off and on again, losing its options.

        Nothing is lost by leaving it on: transformers ignores it in evaluation mode, in which responses are sampled.
        """
        return False

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Trades compute for memory in every trained backbone; non-reentrant only.

        The arguments are those of transformers' method. `use_reentrant=True` is refused with a ValueError, since
        recomputation would not see which adapter a row block had.
        """
        kwargs = dict(activation_checkpointing_kwargs or {})
        if kwargs.setdefault("use_reentrant", False):
            raise ValueError("`gradient_checkpointing_kwargs['use_reentrant']` must be False for a VGFModel.")
        for model in self._checkpointed():
            enable_checkpointing(model, {**kwargs, "context_fn": recompute_context}, options)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The name of `activation_checkpointing_enable` before transformers 5.20."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        """Turns gradient checkpointing off."""
        for model in self._checkpointed():
            disable_checkpointing(model)

    def _checkpointed(self) -> list[PreTrainedModel]:
        own = [inner_model(self.policy), self.value_model, getattr(self.sequence_value, "backbone", None)]
        return [model for model in own if model is not None]

    # Passes over finished responses

    # A compiler compiles the layers, not the choice of their adapters.
    @torch.compiler.disable(recursive=False)
    def _policy_states(self, rows: Rows, block: str | None) -> Tensor:
        with adapter_rows(self.policy, block):
            return rows.states(self.policy)

    def _value_states(self, rows: Rows) -> Tensor:
        if self.value_model is not None:
            return rows.states(self.value_model)
        if self.has_value_adapter:
            return self._policy_states(rows, VALUE_ADAPTER)
        with torch.no_grad():  # the policy's own features are frozen inputs of the head
            return self._policy_states(rows, self.policy_adapter)

    def _ref_states(self, rows: Rows) -> Tensor:
        if self.ref_model is not None:
            return rows.states(self.ref_model)
        return self._policy_states(rows, None)

    def _token_scores(
        self, states: Tensor, rows: Rows, ref: Tensor | None, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if self.value.needs_logits:
            if ref is None:
                ref = self._ref_logps(rows)
            found = rows.logps_and_entropies(self.value_model or self.policy, states, entropy=entropy)
            return found[..., 0] - ref, found[..., 1] if entropy else None
        features = StateFeatures(hidden=states, embedding=output_weight(self.policy).detach())
        return self.value.scores(features, rows.tokens.unsqueeze(-1)).squeeze(-1), None

    @torch.no_grad()
    def ref_logps(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_tokens: int,
        *,
        group_size: int | Sequence[int] = 1,
        samplings: Sequence[Sampling] = PLAIN,
        sampler: Tensor | None = None,
    ) -> Tensor:
        """Log-probabilities `[B, T]`, in nats, of responses under the reference; meaningless on padding.

        The arguments are the fields of `Rows`: the reference's distribution is cut and tempered as the tokens' own was.
        """
        return self._ref_logps(Rows(input_ids, attention_mask, num_tokens, group_size, samplings, sampler))

    @torch.no_grad()
    def _ref_logps(self, rows: Rows) -> Tensor:
        return rows.logps(self.ref_model if self.ref_model is not None else self.policy, self._ref_states(rows))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_tokens: int,
        *,
        ref_logps: Tensor | None = None,
        candidates: tuple[int, float] | None = None,
        candidate_ids: Tensor | None = None,
        response_mask: Tensor | None = None,
        group_size: int | Sequence[int] = 1,
        samplings: Sequence[Sampling] = PLAIN,
        sampler: Tensor | None = None,
        entropy: bool = False,
    ) -> VGFModelOutput:
        """Scores every response token, and on request the policy's log-probabilities of candidates.

        Everything that receives gradients is computed in this one call, so that DDP sees it. Which forwards it runs
        follows from its arguments' presence alone, never from what stands in them. Arguments that are not listed are
        the fields of `Rows`: the log-ratio of a token is that of the distributions it was drawn from, so that a value
        learns what is rewarded, not how its samples were drawn.

        Args:
            ref_logps: `[B, T]` from `ref_logps`, for a log-ratio value; computed here when left out.
            candidates: `top_k` and `min_prob` of `candidate_values`, for distillation: the reference's candidates with
                their potentials, and their log-probabilities under the policy. Features that the value or the policy is
                run for anyway are not computed a second time, unless dropout would be in them.
            candidate_ids: `[B, T, K]`, tokens whose log-probabilities under the policy are wanted.
            response_mask: `[B, P + T]`, 1 on response tokens: the sequence value is asked for whole responses,
                instead of the token-level value for scores.
            entropy: Whether a log-ratio value's model is asked for the entropy of its next-token distributions too.

        Returns:
            A `VGFModelOutput`.

        Raises:
            ValueError: `candidate_ids` and `candidates` are both given.
        """
        if candidates is not None and candidate_ids is not None:
            raise ValueError("`candidate_ids` and `candidates` exclude each other; pass one of them.")
        scores = entropies = values = policy_states = states = found = None
        rows = Rows(input_ids, attention_mask, num_tokens, group_size, samplings, sampler)
        if candidates is not None or candidate_ids is not None:
            policy_states = self._policy_states(rows, self.policy_adapter)
        if response_mask is None:
            if policy_states is None or self.value_model is not None or self.has_value_adapter:
                states = self._value_states(rows)
            else:
                states = policy_states.detach()
            scores, entropies = self._token_scores(states, rows, ref_logps, entropy)
        elif self.sequence_value is not None:
            values = self.sequence_value.from_ids(input_ids, attention_mask, response_mask)
        if candidates is not None:
            clean = None if states is None or drops(self) else states.detach()
            found = self._candidates(rows, *candidates, clean)
            candidate_ids = found.ids
        if policy_states is None or candidate_ids is None:
            return VGFModelOutput(scores, sequence_values=values, entropies=entropies)
        logps = chosen_logps(self.policy, policy_states, candidate_ids)
        return VGFModelOutput(scores, logps, values, found, entropies)

    @torch.no_grad()
    def score(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_mask: Tensor,
        *,
        group_size: int | Sequence[int] = 1,
        ref_logps: Tensor | None = None,
        samplings: Sequence[Sampling] = PLAIN,
        sampler: Tensor | None = None,
    ) -> VGFScore:
        """Values finished responses in one teacher-forced pass.

        Arguments that are not listed are the fields of `Rows`; left out, log-ratios are those of the models themselves.

        Args:
            completion_mask: `[B, T]`, 1 on response tokens, up to and with the end-of-sequence token.
            ref_logps: `[B, T]` from `ref_logps`, for a log-ratio value; computed here when left out.

        Returns:
            A `VGFScore`.
        """
        rows = Rows(input_ids, attention_mask, completion_mask.shape[1], group_size, samplings, sampler)
        scores, _ = self._token_scores(self._value_states(rows), rows, ref_logps)
        return VGFScore(self.value.sequence_values(scores, completion_mask), scores)

    @torch.no_grad()
    def sequence_scores(self, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor) -> Tensor:
        """Values whole responses `[B, P + T]` without gradients; returns one value per member, `[B, H]`."""
        if self.sequence_value is None:
            raise ValueError("This VGFModel has no `sequence_value`; set it to a SequenceValue.")
        return self.sequence_value.from_ids(input_ids, attention_mask, response_mask)

    @torch.no_grad()
    def candidate_values(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_tokens: int,
        *,
        top_k: int,
        min_prob: float,
        group_size: int | Sequence[int] = 1,
    ) -> Candidates:
        """Evaluates the value at the reference's candidates of every response state: distillation's raw material.

        The first arguments are the fields of `Rows`; `top_k` is K, `min_prob` a candidate's least probability under the
        reference.
        """
        return self._candidates(Rows(input_ids, attention_mask, num_tokens, group_size), top_k, min_prob)

    # A switch of modes breaks a compiled graph; what runs in between is compiled.
    @torch.compiler.disable(recursive=False)
    @torch.no_grad()
    def _candidates(self, rows: Rows, top_k: int, min_prob: float, states: Tensor | None = None) -> Candidates:
        """`candidate_values`, given what `_value_states` returns where that is known."""
        with evaluating(self):  # targets have no dropout, and nothing to checkpoint
            ref_states = self._ref_states(rows)
            states = self._value_states(rows) if states is None else states
        ref, own = ref_states.flatten(0, 1), states.flatten(0, 1)
        parts = [
            self._candidates_of(*pair, top_k, min_prob)
            for pair in zip(ref.split(STATES_AT_A_TIME), own.split(STATES_AT_A_TIME), strict=True)
        ]
        shape = (*rows.tokens.shape, -1)
        return Candidates(*(torch.cat(tensors).view(shape) for tensors in zip(*parts, strict=True)))

    def _candidates_of(self, ref_states: Tensor, states: Tensor, top_k: int, min_prob: float) -> tuple[Tensor, ...]:
        """The fields of `Candidates` `[S, K]` for states `[S, D]`."""
        ref_logits = logits_of_states(self.ref_model if self.ref_model is not None else self.policy, ref_states)
        ids, mask = candidate_set(ref_logits, top_k=top_k, min_prob=min_prob)
        value_logits = logits_of_states(self.value_model or self.policy, states) if self.value.needs_logits else None
        features = StateFeatures(states, output_weight(self.policy), value_logits, ref_logits)
        return ids, mask, ref_logits.log_softmax(-1).gather(-1, ids), self.value.q_values(features, ids)
