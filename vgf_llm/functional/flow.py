# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Particle flow: the direction of the paper and the transport loop around it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ._checks import (
    COUNT,
    NON_NEGATIVE,
    Range,
    check_finite,
    check_particle_shape,
    check_particles,
    check_shape,
    checks_values,
)
from .kernels import kernel_matrix, median_bandwidth, particle_kernel, tile_size

StopReason = Literal["num_steps", "stationary"]

ALPHA = Range(0, open_low=True, hint="For the limit alpha -> 0 pass repulsion=False and scale step_size.")


@dataclass(frozen=True)
class TransportResult:
    """What `transport` did; every tensor is detached.

    Attributes:
        particles: Where the particles are, [..., N, D].
        values: Their value before the first step and after every step, [num_steps + 1, ..., N].
        distance: How far each particle is from its start (Euclidean), [..., N].
        num_steps: Steps taken.
        stop_reason: "num_steps" (the budget is spent) or "stationary" (the velocity is zero everywhere).
    """

    particles: Tensor
    values: Tensor
    distance: Tensor
    num_steps: int
    stop_reason: StopReason


def flow_direction(
    particles: Tensor,
    score: Tensor,
    *,
    alpha: float = 1.0,
    bandwidth: float | Tensor | None = None,
    repulsion: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """Velocity that carries the particles towards the Boltzmann distribution of the value.

    phi(u_i) = (1/N) sum_j [k(u_j, u_i) score_j / alpha + grad_{u_j} k(u_j, u_i)]. The sum over gradients is
    (u_i sum_j k_ij - sum_j k_ij u_j) / bandwidth^2, so that phi is two matrix products and memory is N^2 + N D. Without
    gradients they are taken a tile of columns at a time, and intermediate results stay in a cache.

    Args:
        particles: Particles u, [..., N, D]. Groups along the leading dimensions do not interact.
        score: Gradient of the value at each particle, [..., N, D].
        alpha: Temperature of the Boltzmann distribution, positive.
        bandwidth: Length scale of the kernel, a number or [...]; None takes `median_bandwidth`.
        repulsion: Whether to keep the second term, which spreads the particles. It is what vanishes beside the first
            when alpha goes to 0.
        out: Where phi goes, contiguous, like the particles in shape, dtype and device, and none of the inputs. Without
            gradients only. A loop that gives the same tensor again and again saves the time that new memory takes,
            which for large particles on a CPU is most of it.

    Returns:
        phi, [..., N, D]. With N = 1 it is score / alpha, plain ascent.

    Raises:
        TypeError: The particles are not floating point.
        ValueError: Shapes do not agree, input is not finite, `alpha` or `bandwidth` is not positive, or `out` is no
            place for the result.

    Source:
        arXiv 2604.14265, the particle update of the discrete gradient flow.

    Example:
        >>> flow_direction(torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]), alpha=0.5)
        tensor([[2., 4.]])
    """
    check_particle_shape("particles", particles)
    check_shape("score", score, particles.shape, "particles")
    ALPHA.check("alpha", alpha)
    needs_grad = torch.is_grad_enabled() and (particles.requires_grad or score.requires_grad)
    if out is not None:
        _check_out(out, particles, score, needs_grad)
    if needs_grad:
        check_finite("score", score)
        bandwidth = median_bandwidth(particles) if bandwidth is None else bandwidth
        kernel = kernel_matrix(particles, particles, bandwidth)
        width = torch.as_tensor(bandwidth, dtype=kernel.dtype, device=kernel.device)
        return _velocity(particles, score, *_weights(kernel, width, alpha, repulsion)).to(particles.dtype)
    kernel, width = particle_kernel(particles, bandwidth)
    return _tiled_velocity(particles, score, *_weights(kernel, width, alpha, repulsion), out)


def _check_out(out: Tensor, particles: Tensor, score: Tensor, needs_grad: bool) -> None:
    if needs_grad:
        raise ValueError("`out` cannot hold a result with gradients; leave it out, or detach particles and score.")
    like = (particles.shape, particles.dtype, particles.device)
    if (out.shape, out.dtype, out.device) != like or not out.is_contiguous():
        raise ValueError(
            f"`out` must be contiguous and like the particles, {list(particles.shape)} in {particles.dtype} on "
            f"{particles.device}; got {list(out.shape)} in {out.dtype} on {out.device}. Take "
            "`torch.empty_like(particles)`."
        )
    storage = out.untyped_storage().data_ptr()
    if out.numel() > 0 and storage in (t.untyped_storage().data_ptr() for t in (particles, score)):
        raise ValueError("`out` shares memory with `particles` or `score`, which are read while it is written.")


def _weights(kernel: Tensor, width: Tensor, alpha: float, repulsion: bool) -> tuple[Tensor, Tensor | None]:
    """The matrices [..., N, N] that phi applies to the scores and to the particles; None without repulsion."""
    count = kernel.shape[-1]
    spread = (torch.diag_embed(kernel.sum(dim=-1)) - kernel) / (count * width[..., None, None] ** 2)
    return kernel / (count * alpha), spread if repulsion else None


def _velocity(particles: Tensor, score: Tensor, attraction: Tensor, spread: Tensor | None) -> Tensor:
    """attraction @ score + spread @ particles, [..., N, D] in the dtype of the matrices."""
    dtype = attraction.dtype
    if spread is None:
        return attraction @ score.to(dtype)
    # Rows of `spread` sum to zero, so that only differences matter; taken first, they keep their digits.
    offsets = particles.to(dtype)
    offsets = offsets - offsets[..., :1, :]
    if particles.ndim == 2:
        return torch.addmm(attraction @ score.to(dtype), spread, offsets)
    return attraction @ score.to(dtype) + spread @ offsets


def _tiled_velocity(
    particles: Tensor, score: Tensor, attraction: Tensor, spread: Tensor | None, out: Tensor | None
) -> Tensor:
    """`_velocity` in the particles' dtype, a tile at a time: each number is read once and written once.

    The result stands in `out` if that is given. Raises ValueError when `score` is not finite.
    """
    num_particles, width = particles.shape[-2:]
    columns = max(1, tile_size(particles) // num_particles)
    if width <= columns:
        velocity = _velocity(particles, score, attraction, spread)
        total = velocity.sum()
        velocity = velocity.to(particles.dtype) if out is None else out.copy_(velocity)
    else:
        velocity = torch.empty_like(particles, memory_format=torch.contiguous_format) if out is None else out
        total = attraction.new_zeros(())
        shape, matrices = (-1, num_particles, width), (-1, num_particles, num_particles)
        groups = zip(
            velocity.view(shape),
            particles.reshape(shape),
            score.reshape(shape),
            attraction.reshape(matrices),
            (attraction if spread is None else spread).reshape(matrices),
            strict=True,
        )
        for target, group, own_score, attract, repel in groups:
            for start in range(0, width, columns):
                tile = slice(start, start + columns)
                moved = _velocity(group[:, tile], own_score[:, tile], attract, None if spread is None else repel)
                total += moved.sum()
                target[:, tile] = moved
    if checks_values() and not bool(torch.isfinite(total)):
        # The kernel of a particle with itself is 1, so that a score that is not finite is seen in the sum.
        check_finite("score", score)
    return velocity


@torch.inference_mode(False)
@torch.no_grad()
def transport(
    particles: Tensor,
    value_fn: Callable[[Tensor], Tensor],
    *,
    step_size: float,
    num_steps: int,
    alpha: float = 1.0,
    repulsion: bool = True,
    project: Callable[[Tensor], Tensor] | None = None,
) -> TransportResult:
    """Moves particles along the value gradient for a budget of steps: u <- u + step_size * phi(u).

    The gradient of the value is taken by autograd, also when the caller is inside `no_grad` or `inference_mode`. The
    bandwidth of the kernel is the median one, taken anew at every step.

    Args:
        particles: Where to start, [..., N, D].
        value_fn: Maps particles [..., N, D] to values [..., N]; the value of a particle must depend on it alone.
        step_size: epsilon >= 0, in the units of phi.
        num_steps: L >= 0; 0 returns the start and its values.
        alpha: Temperature, positive; see `flow_direction`.
        repulsion: Whether particles repel each other; see `flow_direction`.
        project: Called on the particles after each step.

    Returns:
        A `TransportResult`.

    Raises:
        TypeError: `num_steps` is not an int, or the particles are not floating point.
        ValueError: A number is out of range; particles, values or gradients are not finite; `value_fn` or `project`
            returns another shape, or values that do not depend on the particles.

    Source:
        arXiv 2604.14265, the update u <- u + epsilon phi(u) and its budget of L steps.

    Example:
        >>> start = torch.zeros(1, 2)
        >>> result = transport(start, lambda u: u[..., 0], step_size=0.5, num_steps=4)
        >>> result.particles, result.distance, result.stop_reason
        (tensor([[2., 0.]]), tensor([2.]), 'num_steps')
    """
    check_particles("particles", particles)
    NON_NEGATIVE.check("step_size", step_size)
    COUNT.check("num_steps", num_steps)
    start = current = particles.clone()
    velocities = torch.empty_like(start, memory_format=torch.contiguous_format)
    values: list[Tensor] = []
    reason: StopReason = "num_steps"
    for taken in range(num_steps):
        value, score = _value_and_score(value_fn, current, taken)
        values.append(value)
        velocity = flow_direction(current, score, alpha=alpha, repulsion=repulsion, out=velocities)
        if not bool(velocity.any()):
            reason = "stationary"
            break
        current = current + step_size * velocity
        if project is not None:
            current = project(current)
            check_shape("the output of project", current, start.shape, "particles")
        check_finite(f"the particles after step {taken + 1}", current, "lower step_size")
    else:
        values.append(_checked_values(value_fn, current, num_steps))
    return TransportResult(
        particles=current,
        values=torch.stack(values),
        distance=torch.linalg.vector_norm(current - start, dim=-1),
        num_steps=len(values) - 1,
        stop_reason=reason,
    )


def _checked_values(value_fn: Callable[[Tensor], Tensor], particles: Tensor, step: int) -> Tensor:
    values = value_fn(particles)
    check_shape("the output of value_fn", values, particles.shape[:-1], "particles [..., N, D]")
    check_finite(f"the values that value_fn returned after {step} steps", values, "lower step_size")
    return values


def _value_and_score(value_fn: Callable[[Tensor], Tensor], particles: Tensor, step: int) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = particles.detach().requires_grad_()
        values = _checked_values(value_fn, leaf, step)
        # Each value depends on its own particle only, so the gradient of the sum is the stack of the gradients.
        score = torch.autograd.grad(values.sum(), leaf, allow_unused=True)[0] if values.requires_grad else None
    if score is None:
        raise ValueError(
            "the output of value_fn does not depend on the particles, so it has no gradient; "
            "use only differentiable operations in it, and no detach or no_grad."
        )
    check_finite(f"the gradient of value_fn after {step} steps", score, "check value_fn for sqrt, log or norm at zero")
    return values.detach(), score
