# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Passes over finished responses: what the value, the policy and the reference say about tokens that are there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vgf_llm.functional import candidate_set
from vgf_llm.models.adapter_rows import adapter_rows
from vgf_llm.models.backbones import (
    VALUE_ADAPTER,
    drops,
    evaluating,
    own_adapter,
)
from vgf_llm.models.language_model import (
    STATES_AT_A_TIME,
    chosen_logps,
    last_hidden_states,
    output_weight,
    project_hidden,
)
from vgf_llm.models.outputs import Candidates, VGFModelOutput, VGFScore
from vgf_llm.models.prompt_sharing import can_share_prompts, grouped_hidden_states
from vgf_llm.models.recomputation import RecomputationMixin
from vgf_llm.models.value import StateFeatures, StateValue, ValueModel


@dataclass(frozen=True)
class Rows:
    """Prompts with their responses, as every pass over them takes them.

    Attributes:
        input_ids: `[B, P + T]`, prompts padded left, responses padded right.
        attention_mask: `[B, P + T]`.
        num_tokens: T.
        group_size: Adjacent rows that share a prompt: one number, or one for every prompt.
    """

    input_ids: Tensor
    attention_mask: Tensor
    num_tokens: int
    group_size: int | Sequence[int] = 1

    def __post_init__(self) -> None:
        rows, size = self.input_ids.shape[0], self.group_size
        if isinstance(size, int) and (size < 1 or rows % size):
            raise ValueError(f"`group_size` must divide the {rows} rows of the batch, got {size}.")
        if not isinstance(size, int) and (sum(size) != rows or min(size) < 1):
            raise ValueError(f"`group_size` must be positive and add up to the {rows} rows, got {list(size)}.")

    @property
    def group_sizes(self) -> Sequence[int]:
        """Rows of each prompt."""
        size = self.group_size
        return [size] * (self.input_ids.shape[0] // size) if isinstance(size, int) else size

    @property
    def tokens(self) -> Tensor:
        """`[B, T]`, the responses."""
        return self.input_ids[:, -self.num_tokens :]

    def hidden_states(self, model: nn.Module) -> Tensor:
        """`[B, 1 + T, D]`, or of more columns to the left, the states of a model after the prompts' last tokens on."""
        sizes = self.group_sizes
        if max(sizes) > 1 and can_share_prompts(model):
            return grouped_hidden_states(model, self.input_ids, self.attention_mask, self.num_tokens, sizes)
        return last_hidden_states(model, self.input_ids, self.attention_mask)


class TeacherForcingMixin(RecomputationMixin):
    """Scores, log-probabilities and candidates of responses `[B, P + T]`, for losses and for measuring."""

    value: ValueModel
    ref_model: PreTrainedModel | None
    has_value_adapter: bool

    @property
    def policy_adapter(self) -> str | None:
        """The policy's own LoRA adapter, or `None` if the policy has none."""
        return own_adapter(self.policy)

    @contextmanager
    def _blocks(self, *blocks: str | None) -> Iterator[None]:
        self._checkpoint_blocks(blocks)
        with adapter_rows(self.policy, *blocks):
            yield

    # The layers' forwards are replaced for this call. A compiler compiles what they run, not the replacing.
    @torch.compiler.disable(recursive=False)
    def _policy_hidden(self, rows: Rows, block: str | None) -> Tensor:
        with self._blocks(block):
            return rows.hidden_states(self.policy)

    def _value_hidden(self, rows: Rows) -> Tensor:
        if self.value_model is not None:
            return rows.hidden_states(self.value_model)
        if self.has_value_adapter:
            return self._policy_hidden(rows, VALUE_ADAPTER)
        with torch.no_grad():  # the policy's own features are frozen inputs of the head
            return self._policy_hidden(rows, self.policy_adapter)

    def _ref_hidden(self, rows: Rows) -> Tensor:
        if self.ref_model is not None:
            return rows.hidden_states(self.ref_model)
        return self._policy_hidden(rows, None)

    def _states(self, hidden: Tensor, num_tokens: int) -> Tensor:
        # Q and log-ratios belong to the state that chooses a token; a state value to the state the token leads to.
        if isinstance(self.value, StateValue):
            return hidden[:, -num_tokens:]
        return hidden[:, -num_tokens - 1 : -1]

    def _token_scores(self, hidden: Tensor, rows: Rows, ref: Tensor | None) -> Tensor:
        states, tokens = self._states(hidden, rows.num_tokens), rows.tokens.unsqueeze(-1)
        if self.value.needs_logits:
            if ref is None:
                ref = self._ref_logps(rows)
            return chosen_logps(self.value_model or self.policy, states, tokens).squeeze(-1) - ref
        features = StateFeatures(hidden=states, embedding=output_weight(self.policy).detach())
        return self.value.scores(features, tokens).squeeze(-1)

    @torch.no_grad()
    def ref_logps(self, input_ids: Tensor, attention_mask: Tensor, num_tokens: int, *, group_size: int = 1) -> Tensor:
        """Log-probabilities of the last `num_tokens` tokens under the reference.

        Args:
            input_ids: `[B, P + T]`, prompts padded left, responses padded right.
            attention_mask: `[B, P + T]`.
            num_tokens: T.
            group_size: Adjacent rows that share a prompt, which is then read once for all of them.

        Returns:
            `[B, T]`, in nats; meaningless on padding.
        """
        return self._ref_logps(Rows(input_ids, attention_mask, num_tokens, group_size))

    @torch.no_grad()
    def _ref_logps(self, rows: Rows) -> Tensor:
        hidden = self._ref_hidden(rows)[:, -rows.num_tokens - 1 : -1]
        model = self.ref_model if self.ref_model is not None else self.policy
        return chosen_logps(model, hidden, rows.tokens.unsqueeze(-1)).squeeze(-1)

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
        group_size: int | Sequence[int] = 1,
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
            group_size: Adjacent rows that share a prompt, which is then read once for all of them: one number, or one
                for every prompt.

        Returns:
            A `VGFModelOutput`.

        Raises:
            ValueError: `candidate_ids` and `candidates` are both given.
        """
        if candidates is not None and candidate_ids is not None:
            raise ValueError("`candidate_ids` and `candidates` exclude each other; pass one of them.")
        scores = values = policy_hidden = hidden = found = None
        rows = Rows(input_ids, attention_mask, num_tokens, group_size)
        if candidates is not None or candidate_ids is not None:
            policy_hidden = self._policy_hidden(rows, self.policy_adapter)
        if response_mask is None:
            if policy_hidden is None or self.value_model is not None or self.has_value_adapter:
                hidden = self._value_hidden(rows)
            else:
                hidden = policy_hidden.detach()
            scores = self._token_scores(hidden, rows, ref_logps)
        elif self.sequence_value is not None:
            values = self.sequence_value.from_ids(input_ids, attention_mask, response_mask)
        if candidates is not None:
            clean = None if hidden is None or drops(self) else hidden.detach()
            found = self._candidates(rows, *candidates, clean)
            candidate_ids = found.ids
        if policy_hidden is None or candidate_ids is None:
            return VGFModelOutput(scores, sequence_values=values)
        states = policy_hidden[:, -num_tokens - 1 : -1]
        return VGFModelOutput(scores, chosen_logps(self.policy, states, candidate_ids), values, found)

    @torch.no_grad()
    def score(
        self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor, *, group_size: int = 1
    ) -> VGFScore:
        """Values finished responses in one teacher-forced pass.

        Args:
            input_ids: `[B, P + T]`.
            attention_mask: `[B, P + T]`.
            completion_mask: `[B, T]`, 1 on response tokens, up to and with the end-of-sequence token.
            group_size: Adjacent rows that share a prompt, which is then read once for all of them.

        Returns:
            A `VGFScore`.
        """
        rows = Rows(input_ids, attention_mask, completion_mask.shape[1], group_size)
        scores = self._token_scores(self._value_hidden(rows), rows, None)
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
        group_size: int = 1,
    ) -> Candidates:
        """Evaluates the value at the reference's candidates of every response state: distillation's raw material.

        Args:
            input_ids: `[B, P + T]`.
            attention_mask: `[B, P + T]`.
            num_tokens: T.
            top_k: K.
            min_prob: A candidate's least probability under the reference.
            group_size: Adjacent rows that share a prompt, which is then read once for all of them.

        Returns:
            `Candidates`.

        Raises:
            ValueError: For a state value, which cannot tell candidates apart.
        """
        return self._candidates(Rows(input_ids, attention_mask, num_tokens, group_size), top_k, min_prob)

    # A switch of modes breaks a compiled graph; what runs in between is compiled.
    @torch.compiler.disable(recursive=False)
    @torch.no_grad()
    def _candidates(self, rows: Rows, top_k: int, min_prob: float, hidden: Tensor | None = None) -> Candidates:
        """`candidate_values`, given what `_value_hidden` returns where that is known."""
        if isinstance(self.value, StateValue):
            raise ValueError("A v_head value does not rank candidate tokens; use log_ratio, bilinear or vocab.")
        with evaluating(self):  # targets have no dropout, and nothing to checkpoint
            ref_hidden = self._ref_hidden(rows)
            hidden = self._value_hidden(rows) if hidden is None else hidden
        ref, own = (states[:, -rows.num_tokens - 1 : -1].flatten(0, 1) for states in (ref_hidden, hidden))
        parts = [
            self._candidates_of(*pair, top_k, min_prob)
            for pair in zip(ref.split(STATES_AT_A_TIME), own.split(STATES_AT_A_TIME), strict=True)
        ]
        shape = (*rows.tokens.shape, -1)
        return Candidates(*(torch.cat(tensors).view(shape) for tensors in zip(*parts, strict=True)))

    def _candidates_of(self, ref_hidden: Tensor, hidden: Tensor, top_k: int, min_prob: float) -> tuple[Tensor, ...]:
        """The fields of `Candidates` `[S, K]` for states `[S, D]`."""
        ref_logits = project_hidden(self.ref_model if self.ref_model is not None else self.policy, ref_hidden)
        ids, mask = candidate_set(ref_logits, top_k=top_k, min_prob=min_prob)
        value_logits = project_hidden(self.value_model or self.policy, hidden) if self.value.needs_logits else None
        features = StateFeatures(hidden, output_weight(self.policy), value_logits, ref_logits)
        return ids, mask, ref_logits.log_softmax(-1).gather(-1, ids), self.value.q_values(features, ids)
