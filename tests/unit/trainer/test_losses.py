# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The losses of one micro-batch: targets worked out by hand, and rows that give the gradient of their whole group."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vgf_llm.trainer.fit import losses
from vgf_llm.trainer.fit.micro_batch import Row, collate
from vgf_llm.trainer.keep.buffer import RolloutGroup

NAN = float("nan")


def group_of(rewards, prompt=(5, 6)):
    """A group whose completions have 1, 2, 3, ... tokens."""
    return RolloutGroup(list(prompt), [[7] * (i + 1) for i in range(len(rewards))], rewards)


def rows_of(*groups):
    return [Row(group, index) for group in groups for index in range(len(group))]


def log_odds(p):
    return math.log(p / (1 - p))


# Numbers by hand


def test_the_likelihood_is_the_mean_over_a_prompts_successes_and_then_over_prompts():
    batch = collate(rows_of(group_of([1.0, 0.0, 1.0]), group_of([0.0, 0.0, 1.0], (9,))), 0)
    values = torch.tensor([-1.0, -50.0, -3.0, -60.0, -70.0, -8.0])
    assert losses.likelihood_loss(values, batch).item() == pytest.approx(((1 + 3) / 2 + 8) / 2)


def test_pairs_are_averaged_within_a_prompt():
    batch = collate(rows_of(group_of([1.0, 0.0, 0.5])), 0)
    scores = torch.tensor([[0.3], [-0.2], [0.7]], requires_grad=True)
    pairs = [(0.3, -0.2), (0.3, 0.7), (0.7, -0.2)]  # better, worse
    expected = sum(math.log(1 + math.exp(worse - better)) for better, worse in pairs) / 3
    loss = losses.pairwise_loss(scores, batch)
    assert loss.item() == pytest.approx(expected)
    # The gradient is the loss's own, and not that of each row's share of it.
    loss.backward()
    first, second, third = (1 / (1 + math.exp(better - worse)) / 3 for better, worse in pairs)
    assert scores.grad.flatten().tolist() == pytest.approx([-first - second, first + third, second - third])


def test_a_completion_without_a_reward_adds_nothing_to_the_loss_of_pairs():
    batch = collate(rows_of(group_of([1.0, 0.0, NAN])), 0)
    loss = losses.pairwise_loss(torch.tensor([[1.0], [0.0], [4.0]]), batch)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_members_of_an_ensemble_learn_from_prompts_as_often_as_their_bootstrap_says():
    batch = collate(rows_of(group_of([1.0, 0.0])), 0)
    scores = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    weights = torch.tensor([[2.0, 3.0]] * 2)
    expected = (2 * math.log(1 + math.exp(-1)) + 3 * math.log(2)) / 2
    assert losses.pairwise_loss(scores, batch, weights).item() == pytest.approx(expected)


def test_log_odds_after_each_token_begin_with_those_of_the_prompts_other_completions():
    batch = collate(rows_of(group_of([1.0, 0.0, 1.0])), 0)
    ratios = torch.tensor([[0.1, 9.0, 9.0], [0.2, 0.3, 9.0], [0.4, 0.5, 0.6]])
    found = losses.prefix_log_odds(ratios, batch)
    # One of two others succeeded, then two of two, then one of two; one half is added on both sides.
    even, sure = log_odds(1.5 / 3), log_odds(2.5 / 3)
    assert found[0, 0].item() == pytest.approx(even + 0.1)  # the sum up to and with the token itself
    assert found[1, :2].tolist() == pytest.approx([sure + 0.2, sure + 0.5])
    assert found[2].tolist() == pytest.approx([even + 0.4, even + 0.9, even + 1.5])


def test_a_completions_own_outcome_is_no_part_of_the_odds_that_predict_it():
    ratios = torch.zeros(3, 3)
    for own in (0.0, 1.0):
        batch = collate(rows_of(group_of([own, 1.0, 0.0])), 0)
        assert losses.prefix_log_odds(ratios, batch)[0, 0].item() == pytest.approx(log_odds(1.5 / 3))
    unscored = collate(rows_of(group_of([1.0, NAN, 0.0])), 0)
    assert losses.prefix_log_odds(ratios, unscored)[0, 0].item() == pytest.approx(log_odds(0.5 / 2))


