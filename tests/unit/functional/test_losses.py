# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Losses and targets against hand computation, double loops and autograd; masks never leak."""

import math

import pytest
import torch

from vgf_llm.functional import (
    bernoulli_value_loss,
    distillation_loss,
    kl_divergence,
    masked_mean,
    pairwise_value_loss,
    regression_value_loss,
    success_likelihood_loss,
    within_prompt_accuracy,
)

MASK = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]])
NAN = math.nan

TOKEN_LOSSES = {
    "bernoulli": (bernoulli_value_loss, {}),
    "regression": (regression_value_loss, {}),
}


def test_masked_mean():
    values = torch.tensor([[1.0, 2.0, NAN], [NAN, math.inf, NAN], [3.0, 4.0, 5.0]])
    assert masked_mean(values, MASK).item() == 3.0
    assert masked_mean(values, MASK, dim=1).tolist() == [1.5, 0.0, 4.0]
    assert masked_mean(values, MASK.bool(), dim=0).tolist() == [2.0, 3.0, 5.0]
    assert masked_mean(values, MASK, dim=(0, 1)).item() == 3.0
    with pytest.raises(ValueError, match="mask must have shape"):
        masked_mean(values, MASK[:1])


def test_masked_mean_of_nothing_is_a_zero_with_a_gradient():
    values = torch.full((2, 3), NAN, requires_grad=True)
    mean = masked_mean(values, torch.zeros(2, 3))
    mean.backward()
    assert mean.item() == 0.0 and not values.grad.any()


def test_bernoulli_by_hand():
    logits = torch.tensor([[0.3, -1.0, NAN], [NAN, NAN, NAN], [2.0, 0.0, 1.0]], dtype=torch.float64)
    outcomes = torch.tensor([1.0, NAN, 0.0])

    def log_sigmoid(x):
        return -math.log1p(math.exp(-x))

    terms = [log_sigmoid(0.3), log_sigmoid(-1.0), log_sigmoid(-2.0), log_sigmoid(0.0), log_sigmoid(-1.0)]
    assert bernoulli_value_loss(logits, outcomes, MASK).item() == pytest.approx(-sum(terms) / 5, abs=1e-14)


def test_bernoulli_gradient_is_probability_minus_outcome():
    logits = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    outcomes = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    bernoulli_value_loss(logits, outcomes, MASK).backward()
    expected = (logits.detach().sigmoid() - outcomes.unsqueeze(-1)) * MASK / 5
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-15)


def test_regression_by_hand():
    values = torch.tensor([[1.0, 2.0, NAN], [NAN, NAN, NAN], [0.0, 0.5, -1.0]], dtype=torch.float64)
    per_row = regression_value_loss(values, torch.tensor([3.0, NAN, 1.0]), MASK)
    assert per_row.item() == pytest.approx((4 + 1 + 1 + 0.25 + 4) / 5)
    targets = torch.tensor([[3.0, 3.0, NAN], [NAN, NAN, NAN], [1.0, 1.0, 1.0]])
    assert regression_value_loss(values, targets, MASK).item() == per_row.item()


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_token_losses_pass_gradcheck_and_ignore_masked_positions(name):
    loss, settings = TOKEN_LOSSES[name]
    predictions = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0.2, 0.9, 0.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: loss(p, targets.detach(), MASK, **settings), (predictions,))

    dirty = torch.where(MASK.bool(), predictions.detach(), NAN).requires_grad_()
    value = loss(dirty, targets, MASK, **settings)
    value.backward()
    torch.testing.assert_close(value, loss(predictions, targets, MASK, **settings))
    assert dirty.grad.isfinite().all() and not dirty.grad[~MASK.bool()].any()
    assert targets.grad is None


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_token_losses_of_nothing_are_a_zero_with_a_gradient(name):
    loss, settings = TOKEN_LOSSES[name]
    predictions = torch.randn(2, 3, requires_grad=True)
    value = loss(predictions, torch.full((2,), NAN), torch.zeros(2, 3), **settings)
    value.backward()
    assert value.item() == 0.0 and not predictions.grad.any()


