# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The direction against a transcription of the paper's equation."""

import math

import numpy as np
import pytest
import torch

from vgf_llm.functional import flow_direction, kernels, median_bandwidth


def paper_direction(particles, score, alpha, bandwidth, repulsion):
    """phi(u_i) = (1/N) sum_j [k(u_j, u_i) grad R(u_j) / alpha + grad_{u_j} k(u_j, u_i)], read off with two loops."""
    count, width = particles.shape
    direction = np.zeros((count, width))
    for i in range(count):
        for j in range(count):
            away = particles[j] - particles[i]
            kernel = np.exp(-np.dot(away, away) / (2 * bandwidth**2))
            direction[i] += kernel * score[j] / alpha
            if repulsion:
                direction[i] += -away / bandwidth**2 * kernel
    return direction / count


@pytest.mark.parametrize("repulsion", [True, False])
@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("bandwidth", [None, 0.9])
def test_direction_agrees_with_the_paper(alpha, bandwidth, repulsion):
    particles = torch.randn(2, 5, 3, dtype=torch.float64)
    score = torch.randn(2, 5, 3, dtype=torch.float64)
    direction = flow_direction(particles, score, alpha=alpha, bandwidth=bandwidth, repulsion=repulsion)
    widths = median_bandwidth(particles).tolist() if bandwidth is None else [bandwidth] * 2
    for b in range(2):
        expected = paper_direction(particles[b].numpy(), score[b].numpy(), alpha, widths[b], repulsion)
        np.testing.assert_allclose(direction[b].numpy(), expected, rtol=0, atol=1e-14)


def test_direction_takes_a_bandwidth_per_group():
    particles, score = torch.randn(2, 3, 2, dtype=torch.float64), torch.randn(2, 3, 2, dtype=torch.float64)
    together = flow_direction(particles, score, bandwidth=torch.tensor([0.5, 2.0], dtype=torch.float64))
    alone = torch.stack([flow_direction(particles[b], score[b], bandwidth=w) for b, w in enumerate([0.5, 2.0])])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-15)


def test_direction_of_one_particle_is_the_score():
    particles, score = torch.randn(4, 1, 3, dtype=torch.float64), torch.randn(4, 1, 3, dtype=torch.float64)
    torch.testing.assert_close(flow_direction(particles, score, alpha=0.5), score / 0.5, rtol=0, atol=0)


def test_direction_is_permutation_equivariant():
    particles, score = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    order = torch.randperm(6)
    shuffled = flow_direction(particles[order], score[order], alpha=0.7)
    torch.testing.assert_close(shuffled, flow_direction(particles, score, alpha=0.7)[order], rtol=0, atol=1e-14)


def test_repulsion_spreads_and_keeps_the_mean():
    particles = torch.randn(5, 2, dtype=torch.float64)
    direction = flow_direction(particles, torch.zeros_like(particles))
    spread = (particles - particles.mean(dim=0)).square().sum()
    moved = particles + 0.01 * direction
    assert (moved - moved.mean(dim=0)).square().sum() > spread
    torch.testing.assert_close(direction.sum(dim=0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-14)


def test_direction_ignores_a_common_offset():
    # On a grid of 1/64 a shift by 2^16 is exact in float32.
    particles, score = (64 * torch.randn(5, 2)).round() / 64, torch.randn(5, 2)
    near = flow_direction(particles, score, bandwidth=1.0)
    far = flow_direction(particles + 2.0**16, score, bandwidth=1.0)
    torch.testing.assert_close(near, far, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tile", [1, 12, 35, 40])  # 1, 2, 7 and 8 of the 9 columns at a time
@pytest.mark.parametrize("repulsion", [True, False])
def test_tiles_change_nothing(tile, repulsion, monkeypatch):
    particles, score = torch.randn(2, 3, 5, 9, dtype=torch.float64) * torch.logspace(-1, 1, 9), torch.randn(2, 3, 5, 9)
    score = score.double()
    arguments = {"alpha": 0.7, "repulsion": repulsion}
    whole = flow_direction(particles, score, **arguments)
    monkeypatch.setitem(kernels._TILES, "cpu", tile)
    monkeypatch.setattr(kernels, "_SMALL_GROUP", 0)
    torch.testing.assert_close(flow_direction(particles, score, **arguments), whole, rtol=0, atol=1e-13)
    torch.testing.assert_close(flow_direction(particles.mT.contiguous().mT, score, **arguments), whole)
    bandwidth = torch.rand(2, 3, dtype=torch.float64) + 0.5
    given = flow_direction(particles, score, bandwidth=bandwidth, **arguments)
    monkeypatch.undo()
    torch.testing.assert_close(given, flow_direction(particles, score, bandwidth=bandwidth, **arguments))


@pytest.mark.parametrize("tile", [4, 2**17])
def test_tiles_find_what_is_not_finite(tile, monkeypatch):
    monkeypatch.setitem(kernels._TILES, "cpu", tile)
    good = torch.randn(2, 4, 6)
    for bad in (math.nan, math.inf, -math.inf):
        broken = good.clone()
        broken[1, 2, 5] = bad
        with pytest.raises(ValueError, match="particles must be finite, but 1 of"):
            flow_direction(broken, good)
        with pytest.raises(ValueError, match="score must be finite, but 1 of"):
            flow_direction(good, broken)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_the_float32_result_rounded(dtype, monkeypatch):
    particles, score = torch.randn(2, 4, 6).to(dtype), torch.randn(2, 4, 6).to(dtype)
    expected = flow_direction(particles.float(), score.float(), bandwidth=1.5).to(dtype)
    assert torch.equal(flow_direction(particles, score, bandwidth=1.5), expected)
    monkeypatch.setitem(kernels._TILES, "cpu", 8)
    torch.testing.assert_close(flow_direction(particles, score, bandwidth=1.5), expected)


@pytest.mark.parametrize("tile", [4, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_direction_goes_where_it_is_told(tile, dtype, monkeypatch):
    monkeypatch.setitem(kernels._TILES, "cpu", tile)
    particles, score = torch.randn(2, 2, 3, 17, dtype=dtype)
    out = torch.full_like(particles, torch.nan)
    assert flow_direction(particles, score, out=out) is out
    assert torch.equal(out, flow_direction(particles, score))


def test_a_place_that_cannot_hold_the_direction_is_refused():
    particles, score = torch.randn(2, 3, 4)
    for out in (torch.empty(3, 5), torch.empty(4, 3).T, torch.empty(3, 4, dtype=torch.float64)):
        with pytest.raises(ValueError, match="`out` must be contiguous and like the particles"):
            flow_direction(particles, score, out=out)
    for out in (particles, score, score[:]):
        with pytest.raises(ValueError, match="`out` shares memory"):
            flow_direction(particles, score, out=out)
    with pytest.raises(ValueError, match="`out` cannot hold a result with gradients"):
        flow_direction(particles.requires_grad_(), score, out=torch.empty(3, 4))


def test_the_direction_is_differentiable_as_ever():
    particles = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    score = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u, s: flow_direction(u, s, alpha=0.7, bandwidth=1.3), (particles, score))
    tracked = flow_direction(particles, score)
    torch.testing.assert_close(tracked, flow_direction(particles.detach(), score.detach()))


def test_a_sum_that_overflows_is_no_fault():
    large = torch.full((1, 8), 3e38)
    assert torch.equal(flow_direction(torch.zeros(1, 8), large), large)


def test_memory_has_no_pairwise_particle_tensor():
    particles = torch.randn(64, 2048)
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Largest():
        flow_direction(particles, particles)
    assert 0 < largest <= particles.numel()
