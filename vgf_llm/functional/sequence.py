# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The particle flow on whole responses: matrices of token vectors, masked where a response has ended.

A particle u is [T, D] with a mask [T]. Its features in the kernel are its pooled tokens z = sum_t m_t u_t / sum_t m_t,
so that responses of different lengths interact, and the kernel's gradient reaches the tokens through the pooling.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ._checks import NON_NEGATIVE, POSITIVE, check_finite, check_rank, check_shape
from ._masking import working_dtype
from .flow import ALPHA, flow_direction
from .kernels import kernel_matrix, median_bandwidth


def _token_mask(mask: Tensor, particles: Tensor) -> Tensor:
    check_shape("mask", mask, particles.shape[:-1], "particles [..., N, T, D]")
    return mask.bool().unsqueeze(-1)


def pool_tokens(particles: Tensor, mask: Tensor) -> Tensor:
    """Mean of the tokens that a mask keeps.

    Args:
        particles: Token vectors, [..., T, D].
        mask: Which tokens count, [..., T]; what stands elsewhere is never read.

    Returns:
        The mean, [..., D]; 0 where no token counts.

    Raises:
        ValueError: Shapes do not agree.

    Example:
        >>> pool_tokens(torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([1, 1, 0]))
        tensor([2.])
    """
    keep = _token_mask(mask, particles)
    total = torch.where(keep, particles, 0.0).sum(dim=-2)
    return total / keep.sum(dim=-2).clamp_min(1)


def sequence_direction(
    particles: Tensor,
    score: Tensor,
    mask: Tensor,
    *,
    alpha: float = 1.0,
    bandwidth: float | Tensor | None = None,
    repulsion: bool = True,
) -> Tensor:
    """Velocity of interacting responses, with the kernel on their pooled tokens z.

    phi(u_i)_t = m_it (1/N) sum_j [ k(z_j, z_i) score_jt / alpha - grad_{u_it} k(z_j, z_i) ]. The gradient of the kernel
    reaches every token of response i with the weight 1 / T_i that pooling gives it. For responses of one token this is
    `flow_direction`.

    Args:
        particles: Token vectors of the responses, [..., N, T, D]. Groups along the leading dimensions do not interact.
        score: Gradient of the value at each token, [..., N, T, D].
        mask: Which tokens are part of a response, [..., N, T].
        alpha: Temperature of the Boltzmann distribution, positive.
        bandwidth: Length scale of the kernel, a number or [...]; None takes the median one of the pooled tokens.
        repulsion: Whether to keep the second term, which spreads the responses.

    Returns:
        phi, [..., N, T, D], zero at masked tokens. With N = 1 it is score / alpha.

    Raises:
        ValueError: Shapes do not agree, input is not finite, or `alpha` or `bandwidth` is not positive.

    Source:
        arXiv 2604.14265, the particle update; the pooled features are this package's.

    Example:
        >>> sequence_direction(torch.zeros(1, 2, 1), torch.ones(1, 2, 1), torch.tensor([[1, 0]]), alpha=0.5).flatten()
        tensor([2., 0.])
    """
    check_shape("score", score, particles.shape, "particles")
    ALPHA.check("alpha", alpha)
    keep = _token_mask(mask, particles)
    score = torch.where(keep, score, 0.0)
    check_finite("score", score)
    features = pool_tokens(particles, mask)
    if bandwidth is None:
        bandwidth = median_bandwidth(features)
    kernel = kernel_matrix(features, features, bandwidth)
    shared = kernel @ score.to(kernel.dtype).flatten(-2) / (alpha * features.shape[-2])
    velocity = shared.view(score.shape)
    if repulsion:
        # Without a score the flow of the features is the kernel's gradient alone.
        apart = flow_direction(features, torch.zeros_like(features), bandwidth=bandwidth).to(kernel.dtype)
        velocity = velocity + (apart / keep.sum(dim=-2).clamp_min(1)).unsqueeze(-2)
    return torch.where(keep, velocity, 0.0).to(particles.dtype)


def sequence_step(particles: Tensor, velocity: Tensor, mask: Tensor, *, step_size: float, scale: float) -> Tensor:
    """One step of every token, of one length for all: u <- u + epsilon scale v / |v|.

    Args:
        particles: Token vectors, [..., T, D].
        velocity: v, [..., T, D]; a token without a velocity stays.
        mask: Which tokens move, [..., T].
        step_size: epsilon >= 0.
        scale: Length of the unit of movement, positive: a typical embedding's norm.

    Returns:
        The tokens after the step, [..., T, D]; masked ones are where they were.

    Raises:
        ValueError: Shapes do not agree, a number is out of range, or the velocity of a token that moves is not finite.

    Example:
        >>> u = torch.zeros(1, 2)
        >>> sequence_step(u, torch.tensor([[3.0, 4.0]]), torch.tensor([1]), step_size=0.5, scale=2.0)
        tensor([[0.6000, 0.8000]])
    """
    check_shape("velocity", velocity, particles.shape, "particles")
    NON_NEGATIVE.check("step_size", step_size)
    POSITIVE.check("scale", scale)
    keep = _token_mask(mask, particles)
    velocity = torch.where(keep, velocity, 0.0)
    check_finite("velocity", velocity)
    length = torch.linalg.vector_norm(velocity, dim=-1, keepdim=True)
    moved = particles + step_size * scale * velocity / torch.where(length > 0, length, 1.0)
    return torch.where(keep, moved, particles)


def straight_through_tokens(
    probs: Tensor, candidate_ids: Tensor, hard_ids: Tensor, embedding: Tensor
) -> tuple[Tensor, Tensor]:
    """Embeddings of chosen tokens whose gradient is that of the expected embedding.

    Forward the result is E[hard]; backward it is sum_k p_k E[candidate_k]. The mean is one pass over the candidates
    that never holds their K embeddings of width D.

    Args:
        probs: Probabilities of the candidates, [..., K]; may require a gradient.
        candidate_ids: Rows of the embedding matrix, [..., K].
        hard_ids: The chosen tokens, [...].
        embedding: E, [V, D], without a gradient.

    Returns:
        The straight-through embeddings and the soft ones, [..., D] each.

    Raises:
        ValueError: Shapes do not agree.

    Source:
        The straight-through estimator, Bengio et al. 2013, arXiv 1308.3432.

    Example:
        >>> p = torch.tensor([0.25, 0.75], requires_grad=True)
        >>> hard, soft = straight_through_tokens(p, torch.tensor([0, 2]), torch.tensor(2), torch.eye(3))
        >>> hard.detach(), soft.detach()
        (tensor([0., 0., 1.]), tensor([0.2500, 0.0000, 0.7500]))
    """
    check_shape("candidate_ids", candidate_ids, probs.shape, "probs")
    check_shape("hard_ids", hard_ids, probs.shape[:-1], "probs [..., K]")
    check_rank("embedding", embedding, 2, "[V, D]")
    dtype = working_dtype(probs, embedding)
    matrix = embedding.detach().to(dtype)
    count = probs.shape[-1]
    soft = F.embedding_bag(
        candidate_ids.reshape(-1, count), matrix, mode="sum", per_sample_weights=probs.to(dtype).reshape(-1, count)
    ).view(*hard_ids.shape, -1)
    hard = F.embedding(hard_ids, matrix)
    return hard + (soft - soft.detach()), soft