@pytest.mark.parametrize("name", TOKEN_LOSSES)
@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_token_losses_raise_on_bad_input(name, bad):
    loss, settings = TOKEN_LOSSES[name]
    predictions, targets = torch.zeros(3, 3), torch.zeros(3)
    with pytest.raises(ValueError, match="must be finite"):
        loss(torch.full((3, 3), bad), targets, MASK, **settings)
    with pytest.raises(ValueError, match=r"(outcomes|targets) must be finite"):
        loss(predictions, torch.full((3,), bad), MASK, **settings)
    with pytest.raises(ValueError, match=r"(outcomes|targets) must have shape"):
        loss(predictions, torch.zeros(2), MASK, **settings)
    with pytest.raises(ValueError, match="mask must have shape"):
        loss(predictions, targets, MASK[:2], **settings)
    with pytest.raises(ValueError, match="must have shape"):
        loss(torch.zeros(3), targets, MASK, **settings)


def test_bernoulli_range():
    with pytest.raises(ValueError, match="outcomes must be in"):
        bernoulli_value_loss(torch.zeros(2, 3), torch.tensor([-1.0, 1.0]), torch.ones(2, 3))


def ordered_pairs(rewards):
    """(prompt, better, worse) of every pair that the rewards order."""
    rows = rewards.tolist()
    size = range(len(rows[0]))
    return [(p, i, j) for p, row in enumerate(rows) for i in size for j in size if row[i] > row[j]]


REWARDS = torch.tensor([[1.0, 0.0, 0.5, NAN], [1.0, 1.0, 1.0, 1.0], [NAN, 0.0, NAN, 2.0]], dtype=torch.float64)


def test_pairwise_loss_against_double_loops():
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    pairs = ordered_pairs(REWARDS)
    assert len(pairs) == 4
    terms = [-torch.log(torch.sigmoid(scores[p, i] - scores[p, j])) for p, i, j in pairs]
    loss = pairwise_value_loss(scores, REWARDS)
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(lambda s: pairwise_value_loss(s, REWARDS), (scores,))


def test_pairwise_loss_ignores_completions_without_a_reward():
    scores = torch.randn(3, 4, dtype=torch.float64)
    dirty = torch.where(REWARDS.isnan(), NAN, scores).requires_grad_()
    loss = pairwise_value_loss(dirty, REWARDS)
    loss.backward()
    torch.testing.assert_close(loss, pairwise_value_loss(scores, REWARDS))
    assert dirty.grad.isfinite().all() and not dirty.grad[REWARDS.isnan()].any()


def test_success_likelihood_is_least_at_bayes_posterior():
    mu = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
    success = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    posterior = mu * success / (mu * success).sum()
    # Every response as often as mu draws it, in one group, so that the mean over successes is that under mu.
    drawn = torch.repeat_interleave(torch.arange(4), (10 * mu).round().long())
    logits = posterior.clamp_min(1e-30).log().requires_grad_()
    log_ratio = logits.log_softmax(-1) - mu.log()
    success_likelihood_loss(log_ratio[drawn], success[drawn], [len(drawn)]).sum().backward()
    assert logits.grad.abs().max() < 1e-12


def test_success_likelihood_by_hand():
    scores = torch.tensor([3.0, 1.0, -2.0, NAN, 5.0, 4.0], dtype=torch.float64, requires_grad=True)
    outcomes = torch.tensor([1.0, 1.0, 0.5, NAN, 0.0, 1.0])
    loss = success_likelihood_loss(scores, outcomes, [3, 2, 1])
    assert loss.tolist() == [-2.0, 0.0, -4.0]  # a prompt that every completion solves counts, one without success not
    loss.sum().backward()
    assert scores.grad.tolist() == [-0.5, -0.5, 0.0, 0.0, 0.0, -1.0]


def test_success_likelihood_names_sizes_that_do_not_add_up():
    with pytest.raises(ValueError, match=r"`group_sizes` must add up to the 3 rows of `scores`, got \[2, 2\]"):
        success_likelihood_loss(torch.zeros(3), torch.ones(3), [2, 2])


