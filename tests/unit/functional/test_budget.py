# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Budget measures against hand computation, the bound and the cap against random draws."""

import math

import numpy as np
import pytest
import torch

from vgf_llm.functional import (
    cap_kl,
    flow_direction,
    kl_divergence,
    mmd_bound,
    mmd_squared,
    value_checks,
)


def test_kl_against_torch_distributions():
    p, q = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    torch.testing.assert_close(kl_divergence(p, q), expected, rtol=0, atol=1e-14)
    assert (kl_divergence(p, p) == 0).all()


def test_kl_by_hand():
    p, q = torch.tensor([0.75, 0.25], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kl_divergence(p.log(), q.log()).item() == pytest.approx(expected, abs=1e-15)


def test_kl_over_a_mask_is_the_kl_of_the_remaining_entries():
    p, q = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    result = kl_divergence(torch.where(mask, p, math.nan), torch.where(mask, q, -math.inf), mask)
    expected = kl_divergence(p[0, [0, 2, 3]], q[0, [0, 2, 3]])
    torch.testing.assert_close(result, torch.stack([expected, torch.zeros((), dtype=torch.float64)]))


def test_kl_with_probabilities_of_zero():
    half, one = torch.tensor([0.0, 0.0]), torch.tensor([0.0, -math.inf])
    assert kl_divergence(one, half).item() == pytest.approx(math.log(2))
    assert kl_divergence(half, one).item() == math.inf
    assert kl_divergence(one, one).item() == 0.0


def test_kl_gradient_is_finite_under_a_mask():
    p, q = (torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    kl_divergence(p, q, mask).sum().backward()
    for gradient in (p.grad, q.grad):
        assert gradient.isfinite().all() and not gradient[~mask].any() and gradient[0, 0] != 0


@pytest.mark.parametrize("bad", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_kl_raises_on_bad_logits(bad):
    bad, good = torch.tensor(bad), torch.zeros(2)
    with value_checks(True), pytest.raises(ValueError, match="logits_p"):
        kl_divergence(bad, good)
    with value_checks(True), pytest.raises(ValueError, match="logits_q"):
        kl_divergence(good, bad)
    with pytest.raises(ValueError, match="logits_q must have shape"):
        kl_divergence(good, torch.zeros(3))


def test_mmd_against_double_loops():
    x, y, width = torch.randn(4, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64), 1.4

    def mean_kernel(a, b):
        return np.mean([[np.exp(-np.sum((u - v) ** 2) / (2 * width**2)) for v in b.numpy()] for u in a.numpy()])

    expected = mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)
    assert mmd_squared(x, y, width).item() == pytest.approx(expected, abs=1e-14)
    assert mmd_squared(x, x, width).item() == 0.0


def test_mmd_of_two_points_and_of_batches():
    x, y = torch.zeros(3, 1, 1, dtype=torch.float64), torch.tensor([0.0, 1.0, 100.0]).double().view(3, 1, 1)
    expected = torch.tensor([0.0, 2 - 2 * math.exp(-0.5), 2.0], dtype=torch.float64)
    torch.testing.assert_close(mmd_squared(x, y, 1.0), expected)


def test_mmd_bound_by_hand():
    expected = 2 * 0.1 * 3 / (2.0 * math.sqrt(math.e)) * (1.5 / 0.4 + 1 / (2.0 * math.sqrt(math.e)))
    assert mmd_bound(0.1, 3, 2.0, 1.5, 0.4) == pytest.approx(expected, rel=1e-14)


def bounded_flow(start, weights, step_size, num_steps, alpha, bandwidth):
    """Transport with a fixed bandwidth under scores of norm at most 1; also the largest norm seen."""
    u, largest = start, 0.0
    for _ in range(num_steps):
        score = torch.tanh(u @ weights)
        score = score / score.norm(dim=-1, keepdim=True).clamp_min(1.0)
        largest = max(largest, score.norm(dim=-1).max().item())
        u = u + step_size * flow_direction(u, score, alpha=alpha, bandwidth=bandwidth)
    return u, largest


def test_mmd_bound_holds_on_random_draws():
    rng, ratios = np.random.default_rng(0), []
    for _ in range(300):
        num_particles, width, num_steps = int(rng.integers(1, 8)), int(rng.integers(1, 5)), int(rng.integers(0, 8))
        step_size, alpha, bandwidth = (float(np.exp(rng.uniform(*b))) for b in ((-6, 0), (-2, 2), (-1.5, 1.5)))
        start = float(np.exp(rng.uniform(-3, 1))) * torch.randn(num_particles, width, dtype=torch.float64)
        weights = 3 * torch.randn(width, width, dtype=torch.float64)
        end, score_norm = bounded_flow(start, weights, step_size, num_steps, alpha, bandwidth)
        bound = mmd_bound(step_size, num_steps, bandwidth, score_norm, alpha)
        distance = mmd_squared(start, end, bandwidth).item()
        assert distance <= bound
        if bound > 0:
            ratios.append(distance / bound)
    assert max(ratios) > 0.05  # the bound is not met by being empty


def test_mmd_bound_is_nearly_tight_where_the_kernel_is_steepest():
    # One particle moves by one bandwidth: MMD^2 = 2 - 2 exp(-1/2), the bound is 2 / e^(1/2) (1 + little for repulsion).
    start, score = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    end = start + 1.0 * flow_direction(start, score, alpha=0.01, bandwidth=100.0)
    ratio = mmd_squared(start, end, 100.0).item() / mmd_bound(1.0, 1, 100.0, 1.0, 0.01)
    assert 0.6 < ratio < 0.7  # (2 - 2 exp(-1/2)) / (2 exp(-1/2)) = 0.6487, less the little


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_mmd_bound_raises(bad):
    good = {"step_size": 0.1, "num_steps": 1, "bandwidth": 1.0, "score_norm": 1.0, "alpha": 1.0}
    for name in ("step_size", "bandwidth", "score_norm", "alpha"):
        with pytest.raises(ValueError, match=name):
            mmd_bound(**(good | {name: bad}))
    with pytest.raises(ValueError, match="num_steps"):
        mmd_bound(**(good | {"num_steps": -1}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.1, 5.0, 20.0])
def test_cap_is_never_exceeded_and_is_the_largest_scale(spread, dtype):
    logits = spread * torch.randn(400, 10, dtype=dtype)
    direction = torch.logspace(-3, 4, 400, dtype=dtype).unsqueeze(-1) * torch.randn(400, 10, dtype=dtype)
    direction = direction - direction.amax(dim=-1, keepdim=True)
    for max_kl in (1e-3, 0.1, 2.0):
        scale = cap_kl(logits, direction, max_kl)
        assert ((scale >= 0) & (scale <= 1)).all()

        def divergence(s):
            return kl_divergence(logits + s.unsqueeze(-1) * direction, logits)

        larger = scale * (1.1 if dtype == torch.float32 else 1.001)
        assert (divergence(scale) <= max_kl).all()
        assert (divergence(larger)[larger < 1] > max_kl).all()
        assert (scale < 0.9).any() and (scale == 1).any()


def test_cap_ignores_an_offset_of_the_direction():
    logits, direction = torch.randn(5, 6, dtype=torch.float64), 5 * torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(cap_kl(logits, direction + 9, 0.1), cap_kl(logits, direction, 0.1), rtol=1e-10, atol=0)


def test_cap_respects_the_mask():
    logits, direction = torch.randn(3, 6, dtype=torch.float64), 5 * torch.randn(3, 6, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    scale = cap_kl(torch.where(mask, logits, math.nan), torch.where(mask, direction, math.nan), 0.1, mask)
    torch.testing.assert_close(scale[0], cap_kl(logits[0, [0, 1, 3]], direction[0, [0, 1, 3]], 0.1))
    torch.testing.assert_close(scale[1], cap_kl(logits[1], direction[1], 0.1))
    assert scale[2] == 1.0


def test_cap_of_zero_and_directions_that_change_nothing():
    logits, direction = torch.randn(5), torch.randn(5)
    assert cap_kl(logits, direction, 0.0).item() == 0.0
    assert cap_kl(logits, torch.zeros(5), 0.0).item() == 1.0
    assert cap_kl(logits, torch.full((5,), 4.0), 0.0).item() == 1.0


def test_cap_raises():
    logits = torch.zeros(3)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="max_kl"):
            cap_kl(logits, logits, bad)
    with value_checks(True), pytest.raises(ValueError, match="direction must be finite"):
        cap_kl(logits, logits / 0, 0.1)
    with value_checks(True), pytest.raises(ValueError, match="logits"):
        cap_kl(logits / 0, logits, 0.1)
