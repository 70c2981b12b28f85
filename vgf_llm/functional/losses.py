# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Losses, targets and the accuracy gate of value learning, and the distillation loss.

Masks are bool or 0/1; what stands at a masked position is never read, so that it may be NaN. A mean over nothing is a
zero that is still connected to the graph, so that every process of a distributed run has a backward pass.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import check_finite, check_rank, check_shape, checks_values
from ._masking import as_mask, masked_log_softmax, working_dtype


def masked_mean(values: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Mean of the entries where the mask is true.

    Args:
        values: Any shape.
        mask: The shape of `values`.
        dim: Dimensions to reduce; None reduces all.

    Returns:
        The mean; 0 where nothing is counted.

    Raises:
        ValueError: Shapes do not agree.

    Example:
        >>> masked_mean(torch.tensor([[1.0, 3.0], [5.0, torch.nan]]), torch.tensor([[1, 1], [0, 0]]), dim=1)
        tensor([2., 0.])
    """
    mask = as_mask("mask", mask, values, "values")
    dims = tuple(range(values.ndim)) if dim is None else dim
    return torch.where(mask, values, 0.0).sum(dim=dims) / mask.sum(dim=dims).clamp_min(1)


def _counted(name: str, values: Tensor, mask: Tensor) -> Tensor:
    """`values` with zeros at masked positions, put in before the loss: after it a NaN would survive in the gradient."""
    values = torch.where(mask, values, 0.0)
    check_finite(name, values)
    return values


def _prepare(
    name: str, values: Tensor, target_name: str, targets: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Checked values, targets and mask, all [B, T]; targets [B] are repeated over the tokens."""
    check_rank(name, values, 2, "[B, T]")
    mask = as_mask("mask", mask, values, name)
    if targets.ndim == 1:
        check_shape(target_name, targets, values.shape[:1], f"{name} [B, T]")
        targets = targets.unsqueeze(-1).expand_as(values)
    check_shape(target_name, targets, values.shape, name)
    targets = targets.detach().to(working_dtype(values))
    return _counted(name, values, mask), _counted(target_name, targets, mask), mask


def _reduce(losses: Tensor, mask: Tensor, reduction: str, rows: str) -> Tensor:
    """The mean over all counted entries [B, ...], or with `reduction` named after the rows, a mean per row [B]."""
    if reduction not in ("mean", rows):
        raise ValueError(f"reduction must be 'mean' or {rows!r}, got {reduction!r}.")
    return masked_mean(losses, mask, dim=None if reduction == "mean" else tuple(range(1, losses.ndim)))


def bernoulli_value_loss(logits: Tensor, outcomes: Tensor, mask: Tensor, *, reduction: str = "mean") -> Tensor:
    """Negative log-likelihood of a 0/1 outcome at every sampled token.

    Args:
        logits: Log-odds of success at each token, [B, T].
        outcomes: Outcome of each completion, 0 or 1 (or a probability), [B]; or a target per token, [B, T].
        mask: Sampled tokens, [B, T].
        reduction: `"mean"`, or `"sequence"` for the mean within each completion.

    Returns:
        The mean over all sampled tokens, a scalar; with `"sequence"` [B], 0 for a row without a sampled token.

    Raises:
        ValueError: Shapes do not agree, a counted entry is not finite, or a counted outcome is outside [0, 1].

    Example:
        >>> bernoulli_value_loss(torch.zeros(2, 3), torch.tensor([0.0, 1.0]), torch.ones(2, 3))  # log 2
        tensor(0.6931)
    """
    logits, targets, mask = _prepare("logits", logits, "outcomes", outcomes, mask)
    if checks_values() and bool(((targets < 0) | (targets > 1)).any()):
        raise ValueError(
            f"outcomes must be in [0, 1], got values from {targets.min().item():g} to {targets.max().item():g}; "
            f"use regression_value_loss for other rewards."
        )
    losses = F.binary_cross_entropy_with_logits(logits.to(targets.dtype), targets, reduction="none")
    return _reduce(losses, mask, reduction, "sequence")


def regression_value_loss(values: Tensor, targets: Tensor, mask: Tensor, *, reduction: str = "mean") -> Tensor:
    """Squared error of the value at every sampled token.

    Args:
        values: Predicted values, [B, T].
        targets: Target of each completion [B], or of each token [B, T]; no gradient flows into it.
        mask: Sampled tokens, [B, T].
        reduction: `"mean"`, or `"sequence"` for the mean within each completion.

    Returns:
        The mean over all sampled tokens, a scalar; with `"sequence"` [B], 0 for a row without a sampled token.

    Raises:
        ValueError: Shapes do not agree, or a counted entry is not finite.

    Example:
        >>> regression_value_loss(torch.zeros(1, 2), torch.tensor([3.0]), torch.tensor([[1, 0]]))
        tensor(9.)
    """
    values, targets, mask = _prepare("values", values, "targets", targets, mask)
    return _reduce((values - targets).square(), mask, reduction, "sequence")


def _ordered_pairs(scores: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Score differences s_i - s_j and which pairs have r_i > r_j, both [P, G, G]; NaN rewards are in no pair."""
    check_rank("scores", scores, 2, "[P, G]")
    check_shape("rewards", rewards, scores.shape, "scores")
    scored = ~rewards.isnan()
    check_finite("rewards", torch.where(scored, rewards, 0.0), "only NaN is allowed, for a completion without a reward")
    scores = _counted("scores", scores, scored)
    # A comparison with NaN is false, which is what leaves those completions out.
    return scores.unsqueeze(-1) - scores.unsqueeze(-2), rewards.unsqueeze(-1) > rewards.unsqueeze(-2)


def pairwise_value_loss(scores: Tensor, rewards: Tensor, *, reduction: str = "mean") -> Tensor:
    """Logistic loss on every pair of completions of one prompt that the rewards order.

    Args:
        scores: Score of each completion, [P, G], P prompts with G completions each; for a log-ratio value the sum over
            tokens.
        rewards: Their rewards, [P, G]; NaN for a completion without one, which is left out.
        reduction: `"mean"`, or `"prompt"` for the mean within each prompt.

    Returns:
        The mean of -log sigmoid(s_i - s_j) over all pairs with r_i > r_j, a scalar, or [P] with `"prompt"`; a zero
        connected to the graph where there is no such pair.

    Raises:
        ValueError: Shapes do not agree, a reward is infinite, or the score of a counted completion is not finite.

    Source:
        The Bradley-Terry likelihood (Bradley and Terry 1952).

    Example:
        >>> pairwise_value_loss(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, torch.nan]]))  # one pair, log 2
        tensor(0.6931)
    """
    differences, ordered = _ordered_pairs(scores, rewards)
    return _reduce(F.softplus(-differences), ordered, reduction, "prompt")


def success_likelihood_loss(scores: Tensor, outcomes: Tensor, group_sizes: Sequence[int]) -> Tensor:
    """Negative score of the successful completions of each prompt, which may have any number of completions.

    For a log-ratio value this is the negative log-likelihood of the successes up to a constant, log mu(y|x), so that
    log pi_theta(y|x) may stand for the score: no reference is needed. Over base samples its minimiser is Bayes'
    posterior mu(y|x) P(success | x, y) / P(success | x): the log-ratio of a token is then by how much it raises the
    log-probability of success.

    Args:
        scores: Score of each completion, [R], those of a prompt in adjacent rows.
        outcomes: 1 for a success; anything else, NaN too, does not count, [R].
        group_sizes: Number of completions of each prompt; they add up to R.

    Returns:
        [P], the mean within each prompt; a zero connected to the graph where none succeeds.

    Raises:
        ValueError: Shapes do not agree, or the score of a success is not finite.

    Example:
        >>> success_likelihood_loss(torch.tensor([-2.0, -4.0, -1.0]), torch.tensor([1.0, 1.0, 0.0]), [2, 1])
        tensor([3., 0.])
    """
    check_rank("scores", scores, 1, "[R]")
    check_shape("outcomes", outcomes, scores.shape, "scores")
    if sum(group_sizes) != len(scores):
        raise ValueError(f"`group_sizes` must add up to the {len(scores)} rows of `scores`, got {list(group_sizes)}.")
    successes = outcomes == 1
    prompt = torch.arange(len(group_sizes)).repeat_interleave(torch.tensor(group_sizes)).to(scores.device)
    losses = -_counted("scores", scores, successes)
    total = losses.new_zeros(len(group_sizes)).index_add(0, prompt, losses)
    count = losses.new_zeros(len(group_sizes)).index_add(0, prompt, successes.to(losses.dtype))
    return total / count.clamp_min(1)


@torch.no_grad()
def within_prompt_accuracy(scores: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """How often the scores order two completions of one prompt as the rewards do.

    Counts come back, not the ratio, so that they can be summed over batches and processes. Chance is one half.

    Args:
        scores: Score of each completion, [P, G].
        rewards: Their rewards, [P, G]; NaN for a completion without one.

    Returns:
        The number of pairs ordered rightly, a tie of scores counting one half, and the number of pairs that the rewards
        order; two scalars.

    Raises:
        ValueError: Shapes do not agree, a reward is infinite, or the score of a counted completion is not finite.

    Example:
        >>> within_prompt_accuracy(torch.tensor([[2.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 1.0]]))
        (tensor(1.5000), tensor(2))
    """
    differences, ordered = _ordered_pairs(scores, rewards)
    right = (differences > 0).to(working_dtype(scores)) + 0.5 * (differences == 0)
    return (right * ordered).sum(), ordered.sum()


def distillation_loss(
    policy_logps: Tensor, target_logits: Tensor, candidate_mask: Tensor, mask: Tensor, *, reduction: str = "mean"
) -> Tensor:
    """KL(p_L || pi) from the transported next-token distribution to the policy, at every visited state.

    Only the policy gets a gradient. The policy's log-probabilities are taken as they are: normalised over the whole
    vocabulary, they make this the divergence over the whole vocabulary, because p_L is zero off the candidates.

    Args:
        policy_logps: Log-probabilities of the candidates under the policy in training, [B, T, K].
        target_logits: Logits or log-probabilities of p_L, normalised here over the candidates, [B, T, K].
        candidate_mask: Which entries are candidates, [B, T, K].
        mask: Visited states, [B, T]; a state without a candidate is not counted.
        reduction: `"mean"`, or `"sequence"` for the mean within each completion.

    Returns:
        The mean over the counted states, a scalar; with `"sequence"` [B], 0 for a row without a counted state.

    Raises:
        ValueError: Shapes do not agree, or a counted entry is not finite.

    Example:
        >>> target = torch.tensor([[[2.0, 2.0]]])
        >>> distillation_loss(torch.tensor([[[0.25, 0.75]]]).log(), target, torch.ones(1, 1, 2), torch.ones(1, 1))
        tensor(0.1438)
    """
    check_rank("policy_logps", policy_logps, 3, "[B, T, K]")
    check_shape("target_logits", target_logits, policy_logps.shape, "policy_logps")
    candidates = as_mask("candidate_mask", candidate_mask, policy_logps, "policy_logps")
    check_shape("mask", mask, policy_logps.shape[:2], "policy_logps [B, T, K]")
    counted = candidates & mask.bool().unsqueeze(-1)
    dtype = working_dtype(policy_logps, target_logits)
    logps = _counted("policy_logps", policy_logps.to(dtype), counted)
    targets = _counted("target_logits", target_logits.detach().to(dtype), counted)
    log_target = masked_log_softmax(targets, counted)
    terms = torch.where(counted, log_target.exp() * (log_target - logps), 0.0)
    return _reduce(terms.sum(dim=-1), counted.any(dim=-1), reduction, "sequence")