@pytest.mark.parametrize("rewards", [torch.ones(2, 3), torch.full((2, 3), NAN)])
def test_pairwise_loss_without_pairs_is_a_zero_with_a_gradient(rewards):
    scores = torch.randn(2, 3, requires_grad=True)
    loss = pairwise_value_loss(scores, rewards)
    loss.backward()
    assert loss.item() == 0.0 and not scores.grad.any()
    correct, num_pairs = within_prompt_accuracy(scores, rewards)
    assert (correct.item(), num_pairs.item()) == (0.0, 0)


def test_within_prompt_accuracy_against_double_loops():
    scores, rewards = torch.randn(6, 5), torch.randint(0, 3, (6, 5)).float()
    scores[:, 1] = scores[:, 0]
    expected, pairs = 0.0, ordered_pairs(rewards)
    for p, i, j in pairs:
        expected += 1.0 if scores[p, i] > scores[p, j] else 0.5 if scores[p, i] == scores[p, j] else 0.0
    correct, num_pairs = within_prompt_accuracy(scores, rewards)
    assert (correct.item(), num_pairs.item()) == (expected, len(pairs))


def test_within_prompt_accuracy_is_blind_to_which_prompts_are_hard():
    rewards = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    by_prompt = rewards.mean(dim=1, keepdim=True).expand(2, 3)
    correct, num_pairs = within_prompt_accuracy(by_prompt, rewards)
    assert correct / num_pairs == 0.5
    assert within_prompt_accuracy(rewards, rewards)[0] == num_pairs


@pytest.mark.parametrize("function", [pairwise_value_loss, within_prompt_accuracy])
def test_pair_functions_raise_on_bad_input(function):
    with pytest.raises(ValueError, match="scores must be finite"):
        function(torch.full((1, 2), NAN), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="rewards must be finite"):
        function(torch.zeros(1, 2), torch.tensor([[math.inf, 0.0]]))
    with pytest.raises(ValueError, match="rewards must have shape"):
        function(torch.zeros(1, 2), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="scores must have shape"):
        function(torch.zeros(2), torch.zeros(2))


def random_distillation():
    vocabulary = torch.randn(2, 3, 7, dtype=torch.float64)
    policy_logps = vocabulary.log_softmax(dim=-1)[..., :4].clone()
    target_logits = torch.randn(2, 3, 4, dtype=torch.float64)
    candidates = torch.tensor([1, 1, 1, 0]).expand(2, 3, 4).bool().clone()
    candidates[1, 0] = torch.tensor([1, 0, 1, 1]).bool()
    return vocabulary, policy_logps, target_logits, candidates, torch.tensor([[1, 1, 0], [1, 0, 0]])


def test_distillation_is_the_kl_to_the_whole_policy():
    vocabulary, policy_logps, target_logits, candidates, mask = random_distillation()
    full_target = torch.full((2, 3, 7), -math.inf, dtype=torch.float64)
    full_target[..., :4] = torch.where(candidates, target_logits, -math.inf)
    expected = kl_divergence(full_target, vocabulary)[mask.bool()].mean()
    loss = distillation_loss(policy_logps, target_logits, candidates, mask)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-13)


def test_distillation_gradient_reaches_the_policy_alone():
    vocabulary, _, target_logits, candidates, mask = random_distillation()
    vocabulary.requires_grad_()
    target_logits.requires_grad_()
    loss = distillation_loss(vocabulary.log_softmax(dim=-1)[..., :4], target_logits, candidates, mask)
    loss.backward()
    assert target_logits.grad is None
    # Of cross entropy: (softmax - target) / number of states.
    target = torch.zeros(2, 3, 7, dtype=torch.float64)
    target[..., :4] = torch.where(candidates, target_logits.detach(), -math.inf).softmax(dim=-1)
    expected = (vocabulary.detach().softmax(dim=-1) - target) * mask.unsqueeze(-1) / 3
    torch.testing.assert_close(vocabulary.grad, expected, rtol=0, atol=1e-14)