def test_heads_fit_the_outcome_at_every_token():
    batch = collate(rows_of(group_of([1.0, 0.0, NAN])), 0)
    scores = torch.tensor([[0.5, 9.0, 9.0], [1.0, -1.0, 9.0], [9.0, 9.0, 9.0]])
    success, failures = F.softplus(torch.tensor(-0.5)), F.softplus(torch.tensor([1.0, -1.0]))
    expected = (success + failures.mean()) / 3  # the third completion counts among those of the batch
    assert losses.token_loss("bernoulli", scores, batch).item() == pytest.approx(expected.item())
    expected = ((0.5 - 1) ** 2 + (1.0 + 1.0) / 2) / 3
    assert losses.token_loss("regression", scores, batch).item() == pytest.approx(expected)


def test_the_policy_learns_each_prompts_response_of_highest_value():
    batch = collate(rows_of(group_of([0.0, 1.0, 0.5])), 0)
    logps = torch.tensor([[-1.0, 0.0, 0.0], [-2.0, -4.0, 0.0], [-5.0, -6.0, -7.0]])
    assert losses.best_response_loss(logps, torch.tensor([0.1, 0.9, 0.2]), batch).item() == pytest.approx(3.0)


def test_a_completion_without_a_reward_is_never_the_best():
    batch = collate(rows_of(group_of([0.0, NAN, 0.5])), 0)
    logps = torch.tensor([[-1.0, 0.0, 0.0], [-2.0, -4.0, 0.0], [-5.0, -6.0, -7.0]])
    assert losses.best_response_loss(logps, torch.tensor([0.1, 0.9, 0.2]), batch).item() == pytest.approx(6.0)


def test_a_bootstrap_is_of_the_prompt_whatever_pads_it():
    short, long = group_of([1.0, 0.0], (5,)), group_of([1.0, 0.0], tuple(range(3, 20)))
    alone, padded = collate(rows_of(short), 0), collate(rows_of(short, long), 0)
    found = losses.bootstrap_weights(alone, 8, seed=0)
    assert len(found.unique()) > 1 and torch.equal(found, losses.bootstrap_weights(padded, 8, seed=0)[:2])


def test_the_policy_regresses_to_transport_at_every_token_of_every_completion():
    group = group_of([1.0, 0.0])
    batch = collate(rows_of(group), 0, absent=[Row(group, 0)])
    probability = torch.tensor([[1 / 4, 1.0], [1 / 2, 1 / 16], [1 / 999, 1.0]])  # of each of two candidates
    policy = probability.log().unsqueeze(-1).expand(3, 2, 2)
    loss = losses.transported_loss(policy, torch.zeros(3, 2, 2), torch.ones(3, 2, 2).bool(), batch)
    assert loss.item() == pytest.approx((math.log(2) + (0 + math.log(8)) / 2) / 2)
    values = torch.tensor([[1.0, 9.0], [2.0, 4.0], [100.0, 100.0]])
    assert losses.mean_over_rows(values, batch).item() == pytest.approx((1 + 3) / 2)
    # Of a pass with five completions per micro-batch, whichever of them are here.
    part = replace(batch, num_rows=5.0)
    whole = torch.zeros(3, 2, 2), torch.ones(3, 2, 2).bool()
    assert losses.transported_loss(policy, *whole, part).item() == pytest.approx(2 * loss.item() / 5)
    assert losses.mean_over_rows(values, part).item() == pytest.approx((1 + 3) / 5)


# Rows alone


def of_rows(kind, scores, batch):
    """A loss of raw scores `[R, T]`, as training reads them."""
    values = (scores * batch.completion_mask).sum(dim=-1)
    if kind == "likelihood":
        return losses.likelihood_loss(values, batch)
    if kind == "pairwise":
        return losses.pairwise_loss(values.unsqueeze(-1), batch)
    if kind == "ensemble":
        weights = losses.bootstrap_weights(batch, 2, seed=0)
        return losses.pairwise_loss(torch.stack([values, values * 0.5], dim=-1), batch, weights)
    if kind == "best_response":
        return losses.best_response_loss(scores, values.detach(), batch)
    if kind == "prefix":
        return losses.token_loss("bernoulli", losses.prefix_log_odds(scores, batch), batch)
    return losses.token_loss(kind, scores, batch)


KINDS = ("likelihood", "pairwise", "ensemble", "best_response", "prefix", "bernoulli", "regression")


