# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The losses of values and of distillation on one micro-batch.

Every loss is a mean over prompts (or completions) of a mean within each. What the sum is divided by is the same in
every micro-batch (`num_groups`, `num_rows`), so that neither the split into micro-batches nor the number of processes
changes it.
"""

import hashlib

import torch
from torch import Tensor

from vgf_llm.functional import (
    bernoulli_value_loss,
    distillation_loss,
    masked_mean,
    pairwise_value_loss,
    regression_value_loss,
    success_likelihood_loss,
)
from vgf_llm.trainer.fit.micro_batch import MicroBatch


def likelihood_loss(log_likelihoods: Tensor, batch: MicroBatch) -> Tensor:
    """Negative log-likelihood of the completions of reward 1, the mean within each prompt.

    Args:
        log_likelihoods: `[R]`, log pi_theta(y|x) of the rows, with gradients.
        batch: The rows.

    Returns:
        A scalar.
    """
    rows, size = batch.group_rewards.shape
    # Each row is its group with itself alone in it: the others' terms are theirs to add.
    own = log_likelihoods.new_zeros(rows, size).scatter(1, batch.place.unsqueeze(1), log_likelihoods.unsqueeze(1))
    losses = success_likelihood_loss(own.flatten(), batch.group_rewards.flatten(), [size] * rows)
    return (losses * batch.trains).sum() / batch.num_groups


def pairwise_loss(scores: Tensor, batch: MicroBatch, member_weights: Tensor | None = None) -> Tensor:
    """Logistic loss over the pairs of each prompt that the rewards order.

    Args:
        scores: `[R, H]`, scores of the rows by each member of an ensemble, with gradients.
        batch: The rows.
        member_weights: `[R, H]`, how much each member learns from the row's prompt; 1 when left out.

    Returns:
        A scalar: the mean over members of the weighted losses.
    """
    seen = batch.seen_from_each_row(scores)
    losses = torch.stack(
        [pairwise_value_loss(member, batch.group_rewards, reduction="prompt") for member in seen.unbind(-1)], dim=-1
    )
    if member_weights is not None:
        losses = losses * member_weights
    losses = losses.mean(dim=-1) * (batch.trains & ~batch.rewards.isnan())
    # Every row with a reward holds its group's loss, and the gradient of its own score alone. The gradients add up to
    # the group's; of the loss itself each row counts for its share.
    shares = 1 / (~batch.group_rewards.isnan()).sum(dim=-1).clamp_min(1)
    return (losses - losses.detach() * (1 - shares)).sum() / batch.num_groups


def token_loss(kind: str, token_scores: Tensor, batch: MicroBatch) -> Tensor:
    """Fits the raw scores of a head at every token to the completion's reward.

    Args:
        kind: `"bernoulli"` (scores are log-odds of success) or `"regression"`.
        token_scores: `[R, T]`, with gradients.
        batch: The rows.

    Returns:
        A scalar.
    """
    trained = batch.trains & ~batch.rewards.isnan()
    mask = batch.completion_mask * trained.unsqueeze(-1)
    rewards = torch.where(trained, batch.rewards, torch.zeros_like(batch.rewards))
    fit = bernoulli_value_loss if kind == "bernoulli" else regression_value_loss
    return fit(token_scores, rewards, mask, reduction="sequence").sum() / batch.num_rows


def prefix_log_odds(token_scores: Tensor, batch: MicroBatch) -> Tensor:
    """Log-odds of success after each token, of a log-ratio value: the prompt's, plus the log-ratios so far.

    Args:
        token_scores: `[R, T]`, log-ratios.
        batch: The rows. The prompt's odds are those of its other completions, with one half added to successes and
            failures; the row's own outcome, which is to be predicted, has no part in them.

    Returns:
        `[R, T]`.
    """
    scored = ~batch.group_rewards.isnan()
    solved = torch.where(scored, batch.group_rewards, torch.zeros_like(batch.group_rewards))
    own = solved.gather(1, batch.place.unsqueeze(1)).squeeze(1)
    own_counts = scored.gather(1, batch.place.unsqueeze(1)).squeeze(1)
    rate = (solved.sum(dim=1) - own + 0.5) / (scored.sum(dim=1) - own_counts.long() + 1.0)
    return torch.logit(rate).unsqueeze(-1) + (token_scores * batch.completion_mask).cumsum(dim=-1)


def sequence_regression_loss(values: Tensor, batch: MicroBatch, member_weights: Tensor) -> Tensor:
    """Squared error of the members' values of whole responses, each on its own bootstrap of the prompts.

    Args:
        values: `[R, H]`, with gradients.
        batch: The rows.
        member_weights: `[R, H]`.

    Returns:
        A scalar.
    """
    trained = batch.trains & ~batch.rewards.isnan()
    errors = (values - torch.where(trained, batch.rewards, 0.0).unsqueeze(-1)).square() * member_weights
    return (errors.mean(dim=-1) * trained).sum() / batch.num_rows


def bootstrap_weights(batch: MicroBatch, num_members: int, seed: int) -> Tensor:
    """How often each member of an ensemble sees the prompt of each row, `[R, H]`: Poisson draws of mean 1.

    A prompt's draws are decided by its tokens and the seed, so that they are the same in every round, process and
    resumed run. One member sees everything once.

    Args:
        batch: The rows.
        num_members: H.
        seed: Seed of the run.
    """
    if num_members == 1:
        return torch.ones(len(batch.rewards), 1, device=batch.rewards.device)
    rows = []
    for ids, mask in zip(batch.prompt_ids.cpu(), batch.prompt_mask.cpu(), strict=True):
        text = f"{seed}:{','.join(map(str, ids[mask.bool()].tolist()))}".encode()
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=7).digest()))
        rows.append(torch.poisson(torch.ones(num_members), generator=generator))
    return torch.stack(rows).to(batch.rewards.device)


def transported_loss(policy_logps: Tensor, target_logits: Tensor, candidate_mask: Tensor, batch: MicroBatch) -> Tensor:
    """KL of the transported next-token distribution to the policy's, at every visited state.

    Args:
        policy_logps: `[R, T, K]`, with gradients.
        target_logits: `[R, T, K]`, log-probabilities after transport.
        candidate_mask: `[R, T, K]`.
        batch: The rows.

    Returns:
        A scalar.
    """
    mask = batch.completion_mask * batch.present.unsqueeze(-1)
    losses = distillation_loss(policy_logps, target_logits, candidate_mask, mask, reduction="sequence")
    return losses.sum() / batch.num_rows


def best_response_loss(logps: Tensor, values: Tensor, batch: MicroBatch) -> Tensor:
    """Negative log-likelihood per token of each prompt's response of highest value.

    Args:
        logps: `[R, T]`, log-probabilities of the response tokens under the policy, with gradients.
        values: `[R]`, of the rows, without.
        batch: The rows.

    Returns:
        A scalar.
    """
    seen = batch.seen_from_each_row(values.unsqueeze(-1)).squeeze(-1)
    seen = seen.masked_fill(batch.group_rewards.isnan(), -torch.inf)
    best = (seen.argmax(dim=-1) == batch.place) & batch.present
    nll = -masked_mean(logps, batch.completion_mask, dim=-1)
    return torch.where(best, nll, torch.zeros_like(nll)).sum() / batch.num_groups


def mean_over_rows(values: Tensor, batch: MicroBatch) -> Tensor:
    """Mean over completions of the mean of `[R, T]` over the tokens of each."""
    return (masked_mean(values, batch.completion_mask, dim=-1) * batch.present).sum() / batch.num_rows