def test_distillation_reads_nothing_that_is_masked():
    _, policy_logps, target_logits, candidates, mask = random_distillation()
    counted = candidates & mask.bool().unsqueeze(-1)
    dirty = torch.where(counted, policy_logps, -math.inf).requires_grad_()
    loss = distillation_loss(dirty, torch.where(counted, target_logits, NAN), candidates, mask)
    loss.backward()
    torch.testing.assert_close(loss, distillation_loss(policy_logps, target_logits, candidates, mask))
    assert dirty.grad.isfinite().all() and not dirty.grad[~counted].any()
    # A state without a candidate counts as a state that was not visited.
    candidates[0, 1] = False
    without = mask.clone()
    without[0, 1] = 0
    torch.testing.assert_close(
        distillation_loss(policy_logps, target_logits, candidates, mask),
        distillation_loss(policy_logps, target_logits, candidates, without),
    )


def test_distillation_of_nothing_is_a_zero_with_a_gradient():
    policy_logps = torch.full((1, 2, 3), NAN, requires_grad=True)
    loss = distillation_loss(policy_logps, torch.full((1, 2, 3), NAN), torch.ones(1, 2, 3), torch.zeros(1, 2))
    loss.backward()
    assert loss.item() == 0.0 and not policy_logps.grad.any()


def test_distillation_raises_on_bad_input():
    good, mask = torch.zeros(1, 2, 3), torch.ones(1, 2)
    for bad in (NAN, math.inf, -math.inf):
        with pytest.raises(ValueError, match="policy_logps must be finite"):
            distillation_loss(good + bad, good, torch.ones(1, 2, 3), mask)
        with pytest.raises(ValueError, match="target_logits must be finite"):
            distillation_loss(good, good + bad, torch.ones(1, 2, 3), mask)
    with pytest.raises(ValueError, match="target_logits must have shape"):
        distillation_loss(good, good[..., :2], torch.ones(1, 2, 3), mask)
    with pytest.raises(ValueError, match="mask must have shape"):
        distillation_loss(good, good, torch.ones(1, 2, 3), torch.ones(1, 3))


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_token_losses_reduced_by_sequence_are_the_loss_of_each_row(name):
    loss, settings = TOKEN_LOSSES[name]
    predictions, targets = torch.randn(3, 3, dtype=torch.float64), torch.rand(3, 3, dtype=torch.float64)
    rows = loss(predictions, targets, MASK, reduction="sequence", **settings)
    alone = [loss(predictions[b : b + 1], targets[b : b + 1], MASK[b : b + 1], **settings) for b in range(3)]
    torch.testing.assert_close(rows, torch.stack(alone), rtol=0, atol=1e-15)
    assert rows[1] == 0.0
    with pytest.raises(ValueError, match="reduction"):
        loss(predictions, targets, MASK, reduction="sum", **settings)


def test_bernoulli_takes_a_target_per_token():
    logits, outcomes = torch.randn(3, 3, dtype=torch.float64), torch.tensor([1.0, 0.0, 0.3], dtype=torch.float64)
    per_token = outcomes.unsqueeze(-1).expand(3, 3)
    assert bernoulli_value_loss(logits, per_token, MASK) == bernoulli_value_loss(logits, outcomes, MASK)


def test_pairwise_loss_reduced_by_prompt_is_the_loss_of_each_prompt():
    scores = torch.randn(3, 4, dtype=torch.float64)
    prompts = pairwise_value_loss(scores, REWARDS, reduction="prompt")
    alone = [pairwise_value_loss(scores[p : p + 1], REWARDS[p : p + 1]) for p in range(3)]
    torch.testing.assert_close(prompts, torch.stack(alone), rtol=0, atol=1e-15)
    assert prompts[1] == 0.0
    with pytest.raises(ValueError, match="reduction"):
        pairwise_value_loss(scores, REWARDS, reduction="sequence")


def test_distillation_reduced_by_sequence_is_the_loss_of_each_row():
    _, policy_logps, target_logits, candidates, mask = random_distillation()
    mask[1] = 0
    arguments = (policy_logps, target_logits, candidates, mask)
    rows = distillation_loss(*arguments, reduction="sequence")
    alone = [distillation_loss(*(tensor[b : b + 1] for tensor in arguments)) for b in range(2)]
    torch.testing.assert_close(rows, torch.stack(alone), rtol=0, atol=1e-15)
    assert rows[1] == 0.0