@pytest.mark.parametrize(("size", "generations"), itertools.product((1, 2, 3, 4), (8, 16, 7)))
@pytest.mark.parametrize("kind", KINDS)
def test_rows_alone_give_the_gradient_of_their_whole_groups(kind, size, generations):
    outcomes = torch.randint(0, 2, (2, generations)).double()
    if kind in ("pairwise", "ensemble", "regression"):
        outcomes = torch.rand(2, generations).double()
    outcomes[0, 1] = torch.nan
    groups = [group_of(rewards.tolist(), (prompt,)) for prompt, rewards in enumerate(outcomes, start=5)]
    rows = rows_of(*groups)
    counts = {"num_groups": 2, "num_rows": 2 * generations}
    weights = torch.randn(len(rows), generations, dtype=torch.float64)
    whole, split = (torch.zeros(len(rows), dtype=torch.float64, requires_grad=True) for _ in range(2))

    def scores(parameters, first, batch):
        # Each row has a parameter of its own, of which its scores are a nonlinear function.
        own = parameters[first : first + len(batch.rewards)].unsqueeze(-1)
        rows = slice(first, first + len(batch.rewards))
        return torch.sin(own + weights[rows, : batch.num_tokens]) - 1.0

    batch = collate(rows, 0, **counts)
    loss = of_rows(kind, scores(whole, 0, batch), batch)
    loss.backward()
    with torch.no_grad():
        values = (scores(whole, 0, batch) * batch.completion_mask).sum(dim=-1)
    members = torch.stack([values, values * 0.5], dim=-1) if kind == "ensemble" else values.unsqueeze(-1)
    known = dict(zip(map(id, groups), members.split(generations), strict=True))
    total = 0.0
    for start in range(0, len(rows), size):
        part = collate(rows[start : start + size], 0, scores=known, **counts)
        alone = of_rows(kind, scores(split, start, part), part)
        alone.backward()
        total += alone.item()
    torch.testing.assert_close(split.grad, whole.grad, rtol=0, atol=1e-10)
    assert total == pytest.approx(loss.item(), abs=1e-10)
    assert whole.grad.abs().max() > 1e-4


def test_a_torn_group_without_the_others_scores_is_refused():
    group = group_of([1.0, 0.0, 1.0])
    batch = collate([Row(group, 0), Row(group, 1)], 0)
    with pytest.raises(ValueError, match="several micro-batches"):
        losses.pairwise_loss(torch.zeros(2, 1), batch)


def test_a_stand_in_has_no_part_in_any_loss():
    for kind in KINDS:
        group = group_of([1.0, 0.0])
        alone = collate(rows_of(group), 0)
        batch = collate(rows_of(group), 0, absent=[Row(group, 0)] * 2, num_tokens=5)
        assert batch.completion_ids.shape == (4, 5) and batch.group_sizes == [2, 1, 1]
        scores = torch.randn(4, 5, requires_grad=True)
        loss = of_rows(kind, scores, batch)
        loss.backward()
        torch.testing.assert_close(loss, of_rows(kind, scores[:2, :2], alone))
        assert not scores.grad[2:].any()
        nothing = collate([], 0, absent=[Row(group, 0)], num_groups=1, num_rows=1)
        assert of_rows(kind, torch.randn(1, 1, requires_grad=True), nothing).item() == 0


def test_rows_that_do_not_teach_have_no_part_in_the_values_loss():
    for kind in ("likelihood", "pairwise", "bernoulli", "regression", "prefix"):
        batch = collate(rows_of(group_of([1.0, 0.0])), 0, trains=[False, False])
        scores = torch.randn(2, 2, requires_grad=True)
        of_rows(kind, scores, batch).backward()
        assert not scores.grad.any()


def test_a_reference_that_the_loss_reads_may_not_be_missing():
    known = RolloutGroup([5], [[6], [7]], [1.0, 0.0], [[-1.0], [-2.0]])
    batch = collate(rows_of(known), 0, with_reference=True)
    assert batch.ref_logps.tolist() == [[-1.0], [-2.0]]
    with pytest.raises(ValueError, match="2 of 4 rows have no `ref_logps`"):
        collate([*rows_of(known), *rows_of(group_of([1.0, 0.0]))], 0, with_reference=True)
    assert collate(rows_of(group_of([1.0])), 0).ref_logps is None
