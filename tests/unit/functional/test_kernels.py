# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The kernel, its gradient and its bandwidth against closed forms and autograd."""

import math

import numpy as np
import pytest
import torch

from vgf_llm.functional import kernel_matrix, median_bandwidth, rbf_kernel


def test_kernel_values_by_hand():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    kernel = kernel_matrix(x, x, bandwidth=5.0)
    expected = torch.tensor([[1.0, math.exp(-0.5)], [math.exp(-0.5), 1.0]], dtype=torch.float64)
    torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-15)


def test_kernel_gradient_equals_autograd():
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    y = torch.randn(2, 5, 4, dtype=torch.float64)
    bandwidth = torch.tensor([0.7, 1.9], dtype=torch.float64)
    kernel, grad = rbf_kernel(x, y, bandwidth)
    assert kernel.shape == (2, 3, 5) and grad.shape == (2, 3, 5, 4)

    for batch in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda first, b=batch: kernel_matrix(first, y[b], float(bandwidth[b])), x[batch]
        )
        # k(x_i, y_j) depends on x_i alone.
        own = torch.stack([jacobian[i, :, i] for i in range(3)])
        torch.testing.assert_close(grad[batch], own, rtol=0, atol=1e-14)


def test_kernel_gradcheck():
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: kernel_matrix(a, b, 1.3), (x, y))


def test_closed_form_gradient_equals_finite_differences():
    x, y, h = torch.randn(3, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64), 1e-6
    _, grad = rbf_kernel(x, y, 0.8)
    for d in range(2):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[d] = h
        numeric = (kernel_matrix(x + shift, y, 0.8) - kernel_matrix(x - shift, y, 0.8)) / (2 * h)
        torch.testing.assert_close(grad[..., d], numeric, rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_particles", [2, 3, 4, 5, 8])
def test_median_bandwidth_is_the_median_of_off_diagonal_distances(num_particles):
    particles = torch.randn(3, num_particles, 4, dtype=torch.float64)
    expected = []
    for group in particles.numpy():
        distances = [
            np.linalg.norm(group[i] - group[j]) for i in range(num_particles) for j in range(num_particles) if i != j
        ]
        expected.append(np.median(distances))
    torch.testing.assert_close(median_bandwidth(particles), torch.tensor(np.array(expected)), rtol=1e-14, atol=0)


def test_median_bandwidth_falls_back_to_one():
    assert median_bandwidth(torch.randn(2, 1, 3)).tolist() == [1.0, 1.0]
    assert median_bandwidth(torch.full((4, 3), 7.3)).item() == 1.0


def test_median_bandwidth_is_a_constant_of_the_graph():
    particles = torch.randn(3, 2, requires_grad=True)
    assert not median_bandwidth(particles).requires_grad


def test_close_particles_far_from_the_origin_keep_their_distance():
    particles = torch.tensor([[1000.0], [1000.5]])
    assert median_bandwidth(particles).item() == 0.5
    assert kernel_matrix(particles, particles, 0.5)[0, 1].item() == pytest.approx(math.exp(-0.5), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    particles = torch.randn(4, 3).to(dtype)
    assert median_bandwidth(particles).dtype == dtype
    expected = kernel_matrix(particles.float(), particles.float(), 1.0)
    torch.testing.assert_close(kernel_matrix(particles, particles, 1.0), expected)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.nan, math.inf])
def test_bad_bandwidth_raises(bandwidth):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="bandwidth"):
        rbf_kernel(x, x, bandwidth)


def test_bad_particles_raise():
    good = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="x must be finite"):
        kernel_matrix(torch.full((2, 3), math.nan), good, 1.0)
    with pytest.raises(ValueError, match="y must be finite"):
        kernel_matrix(good, torch.full((2, 3), math.inf), 1.0)
    with pytest.raises(ValueError, match="agree"):
        kernel_matrix(good, torch.zeros(2, 4), 1.0)
    with pytest.raises(ValueError, match=r"\[\.\.\., N, D\]"):
        median_bandwidth(torch.zeros(3))
    with pytest.raises(TypeError, match="floating-point"):
        median_bandwidth(torch.zeros(2, 3, dtype=torch.long))
