# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What a run fits: the value's loss, which the value itself and the rewards decide, and distillation beside it."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vgf_llm.functional import kl_divergence, simplex_flow
from vgf_llm.models.config import TransportConfig
from vgf_llm.models.outputs import Candidates
from vgf_llm.models.sampling import Sampling
from vgf_llm.models.valued_policy import ValuedPolicy
from vgf_llm.trainer.fit import losses
from vgf_llm.trainer.fit.micro_batch import MicroBatch
from vgf_llm.trainer.keep.buffer import RolloutGroup
from vgf_llm.trainer.keep.outcomes import PromptOutcomes

logger = logging.getLogger(__name__)


class Transported(NamedTuple):
    """Transport at the states of a batch: log-probabilities of the candidates, and KL and total variation to the base.

    The first are `[R, T, K]`, the others `[R, T]`.
    """

    logits: Tensor
    kl: Tensor
    distance: Tensor


@torch.no_grad()
def transport_candidates(candidates: Candidates, transport: TransportConfig) -> Transported:
    """Transports the next-token distributions of known candidates."""
    logits = simplex_flow(
        candidates.logits,
        candidates.q_values,
        step_size=transport.step_size,
        num_steps=transport.transport_steps,
        candidate_mask=candidates.mask,
        max_kl=transport.max_kl,
    )
    start = candidates.logits.masked_fill(~candidates.mask, -torch.inf).log_softmax(dim=-1)
    distance = 0.5 * (logits.exp() - start.exp()).abs().sum(dim=-1)
    return Transported(logits, kl_divergence(logits, start, candidates.mask), distance)


def are_outcomes(scored: Tensor) -> bool:
    """Tells whether all rewards, none of them NaN, are 0 or 1."""
    return bool(((scored == 0) | (scored == 1)).all())


