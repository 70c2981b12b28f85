# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The two losses of VGF training on one collated batch: the value's, and the policy's distillation.

Every loss is a mean over prompts (or completions) of a mean within each. The number that the sum is divided by is the
same in every micro-batch (`num_groups`), so that neither the split into accumulation steps nor the number of processes
changes it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vgf_llm.functional import (
    bernoulli_value_loss,
    distillation_loss,
    kl_divergence,
    masked_mean,
    pairwise_value_loss,
    regression_value_loss,
    simplex_flow,
    success_likelihood_loss,
)
from vgf_llm.models import LogRatioValue, VGFModel
from vgf_llm.models.outputs import Candidates
from vgf_llm.trainer.vgf_config import VGFConfig

Batch = dict[str, Any]


@dataclass(frozen=True)
class Transported:
    """Transport at the states of a batch.

    Attributes:
        candidates: Candidates with reference log-probabilities and potentials.
        logits: `[B, T, K]`, transported log-probabilities of the candidates.
        kl: `[B, T]`, KL to the reference, in nats.
        distance: `[B, T]`, total variation to the reference.
    """

    candidates: Candidates
    logits: Tensor
    kl: Tensor
    distance: Tensor


def sequences(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Joins prompts and completions: `input_ids` `[R, P + T]`, `attention_mask`, and the completion mask `[R, T]`."""
    mask = batch["completion_mask"]
    input_ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention_mask = torch.cat([batch["prompt_mask"], mask], dim=1)
    return input_ids, attention_mask, mask


@torch.no_grad()
def transport_batch(model: VGFModel, batch: Batch, args: VGFConfig) -> Transported:
    """Transports the next-token distributions at every state of a batch.

    Args:
        model: The unwrapped model.
        batch: A collated batch.
        args: Candidates, step size, number of steps, metric and KL cap.

    Returns:
        The transported distributions and what they spent.
    """
    input_ids, attention_mask, mask = sequences(batch)
    candidates = model.candidate_values(
        input_ids,
        attention_mask,
        mask.shape[1],
        top_k=args.top_k_candidates,
        min_prob=args.min_candidate_prob,
        group_size=batch["group_shape"][1],
    )
    return transport_candidates(candidates, args)


@torch.no_grad()
def transport_candidates(candidates: Candidates, args: VGFConfig) -> Transported:
    """Transports the next-token distributions of known candidates.

    Args:
        candidates: Candidates with reference log-probabilities and potentials.
        args: Step size, number of steps, metric and KL cap.

    Returns:
        The transported distributions and what they spent.
    """
    logits = simplex_flow(
        candidates.logits,
        candidates.q_values,
        step_size=args.step_size,
        num_steps=args.transport_steps,
        candidate_mask=candidates.mask,
        max_kl=args.max_kl,
    )
    start = candidates.logits.masked_fill(~candidates.mask, -torch.inf).log_softmax(dim=-1)
    distance = 0.5 * (logits.exp() - start.exp()).abs().sum(dim=-1)
    return Transported(candidates, logits, kl_divergence(logits, start, candidates.mask), distance)


def value_loss(
    kind: str,
    model: VGFModel,
    scores: Tensor,
    batch: Batch,
    args: VGFConfig,
    moved: Transported | None = None,
    *,
    winner_coef: float | None = None,
) -> Tensor:
    """The value's loss on one batch.

    Args:
        kind: `"pairwise"`, `"likelihood"`, `"bernoulli"` or `"regression"`.
        model: The unwrapped model.
        scores: `[R, T]`, raw scores of the completion tokens.
        batch: The batch; `rewards` `[R]` is NaN on rows that do not train, `num_groups` what to divide by.
        args: The configuration.
        moved: Transport at the batch's states, which TD(lambda) targets read; computed here when left out.
        winner_coef: What `args.winner_coef` comes to in this run; told from the batch when left out.

    Returns:
        A scalar.
    """
    _, _, mask = sequences(batch)
    rewards = batch["rewards"]
    if kind == "likelihood":
        sequence_values = model.value.sequence_values(scores, mask)
        return success_likelihood_loss(sequence_values, rewards, batch["group_sizes"]).sum() / batch["num_groups"]
    if kind == "pairwise":
        sequence_values = model.value.sequence_values(scores, mask).view(batch["group_shape"])
        rewards = rewards.view(batch["group_shape"])
        losses = pairwise_value_loss(sequence_values, rewards, reduction="prompt")
        return losses.sum() / batch["num_groups"]
    trained = ~rewards.isnan()
    mask = mask * trained.unsqueeze(-1)
    rewards = torch.where(trained, rewards, torch.zeros_like(rewards))
    if kind == "bernoulli" and isinstance(model.value, LogRatioValue):
        scores = _prefix_logits(scores, mask, batch)
    targets = rewards
    if kind == "regression":
        losses = regression_value_loss(scores, targets, mask, reduction="sequence")
    else:
        losses = bernoulli_value_loss(scores, targets, mask, reduction="sequence")
    return losses.sum() / _num_rows(batch)


def _prefix_logits(scores: Tensor, mask: Tensor, batch: Batch) -> Tensor:
    """Log-odds of success after each token: the prompt's, from its other completions, plus the log-ratios so far."""
    rewards = batch["rewards"].view(batch["group_shape"])
    scored = ~rewards.isnan()
    solved = torch.where(scored, rewards, torch.zeros_like(rewards))
    others = solved.sum(dim=-1, keepdim=True) - solved
    count = scored.sum(dim=-1, keepdim=True) - scored.long()
    rate = (others + 0.5) / (count + 1.0)
    return torch.logit(rate).view(-1, 1) + (scores * mask).cumsum(dim=-1)


def policy_loss(policy_logps: Tensor, moved: Transported, batch: Batch) -> Tensor:
    """KL of the transported distribution to the policy's, at every visited state: the distillation loss.

    Args:
        policy_logps: `[R, T, K]`, with gradients.
        moved: The targets.
        batch: The batch.

    Returns:
        A scalar.
    """
    _, _, mask = sequences(batch)
    losses = distillation_loss(policy_logps, moved.logits, moved.candidates.mask, mask, reduction="sequence")
    return losses.sum() / _num_rows(batch)


def mean_over_rows(values: Tensor, batch: Batch) -> Tensor:
    """Mean over completions of the mean of `[R, T]` over the tokens of each."""
    return masked_mean(values, batch["completion_mask"], dim=-1).sum() / _num_rows(batch)


def _num_rows(batch: Batch) -> float:
    return batch["num_groups"] * batch["group_shape"][1]
