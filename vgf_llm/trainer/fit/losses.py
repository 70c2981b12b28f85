# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The losses of values and of distillation on one micro-batch, scalars all of them.

Every loss is a mean over prompts (or completions) of a mean within each. What the sum is divided by is the same in
every micro-batch (`num_groups`, `num_rows`), so that neither the split into micro-batches nor the number of processes
changes it.
"""

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
from vgf_llm.trainer.keep.rounds import prompt_hash


def likelihood_loss(log_likelihoods: Tensor, batch: MicroBatch) -> Tensor:
    """Negative log-likelihood of the completions of reward 1, the mean within each prompt.

    `log_likelihoods` `[R]` are log pi_theta(y|x) of the rows.
    """
    rows, size = batch.group_rewards.shape
    # Each row is its group with itself alone in it: the others' terms are theirs to add.
    own = log_likelihoods.new_zeros(rows, size).scatter(1, batch.place.unsqueeze(1), log_likelihoods.unsqueeze(1))
    losses = success_likelihood_loss(own.flatten(), batch.group_rewards.flatten(), [size] * rows)
    return (losses * batch.trains).sum() / batch.num_groups


def pairwise_loss(scores: Tensor, batch: MicroBatch, member_weights: Tensor | None = None) -> Tensor:
    """Logistic loss over the pairs of each prompt that the rewards order, the mean over the members of an ensemble.

    `scores` `[R, H]` are those of each member; `member_weights` `[R, H]` say how much it learns from the row's prompt.
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
    """Fits the raw scores of a head at every token, `[R, T]`, to the completion's reward.

    They are log-odds of success where `kind` is `"bernoulli"`, and the reward itself where it is `"regression"`.
    """
    trained = batch.trains & ~batch.rewards.isnan()
    mask = batch.completion_mask * trained.unsqueeze(-1)
    rewards = torch.where(trained, batch.rewards, torch.zeros_like(batch.rewards))
    fit = bernoulli_value_loss if kind == "bernoulli" else regression_value_loss
    return fit(token_scores, rewards, mask, reduction="sequence").sum() / batch.num_rows


def prefix_log_odds(token_scores: Tensor, batch: MicroBatch) -> Tensor:
    """Log-odds of success after each token, `[R, T]`: the prompt's, plus the log-ratios `[R, T]` so far.

    The prompt's odds are those of its other completions, with one half added to successes and failures; the row's own
    outcome, which is to be predicted, has no part in them.
    """
    others = (~batch.group_rewards.isnan()).sum(dim=1) - (~batch.rewards.isnan()).long()
    solved = batch.group_rewards.nansum(dim=1) - batch.rewards.nan_to_num()
    rate = (solved + 0.5) / (others + 1.0)
    return torch.logit(rate).unsqueeze(-1) + (token_scores * batch.completion_mask).cumsum(dim=-1)


def sequence_regression_loss(values: Tensor, batch: MicroBatch, member_weights: Tensor) -> Tensor:
    """Squared error of the members' values `[R, H]` of whole responses, each on its own bootstrap of the prompts."""
    trained = batch.trains & ~batch.rewards.isnan()
    errors = (values - torch.where(trained, batch.rewards, 0.0).unsqueeze(-1)).square() * member_weights
    return (errors.mean(dim=-1) * trained).sum() / batch.num_rows


def bootstrap_weights(batch: MicroBatch, num_members: int, seed: int) -> Tensor:
    """How often each member of an ensemble sees the prompt of each row, `[R, H]`: Poisson draws of mean 1.

    A prompt's draws are decided by its tokens and the seed, so that they are the same in every round, process and
    resumed run. One member sees everything once.
    """
    if num_members == 1:
        return torch.ones(len(batch.rewards), 1, device=batch.rewards.device)
    rows = []
    for ids, mask in zip(batch.prompt_ids.cpu(), batch.prompt_mask.cpu(), strict=True):
        own_seed = prompt_hash(seed, prompt_ids=ids[mask.bool()].tolist(), num_bytes=7)
        generator = torch.Generator().manual_seed(own_seed)
        rows.append(torch.poisson(torch.ones(num_members), generator=generator))
    return torch.stack(rows).to(batch.rewards.device)


def transported_loss(policy_logps: Tensor, target_logits: Tensor, candidate_mask: Tensor, batch: MicroBatch) -> Tensor:
    """KL of the transported next-token distribution to the policy's at every visited state, all of them `[R, T, K]`."""
    mask = batch.completion_mask * batch.present.unsqueeze(-1)
    losses = distillation_loss(policy_logps, target_logits, candidate_mask, mask, reduction="sequence")
    return losses.sum() / batch.num_rows


def best_response_loss(logps: Tensor, values: Tensor, batch: MicroBatch) -> Tensor:
    """Negative log-likelihood per token (`logps` `[R, T]`) of each prompt's response of highest value (`[R]`)."""
    seen = batch.seen_from_each_row(values.unsqueeze(-1)).squeeze(-1)
    seen = seen.masked_fill(batch.group_rewards.isnan(), -torch.inf)
    best = (seen.argmax(dim=-1) == batch.place) & batch.present
    nll = -masked_mean(logps, batch.completion_mask, dim=-1)
    return torch.where(best, nll, torch.zeros_like(nll)).sum() / batch.num_groups


def read_tokens(values: Tensor, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """The sum of `[R, T]` over the tokens of the completions that are read, and the number of these tokens."""
    mask = batch.completion_mask * batch.present.unsqueeze(-1)
    return (values * mask).sum(), mask.sum()


def mean_over_rows(values: Tensor, batch: MicroBatch) -> Tensor:
    """Mean over completions of the mean of `[R, T]` over the tokens of each."""
    return (masked_mean(values, batch.completion_mask, dim=-1) * batch.present).sum() / batch.num_rows