class Objective:
    """The losses of a run, and which completions they look at.

    Args:
        model: The policy with its value.
        value_loss: A loss that fits the value, or `"auto"`: the value's own choice once there are rewards.
        sequence: Whether the model's value of whole responses is trained, instead of its token-level value.
        distill_coef: Weight of the policy's regression to the transported policy; 0 for a frozen policy.
        pairs: Whether groups are preference pairs.
        samplings: How the base, the value and the transported policy draw tokens in rounds, in this order.
        seed: Seed of the run, which decides the bootstraps of an ensemble.
        entropy_bonus: Whether the entropy of the model behind the value is measured, for a bonus. Other values have no
            such model.
        contrast: What has to have had different rewards before a completion teaches a value that needs them: its
            `"prompt"`, or the `"run"`.

    Attributes:
        kind: The loss; `None` as long as no rewards have decided it.

    Raises:
        ValueError: If the loss does not fit the value.
    """

    def __init__(
        self,
        model: ValuedPolicy,
        *,
        value_loss: str = "auto",
        sequence: bool = False,
        distill_coef: float = 0.0,
        pairs: bool = False,
        samplings: Sequence[Sampling] = (Sampling(),),
        seed: int = 0,
        entropy_bonus: bool = False,
        contrast: str = "prompt",
    ) -> None:
        value: Any = model.sequence_value if sequence else model.value
        if value_loss != "auto" and value_loss not in value.losses:
            raise ValueError(
                f"`value_loss` {value_loss!r} does not fit a value of the kind {value.parametrization!r}, which "
                f"has {', '.join(map(repr, value.losses))}. Choose one of them, or 'auto'."
            )
        self.value = value
        self.value_loss = value_loss
        self.sequence = sequence
        self.distill_coef = distill_coef
        self.pairs = pairs
        self.samplings = tuple(samplings)
        self.seed = seed
        self.contrast = contrast
        self.entropy_bonus = entropy_bonus and not sequence and value.needs_logits
        if entropy_bonus and not self.entropy_bonus:
            logger.warning(
                "`entropy_coef` does nothing: the value of `model` is of the kind %r, which is no policy that has an "
                "entropy.",
                value.parametrization,
            )
        self.kind: str | None = None
        if value_loss != "auto":
            self.set_kind(value_loss)

    def set_kind(self, kind: str | None) -> None:
        """Decides the loss; a head's scores are read as the loss fits them."""
        self.kind = kind
        if kind is not None and not self.sequence and not self.value.needs_logits:
            # Only Bernoulli scores are log-odds of success; transport has to read the others as they are.
            self.value.reward_kind = "bernoulli" if kind == "bernoulli" else "regression"

    def resolved(self, rewards: Tensor) -> "Objective":
        """Returns the objective for rewards that come before any training has decided it, as in evaluation."""
        if self.kind is not None:
            return self
        decided = copy.copy(self)
        scored = rewards[~rewards.isnan()]
        decided.kind = self.value.default_loss(outcomes=are_outcomes(scored), pairs=self.pairs)
        return decided

    @property
    def compares(self) -> bool:
        """Whether a row's gradient depends on the scores of the others of its group."""
        return self.kind in (None, "pairwise") or (self.sequence and self.distill_coef > 0)

    @property
    def reads_reference(self) -> bool:
        """Whether the loss reads the reference's log-probabilities; unknown losses may."""
        if self.sequence or not self.value.needs_logits:
            return False
        return self.kind is None or self.value.needs_reference(self.kind)

    def sampling_of(self, kind: str | None) -> tuple[Sampling, ...]:
        """How the tokens of a row were drawn, as far as a loss has to know it.

        A likelihood is of what was sampled, so that it sees all of it: otherwise the sampler itself is learned.
        Losses of log-ratios compare rewards of responses, wherever these came from; what they fit holds at the
        temperature that responses are sampled at.
        """
        if kind == "likelihood":
            return self.samplings
        return tuple(Sampling(temperature=sampling.temperature) for sampling in self.samplings)

    def observe(self, rewards: Tensor) -> bool:
        """Decides what `"auto"` stands for by the rewards of a round, and refuses rewards that the loss cannot fit.

        The rewards are those of all processes, so that all of them decide alike. Returns whether earlier completions
        are of no use to the loss and have to be dropped.
        """
        scored = rewards[~rewards.isnan()]
        if len(scored) == 0:
            return False
        outcomes, forgets = are_outcomes(scored), False
        if self.kind is None:
            kind = self.value.default_loss(outcomes=outcomes, pairs=self.pairs)
            # Failures alone teach no likelihood anything, and do not say yet what rewards there are.
            self.set_kind(None if kind == "likelihood" and not bool(scored.any()) else kind)
        elif self.kind == "likelihood" and self.value_loss == "auto" and not outcomes:
            kind = self.value.default_loss(outcomes=False, pairs=self.pairs)
            logger.warning(
                "Rewards were all 0 or 1 so far, and others arrived now, from %g to %g: `value_loss='auto'` is %r from "
                "here on, and earlier completions, of which only successes were kept, are dropped.",
                scored.min().item(), scored.max().item(), kind,
            )  # fmt: skip
            self.set_kind(kind)
            forgets = True
        self._check(scored, outcomes)
        return forgets

    def _check(self, scored: Tensor, outcomes: bool) -> None:
        found = f"from {scored.min().item():g} to {scored.max().item():g}"
        if self.kind == "bernoulli" and bool(((scored < 0) | (scored > 1)).any()):
            others = [name for name in self.value.losses if name not in ("bernoulli", "likelihood")]
            raise ValueError(
                f"`value_loss={self.value_loss!r}` fits the probability of success, but rewards {found} arrived. Set "
                f"`value_loss` to {' or '.join(map(repr, others))}, or return rewards in [0, 1]."
            )
        if self.kind == "likelihood" and not outcomes:
            raise ValueError(
                f"`value_loss={self.value_loss!r}` fits the likelihood of completions of reward 1, and rewards other "
                f"than 0 and 1 arrived, {found}. Set `value_loss='pairwise'`, or let the reward functions return 0 "
                "and 1."
            )

    def keeps(self, group: RolloutGroup) -> list[int]:
        """Places of the completions that a later round may train on."""
        if self.kind is None:  # there were no rewards yet, or failures alone
            return []
        if self.kind == "likelihood":
            return (group.rewards == 1).nonzero().flatten().tolist()
        if self.kind == "pairwise" and not group.is_mixed:
            return []
        return (~group.rewards.isnan()).nonzero().flatten().tolist()

    def learns(self, group: RolloutGroup, outcomes: PromptOutcomes) -> list[int]:
        """Places of the completions that the value learns from now."""
        if self.value.needs_contrast and not outcomes.has_contrast(group.prompt_ids, self.contrast):
            return []
        return self.keeps(group)

    def reads(self, group: RolloutGroup, outcomes: PromptOutcomes) -> list[int]:
        """Places of the completions that go through the model: those that teach the value, or the policy, something."""
        return list(range(len(group))) if self.distill_coef > 0 else self.learns(group, outcomes)

    @torch.no_grad()
    def score(self, model: ValuedPolicy, batch: MicroBatch) -> Tensor:
        """Scores of whole responses, `[R, H]`, as the loss sees them, without gradients."""
        if self.sequence:
            return model(
                batch.input_ids, batch.attention_mask, batch.num_tokens, response_mask=batch.response_mask
            ).sequence_values
        scores = self._forward(model, batch).scores
        return self.value.sequence_values(scores, batch.completion_mask).unsqueeze(-1)

    def _forward(self, model: nn.Module, batch: MicroBatch, **kwargs: Any) -> Any:
        ref_logps = batch.ref_logps
        # Without a reference scores are log-probabilities, which a likelihood is made of. A stand-in has no part in any
        # loss; it must not cost a pass of the reference that other processes do not make.
        if ref_logps is None or not self.reads_reference:
            ref_logps = torch.zeros_like(batch.completion_mask, dtype=torch.float32)
        return model(
            batch.input_ids,
            batch.attention_mask,
            batch.num_tokens,
            ref_logps=ref_logps,
            group_size=batch.group_sizes,
            samplings=self.sampling_of(self.kind),
            sampler=batch.sampler,
            **kwargs,
        )

    def __call__(
        self, wrapped: nn.Module, model: ValuedPolicy, batch: MicroBatch, entropy_coef: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of a micro-batch, and what is logged.

        Everything with a gradient runs through `wrapped`, the model as training wrapped it; `model` is the one inside.
        `entropy_coef` times the mean entropy of the tokens that are read is subtracted. Of the entropy the sum over
        tokens and their number are returned.
        """
        if self.sequence:
            return self._of_whole_responses(wrapped, model, batch)
        distil = self.distill_coef > 0
        transport = model.transport
        options = {"candidates": (transport.top_k_candidates, transport.min_candidate_prob)} if distil else {}
        output = self._forward(wrapped, batch, entropy=self.entropy_bonus, **options)
        loss = self._value_loss(output.scores, batch)
        measured = {"value/loss": loss.detach()}
        if distil:
            moved = transport_candidates(output.candidates, transport)
            distilled = losses.transported_loss(output.policy_logps, moved.logits, output.candidates.mask, batch)
            loss = loss + self.distill_coef * distilled
            measured["distill/loss"] = distilled.detach()
            measured["distill/kl"] = losses.mean_over_rows(moved.kl, batch)
        if self.entropy_bonus:
            measured["policy_loss"] = loss.detach()  # TRL's name
            total, count = losses.read_tokens(output.entropies, batch)
            loss = loss - entropy_coef * total / (batch.num_read_tokens or 1.0)
            measured["entropy"] = torch.stack([total.detach(), count])
        return loss, measured

    def _value_loss(self, scores: Tensor, batch: MicroBatch) -> Tensor:
        if self.kind is None:  # a zero that is connected to the graph, for a backward in every process
            return (scores * 0.0).sum()
        if self.kind in ("likelihood", "pairwise"):
            values = self.value.sequence_values(scores, batch.completion_mask)
            if self.kind == "likelihood":
                return losses.likelihood_loss(values, batch)
            return losses.pairwise_loss(values.unsqueeze(-1), batch)
        if self.value.needs_logits:
            scores = losses.prefix_log_odds(scores, batch)
        return losses.token_loss(self.kind, scores, batch)

    def _of_whole_responses(
        self, wrapped: nn.Module, model: ValuedPolicy, batch: MicroBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        distil = self.distill_coef > 0
        tokens = {"candidate_ids": batch.completion_ids.unsqueeze(-1)} if distil else {}
        output = wrapped(
            batch.input_ids, batch.attention_mask, batch.num_tokens, response_mask=batch.response_mask, **tokens
        )
        values = output.sequence_values
        weights = losses.bootstrap_weights(batch, values.shape[-1], self.seed)
        if self.kind == "pairwise":
            loss = losses.pairwise_loss(values, batch, weights)
        elif self.kind == "regression":
            loss = losses.sequence_regression_loss(values, batch, weights)
        else:
            loss = (values * 0.0).sum()
        measured = {"value/loss": loss.detach()}
        if distil:
            lower = self.value.lower_bound(values.detach(), model.transport.lower_bound_coef)
            known = batch
            if batch.group_scores is not None:
                bound = self.value.lower_bound(batch.group_scores, model.transport.lower_bound_coef)
                known = replace(batch, group_scores=bound.unsqueeze(-1))
            distilled = losses.best_response_loss(output.policy_logps.squeeze(-1), lower, known)
            loss = loss + self.distill_coef * distilled
            measured["distill/loss"] = distilled.detach()
        return loss, measured
