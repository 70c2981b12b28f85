# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The simplex flow against its closed forms, explicit loops and autograd."""

import math
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vgf_llm.functional import candidate_set, cap_kl, kl_divergence, simplex_flow, value_checks


def draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype), 2 * torch.randn(*shape, dtype=dtype)


def objective(logits, start, q_values, alpha):
    """What the flow climbs: E_p Q, or -KL(p || pi*) up to a constant."""
    log_p, log_mu = logits.log_softmax(dim=-1), start.log_softmax(dim=-1)
    gain = q_values if alpha is None else q_values / alpha + log_mu - log_p
    return (log_p.exp() * gain).sum()


def autograd_flow(logits, q_values, step_size, num_steps, alpha):
    """Steps along the gradient that autograd finds, for one row, by the inverse of the Fisher matrix."""
    current = logits.clone()
    for _ in range(num_steps):
        leaf = current.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(leaf, logits, q_values, alpha), leaf)
        p = current.softmax(dim=-1)
        gradient = torch.linalg.pinv(torch.diag(p) - torch.outer(p, p)) @ gradient
        current = current + step_size * gradient
    return current.log_softmax(dim=-1)


@pytest.mark.parametrize("step_size, num_steps", [(0.5, 1), (0.1, 7), (2.0, 3), (0.01, 400)])
def test_the_flow_is_the_kl_regularised_optimum(step_size, num_steps):
    logits, q_values = draw(4, 3, 6)
    result = simplex_flow(logits, q_values, step_size=step_size, num_steps=num_steps).exp()
    weights = logits.softmax(dim=-1) * torch.exp(num_steps * step_size * q_values)
    torch.testing.assert_close(result, weights / weights.sum(dim=-1, keepdim=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [None, 0.5, 2.0])
def test_steps_are_gradient_steps(alpha):
    logits, q_values = draw(5)
    result = simplex_flow(logits, q_values, step_size=0.3, num_steps=6, alpha=alpha)
    expected = autograd_flow(logits, q_values, 0.3, 6, alpha)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("step_size", [1e-6, 0.2, 0.9, 1.0])
def test_flow_with_alpha_is_the_loop_along_the_geometric_path(step_size):
    logits, q_values = draw(3, 6)
    log_mu, alpha, num_steps = logits.log_softmax(dim=-1), 0.7, 9
    log_target = (log_mu + q_values / alpha).log_softmax(dim=-1)
    log_p = log_mu
    for _ in range(num_steps):
        g = log_target - log_p
        log_p = (log_p + step_size * (g - (log_p.exp() * g).sum(dim=-1, keepdim=True))).log_softmax(dim=-1)
    result = simplex_flow(logits, q_values, step_size=step_size, num_steps=num_steps, alpha=alpha)
    torch.testing.assert_close(result, log_p, rtol=0, atol=1e-12)
    weight = 1 - (1 - step_size) ** num_steps
    path = ((1 - weight) * log_mu + weight * log_target).log_softmax(dim=-1)
    torch.testing.assert_close(result, path, rtol=0, atol=1e-12)


def test_flow_with_alpha_ends_at_the_boltzmann_target():
    logits, q_values = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    result = simplex_flow(logits, q_values, step_size=0.5, num_steps=200, alpha=1.0)
    target = (logits.log_softmax(dim=-1) + q_values).softmax(dim=-1)
    torch.testing.assert_close(result.exp(), target, rtol=0, atol=1e-10)


def test_flow_with_alpha_converges_at_first_order():
    logits, q_values = draw(5)
    exact = (logits + (1 - math.exp(-1)) * q_values / 0.8).log_softmax(dim=-1)
    errors = [
        (simplex_flow(logits, q_values, step_size=1 / n, num_steps=n, alpha=0.8) - exact).norm().item()
        for n in (64, 128, 256)
    ]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(0.95 < order < 1.05 for order in orders), orders


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_no_steps_only_normalises(alpha):
    logits, q_values = draw(3, 5)
    result = simplex_flow(logits, q_values, step_size=0.5, num_steps=0, alpha=alpha)
    torch.testing.assert_close(result, logits.log_softmax(dim=-1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_an_offset_of_q_changes_nothing(alpha):
    logits, q_values = draw(3, 5)
    settings = {"step_size": 0.5, "num_steps": 4, "alpha": alpha}
    shifted = simplex_flow(logits + 3, q_values + 7, **settings)
    torch.testing.assert_close(shifted, simplex_flow(logits, q_values, **settings), rtol=0, atol=1e-12)
    in_float32 = simplex_flow(logits.float(), torch.ones(3, 5) * 1e6, **settings)
    torch.testing.assert_close(in_float32, logits.float().log_softmax(dim=-1))


@pytest.mark.parametrize("alpha", [None, 0.5])
@pytest.mark.parametrize("max_kl", [None, 0.05])
def test_masked_entries_do_not_take_part(max_kl, alpha):
    logits, q_values = draw(2, 5)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1]], dtype=torch.bool)
    settings = {"step_size": 0.5, "num_steps": 3, "max_kl": max_kl, "alpha": alpha}
    result = simplex_flow(
        torch.where(mask, logits, math.nan), torch.where(mask, q_values, math.inf), candidate_mask=mask, **settings
    )
    alone = simplex_flow(logits[mask].view(2, 3), q_values[mask].view(2, 3), **settings)
    torch.testing.assert_close(result[mask].view(2, 3), alone, rtol=0, atol=1e-12)
    assert (result[~mask] == -math.inf).all()
    torch.testing.assert_close(result.exp().sum(dim=-1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_max_kl_is_never_exceeded_and_is_used_up(dtype):
    used = []
    for max_kl in (1e-3, 0.05, 0.5, 3.0):
        logits, q_values = draw(300, 8, dtype=dtype)
        logits, q_values = 4 * logits, q_values * torch.logspace(-2, 2, 300, dtype=dtype).unsqueeze(-1)
        settings = {"step_size": 0.5, "num_steps": 8}
        free = simplex_flow(logits, q_values, **settings)
        capped = simplex_flow(logits, q_values, max_kl=max_kl, **settings)
        divergence = kl_divergence(capped, logits)
        assert (divergence <= max_kl).all()
        inside = kl_divergence(free, logits) < 0.99 * max_kl
        torch.testing.assert_close(capped[inside], free[inside])
        outside = kl_divergence(free, logits) > 1.01 * max_kl
        used.append((divergence[outside] / max_kl).min().item() if outside.any() else 1.0)
    assert min(used) > 0.95


def test_half_precision_keeps_its_dtype():
    logits, q_values = torch.randn(5).bfloat16(), torch.randn(5)
    result = simplex_flow(logits, q_values, step_size=0.5, num_steps=2)
    assert result.dtype == torch.bfloat16
    expected = simplex_flow(logits.float(), q_values, step_size=0.5, num_steps=2)
    torch.testing.assert_close(result.float(), expected, rtol=1e-2, atol=1e-2)


def _flow(logits=None, q_values=None, **changes):
    arguments = {"step_size": 0.5, "num_steps": 2} | changes
    zeros = torch.zeros(2, 3)
    return simplex_flow(zeros if logits is None else logits, zeros if q_values is None else q_values, **arguments)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_input_raises_and_says_which(bad):
    with value_checks(True):
        _non_finite_input_raises(bad)
    for name in ("step_size", "alpha", "max_kl"):
        with pytest.raises(ValueError, match=name):
            _flow(**{name: bad})


def _non_finite_input_raises(bad):
    with pytest.raises(ValueError, match="logits must be finite"):
        _flow(logits=torch.full((2, 3), bad))
    with pytest.raises(ValueError, match="q_values must be finite"):
        _flow(q_values=torch.full((2, 3), bad))


def test_bad_arguments_raise():
    for name in ("step_size", "alpha", "max_kl", "num_steps"):
        with pytest.raises(ValueError, match=name):
            _flow(**{name: -1})
    with pytest.raises(ValueError, match="q_values must have shape"):
        _flow(q_values=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="candidate_mask must have shape"):
        _flow(candidate_mask=torch.ones(3, dtype=torch.bool))
    with value_checks(True), pytest.raises(ValueError, match="at least one candidate"):
        _flow(candidate_mask=torch.tensor([[True] * 3, [False] * 3]))
    with value_checks(True), pytest.raises(ValueError, match="displacement"):
        _flow(q_values=torch.tensor([[1e38, 0.0, 0.0]] * 2), step_size=1e3)


def test_step_size_above_one_needs_the_tilt():
    for step_size in (0.0, 1.5):
        with pytest.raises(ValueError, match="step_size"):
            _flow(step_size=step_size, alpha=1.0)
    assert _flow(step_size=1.5).isfinite().all()


def test_candidate_set_keeps_the_likely_tokens_in_order():
    probs = torch.tensor([[0.05, 0.6, 0.01, 0.3, 0.04], [0.2, 0.2, 0.2, 0.2, 0.2]], dtype=torch.float64)
    ids, mask = candidate_set(probs.log(), top_k=4, min_prob=0.045)
    assert ids[0].tolist() == [1, 3, 0, 4]
    assert mask.tolist() == [[True, True, True, False], [True] * 4]


def test_candidate_set_measures_probability_over_the_whole_vocabulary():
    # Two tokens of 0.04 among many: inside the top 2 alone each would have one half.
    probs = torch.full((1, 100), 0.92 / 98, dtype=torch.float64)
    probs[0, 7], probs[0, 9] = 0.041, 0.039
    ids, mask = candidate_set(probs.log() + 5, top_k=2, min_prob=0.04)
    assert ids.tolist() == [[7, 9]] and mask.tolist() == [[True, False]]


def test_candidate_set_always_has_the_most_likely_token():
    _, mask = candidate_set(torch.zeros(3, 50), top_k=5, min_prob=0.5)
    assert mask.tolist() == [[True, False, False, False, False]] * 3


def test_candidate_set_of_a_small_vocabulary_and_of_impossible_tokens():
    ids, mask = candidate_set(torch.tensor([1.0, -math.inf, 2.0]), top_k=40, min_prob=0.0)
    assert ids.tolist()[:2] == [2, 0] and mask.tolist() == [True, True, False]


@pytest.mark.parametrize("row", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_candidate_set_raises_on_bad_logits(row):
    with value_checks(True), pytest.raises(ValueError, match="log-normaliser of logits"):
        candidate_set(torch.tensor([row, [0.0, 0.0]]), top_k=1, min_prob=0.0)


def test_candidate_set_raises_on_bad_numbers():
    with pytest.raises(ValueError, match="top_k"):
        candidate_set(torch.zeros(3), top_k=0, min_prob=0.0)
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="min_prob"):
            candidate_set(torch.zeros(3), top_k=1, min_prob=bad)


@pytest.mark.parametrize("alpha", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_a_cap_is_within_a_wide_one(alpha, dtype):
    logits, q_values = torch.randn(6, 9, dtype=dtype), 3 * torch.randn(6, 9, dtype=dtype)
    mask = torch.rand(6, 9) < 0.5
    mask[:, 4] = True
    arguments = {"step_size": 0.25, "num_steps": 3, "alpha": alpha}
    for candidate_mask in (None, mask):
        short = simplex_flow(logits, q_values, candidate_mask=candidate_mask, **arguments)
        long = simplex_flow(logits, q_values, candidate_mask=candidate_mask, max_kl=1e3, **arguments)
        torch.testing.assert_close(short, long)
        assert short.dtype == dtype


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_named_where_it_is_read(bad):
    mask = torch.tensor([[True, True, False], [True, False, True]])
    for candidate_mask in (None, mask):
        for name in ("logits", "q_values"):
            tensors = {"logits": torch.randn(2, 3), "q_values": torch.randn(2, 3)}
            tensors[name][1, 0] = bad
            with value_checks(True), pytest.raises(ValueError, match=f"{name} must be finite"):
                simplex_flow(**tensors, step_size=0.5, num_steps=2, candidate_mask=candidate_mask)
    unread = torch.randn(2, 3).masked_fill(~mask, bad)
    assert simplex_flow(unread, unread, step_size=0.5, num_steps=2, candidate_mask=mask)[mask].isfinite().all()


class Waits(TorchDispatchMode):
    """Counts how often the host asks for a value of a tensor, which makes it wait for an accelerator."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        self.count += any(ask in name for ask in ("_local_scalar_dense", "is_nonzero", "equal.default", "nonzero"))
        return func(*args, **(kwargs or {}))


def test_a_decoded_token_makes_no_host_wait():
    logits, q_values = torch.randn(4, 50), torch.randn(4, 50)
    with Waits() as waits:
        ids, mask = candidate_set(logits, top_k=8, min_prob=0.01)
        chosen, values = logits.gather(-1, ids), q_values.gather(-1, ids)
        for settings in ({}, {"alpha": 0.5}, {"max_kl": 0.1}):
            simplex_flow(chosen, values, step_size=0.5, num_steps=2, candidate_mask=mask, **settings)
        cap_kl(chosen, values, 0.1, mask)
        kl_divergence(chosen, values, mask)
    assert waits.count == 0
