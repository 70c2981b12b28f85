# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The transport loop against closed forms, and what both it and the direction refuse."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch

from vgf_llm.functional import flow_direction, transport


def concave(u):
    """A smooth value that is not a quadratic and whose gradient is bounded."""
    return -(1 + (u - 1).square().sum(dim=-1)).sqrt() + 0.3 * torch.sin(u).sum(dim=-1)


def test_linear_value_moves_by_exactly_steps_times_step_size():
    gradient = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
    start = torch.randn(3, 1, 3, dtype=torch.float64)
    result = transport(start, lambda u: u @ gradient, step_size=0.25, num_steps=12)
    torch.testing.assert_close(result.distance, torch.full((3, 1), 3.0, dtype=torch.float64), rtol=1e-14, atol=0)
    torch.testing.assert_close(result.particles, start + 3.0 * gradient, rtol=0, atol=1e-14)
    rise = result.values - result.values[0]
    expected = 0.25 * torch.arange(13, dtype=torch.float64)[:, None, None].expand(13, 3, 1)
    torch.testing.assert_close(rise, expected, rtol=0, atol=1e-13)
    assert (result.num_steps, result.stop_reason) == (12, "num_steps")


def test_quadratic_value_is_a_matrix_power():
    root = torch.randn(4, 4, dtype=torch.float64)
    hessian = root @ root.T / 4
    start = torch.randn(5, 1, 4, dtype=torch.float64)
    result = transport(
        start, lambda u: -0.5 * ((u @ hessian) * u).sum(dim=-1), step_size=0.1, num_steps=7, alpha=0.8, repulsion=False
    )
    power = torch.linalg.matrix_power(torch.eye(4, dtype=torch.float64) - 0.1 / 0.8 * hessian, 7)
    torch.testing.assert_close(result.particles, start @ power, rtol=0, atol=1e-13)


@pytest.mark.parametrize("repulsion", [True, False])
def test_transport_of_interacting_particles_is_the_loop_of_directions(repulsion):
    start = torch.randn(2, 4, 3, dtype=torch.float64)
    result = transport(start, concave, step_size=0.2, num_steps=5, alpha=0.5, repulsion=repulsion)
    u = start.clone()
    for _ in range(5):
        leaf = u.clone().requires_grad_()
        (score,) = torch.autograd.grad(concave(leaf).sum(), leaf)
        u = u + 0.2 * flow_direction(u, score, alpha=0.5, repulsion=repulsion)
    torch.testing.assert_close(result.particles, u, rtol=0, atol=1e-14)
    torch.testing.assert_close(result.values[-1], concave(u), rtol=0, atol=1e-14)
    torch.testing.assert_close(result.distance, (u - start).norm(dim=-1), rtol=0, atol=1e-14)
    assert result.values.shape == (6, 2, 4)


def test_transport_is_permutation_equivariant():
    start, order = torch.randn(5, 3, dtype=torch.float64), torch.randperm(5)
    straight = transport(start, concave, step_size=0.2, num_steps=4)
    shuffled = transport(start[order], concave, step_size=0.2, num_steps=4)
    torch.testing.assert_close(shuffled.particles, straight.particles[order], rtol=0, atol=1e-13)
    torch.testing.assert_close(shuffled.values, straight.values[:, order], rtol=0, atol=1e-13)


@pytest.mark.parametrize("num_particles", [1, 4])
def test_no_steps_is_the_identity(num_particles):
    start = torch.randn(2, num_particles, 3)
    result = transport(start, concave, step_size=0.5, num_steps=0)
    assert torch.equal(result.particles, start)
    assert torch.equal(result.values, concave(start).unsqueeze(0))
    assert not result.distance.any()
    assert (result.num_steps, result.stop_reason) == (0, "num_steps")


def test_euler_steps_converge_at_first_order_to_the_exact_flow():
    root = torch.randn(3, 3, dtype=torch.float64)
    hessian = root @ root.T / 3
    start = torch.randn(1, 3, dtype=torch.float64)
    exact = start @ torch.linalg.matrix_exp(-hessian)
    errors = []
    for num_steps in (32, 64, 128):
        result = transport(
            start, lambda u: -0.5 * ((u @ hessian) * u).sum(dim=-1), step_size=1 / num_steps, num_steps=num_steps
        )
        errors.append((result.particles - exact).norm().item())
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(0.95 < order < 1.05 for order in orders), orders


def test_interacting_flow_converges_at_first_order():
    start = torch.randn(3, 2, dtype=torch.float64)
    ends = [transport(start, concave, step_size=1 / n, num_steps=n).particles for n in (64, 128, 256, 512)]
    gaps = [(a - b).norm().item() for a, b in pairwise(ends)]
    orders = [math.log2(a / b) for a, b in pairwise(gaps)]
    assert all(0.9 < order < 1.1 for order in orders), orders


def test_stops_where_nothing_moves():
    start = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]]], dtype=torch.float64)
    still = transport(start, lambda u: (0 * u).sum(dim=-1), step_size=0.5, num_steps=9)
    assert (still.num_steps, still.stop_reason) == (0, "stationary")
    assert torch.equal(still.particles, start) and still.values.shape == (1, 2, 1)
    # One group rests at a stationary point, the other one goes on.
    mixed = transport(start, lambda u: u.square().sum(dim=-1), step_size=0.5, num_steps=2)
    assert (mixed.num_steps, mixed.stop_reason) == (2, "num_steps")
    assert mixed.distance.flatten().tolist() == [0.0, 3.0]


def test_project_is_applied_after_each_step():
    start = torch.zeros(1, 2, dtype=torch.float64)
    calls = []

    def onto_first_axis(u):
        calls.append(u.clone())
        return u * torch.tensor([1.0, 0.0], dtype=torch.float64)

    result = transport(start, lambda u: u.sum(dim=-1), step_size=0.5, num_steps=3, project=onto_first_axis)
    assert len(calls) == 3
    assert result.particles.tolist() == [[1.5, 0.0]]


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(guard):
    start = torch.randn(3, 2, dtype=torch.float64)
    expected = transport(start, concave, step_size=0.1, num_steps=3)
    with guard():
        result = transport(start.clone(), concave, step_size=0.1, num_steps=3)
    assert torch.equal(result.particles, expected.particles)
    assert not result.particles.requires_grad and not result.values.requires_grad
    assert not result.particles.is_inference()


def test_leaves_no_gradient_behind():
    start = torch.randn(2, 3, requires_grad=True)
    weight = torch.randn(3, requires_grad=True)
    result = transport(start, lambda u: u @ weight, step_size=0.1, num_steps=2)
    assert start.grad is None and weight.grad is None
    assert not any(t.requires_grad for t in (result.particles, result.values, result.distance))


def test_result_is_frozen():
    result = transport(torch.zeros(1, 1), lambda u: u[..., 0], step_size=0.1, num_steps=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.num_steps = 3


def _transport(particles=None, value_fn=concave, **changes):
    arguments = {"step_size": 0.1, "num_steps": 2} | changes
    return transport(torch.ones(2, 3) if particles is None else particles, value_fn, **arguments)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.1])
def test_bad_numbers_raise(bad):
    for name in ("step_size", "alpha"):
        with pytest.raises(ValueError, match=name):
            _transport(**{name: bad})
    with pytest.raises(ValueError, match="alpha"):
        flow_direction(torch.ones(2, 3), torch.ones(2, 3), alpha=bad)


def test_bad_counts_and_types_raise():
    with pytest.raises(ValueError, match="num_steps"):
        _transport(num_steps=-1)
    with pytest.raises(TypeError, match="num_steps"):
        _transport(num_steps=1.5)
    with pytest.raises(TypeError, match="step_size"):
        _transport(step_size=None)
    with pytest.raises(ValueError, match="alpha"):
        _transport(alpha=0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_tensors_raise_and_say_which(bad):
    with pytest.raises(ValueError, match="particles must be finite"):
        _transport(torch.full((2, 3), bad))
    with pytest.raises(ValueError, match="score must be finite"):
        flow_direction(torch.ones(2, 3), torch.full((2, 3), bad))
    with pytest.raises(ValueError, match="values that value_fn returned after 0 steps"):
        _transport(value_fn=lambda u: u.sum(dim=-1) * bad)
    with pytest.raises(ValueError, match="particles after step 1"):
        _transport(project=lambda u: u * bad)


def test_non_finite_gradient_raises():
    # sqrt has a finite value and an infinite slope at zero.
    with pytest.raises(ValueError, match="gradient of value_fn after 0 steps"):
        _transport(torch.zeros(2, 3), lambda u: u.sum(dim=-1).sqrt())


def test_bad_value_fn_and_project_raise():
    with pytest.raises(ValueError, match="output of value_fn must have shape"):
        _transport(value_fn=lambda u: u)
    with pytest.raises(ValueError, match="does not depend on the particles"):
        _transport(value_fn=lambda u: u.detach().sum(dim=-1))
    with pytest.raises(ValueError, match="does not depend on the particles"):
        _transport(value_fn=lambda u: torch.ones(2, requires_grad=True))
    with pytest.raises(ValueError, match="output of project"):
        _transport(project=lambda u: u[:1])
    with pytest.raises(ValueError, match="score must have shape"):
        flow_direction(torch.ones(2, 3), torch.ones(2, 2))
