# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Measures of how far transport went, the paper's bound on it, and a cap."""

import math

import torch
from torch import Tensor

from ._checks import COUNT, NON_NEGATIVE, POSITIVE, check_finite, check_shape
from ._masking import as_mask, below_max, check_logits, masked_log_softmax, working_dtype
from .kernels import kernel_matrix

# Halvings of an interval of length 1, of which a small scale takes more to reach the same number of digits. No more are
# taken where none is needed: that would be for the host to see.
_BISECTIONS = {torch.float32: 40, torch.float64: 70}


def kl_divergence(logits_p: Tensor, logits_q: Tensor, mask: Tensor | None = None) -> Tensor:
    """KL(p || q) of two categorical distributions over the last dimension.

    Args:
        logits_p: Logits or log-probabilities of p, [..., K]; -inf is probability zero.
        logits_q: Logits or log-probabilities of q, [..., K].
        mask: Which entries count, [..., K]; both distributions are normalised over them. None counts all. What stands
            elsewhere is never read.

    Returns:
        The divergence in nats, [...], never negative; 0 for rows without an entry that counts, infinite where p has
        mass that q has not.

    Raises:
        ValueError: Shapes do not agree, or an entry that counts is NaN or +inf.

    Example:
        >>> kl_divergence(torch.tensor([0.0, -torch.inf]), torch.tensor([0.0, 0.0]))  # log 2
        tensor(0.6931)
    """
    check_shape("logits_q", logits_q, logits_p.shape, "logits_p")
    mask = as_mask("mask", mask, logits_p, "logits_p")
    check_logits("logits_p", logits_p, mask)
    check_logits("logits_q", logits_q, mask)
    dtype = working_dtype(logits_p, logits_q)
    return _kl(masked_log_softmax(logits_p.to(dtype), mask), masked_log_softmax(logits_q.to(dtype), mask))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL of normalised log-probabilities; entries where p is zero contribute nothing, whatever q is."""
    terms = torch.where(log_p > -torch.inf, log_p - log_q, 0.0)
    return (log_p.exp() * terms).sum(dim=-1).clamp_min(0.0)


def mmd_squared(x: Tensor, y: Tensor, bandwidth: float | Tensor) -> Tensor:
    """Squared maximum mean discrepancy between two particle sets, RBF kernel, biased (V-statistic) estimate.

    Args:
        x: Particles, [..., N, D].
        y: Particles, [..., M, D], with the leading dimensions of `x`.
        bandwidth: Length scale of the kernel, a number or [...].

    Returns:
        mean k(x, x) + mean k(y, y) - 2 mean k(x, y), [...], never negative.

    Raises:
        TypeError: The particles are not floating point.
        ValueError: Shapes do not agree, input is not finite, or the bandwidth is not positive.

    Source:
        Gretton et al. 2012, equation 5; arXiv 2604.14265 states its budget bound for this quantity.

    Example:
        >>> mmd_squared(torch.zeros(1, 2), torch.ones(1, 2), bandwidth=1.0)  # 2 - 2 exp(-1)
        tensor(1.2642)
    """
    within = kernel_matrix(x, x, bandwidth).mean(dim=(-2, -1)) + kernel_matrix(y, y, bandwidth).mean(dim=(-2, -1))
    return (within - 2 * kernel_matrix(x, y, bandwidth).mean(dim=(-2, -1))).clamp_min(0.0)


def mmd_bound(step_size: float, num_steps: int, bandwidth: float, score_norm: float, alpha: float) -> float:
    """The paper's bound on MMD^2 between reference and transported particles.

    MMD^2(mu, pi_L) <= (2 epsilon L / (sigma sqrt(e))) (c / alpha + 1 / (sigma sqrt(e))). A step moves a particle by at
    most epsilon times the second factor, and the kernel changes by at most 1 / (sigma sqrt(e)) a unit of length. It
    holds for the unnormalised flow with one fixed bandwidth in the kernel of the flow and of the MMD.

    Args:
        step_size: epsilon >= 0.
        num_steps: L >= 0.
        bandwidth: sigma > 0.
        score_norm: c >= 0, the largest norm of the value's gradient along the way.
        alpha: Temperature, positive.

    Returns:
        The bound. MMD^2 itself is at most 2, so that larger bounds say nothing.

    Raises:
        TypeError: `num_steps` is not an int.
        ValueError: A number is out of range.

    Source:
        arXiv 2604.14265, the transport-budget bound.

    Example:
        >>> round(mmd_bound(step_size=0.1, num_steps=2, bandwidth=1.0, score_norm=1.0, alpha=1.0), 4)
        0.3898
    """
    NON_NEGATIVE.check("step_size", step_size)
    COUNT.check("num_steps", num_steps)
    POSITIVE.check("bandwidth", bandwidth)
    NON_NEGATIVE.check("score_norm", score_norm)
    POSITIVE.check("alpha", alpha)
    lipschitz = 1 / (bandwidth * math.sqrt(math.e))
    return 2 * step_size * num_steps * lipschitz * (score_norm / alpha + lipschitz)


@torch.no_grad()
def cap_kl(logits: Tensor, direction: Tensor, max_kl: float | Tensor, candidate_mask: Tensor | None = None) -> Tensor:
    """Largest scale s in [0, 1] with KL(softmax(logits + s * direction) || softmax(logits)) <= max_kl.

    Along a ray of logits the divergence grows with s (its derivative is s times the variance of the direction), so that
    bisection finds the scale. The end of the interval that satisfies the cap is returned, a few roundings below it, so
    that a divergence measured afterwards does not exceed `max_kl` either; for that the direction's largest entry should
    be about zero, as `simplex_flow` has it, or adding the scaled direction rounds more than this allows for. A cap
    below rounding (about 1e-6 in float32) moves nothing.

    Args:
        logits: Reference logits, [..., K].
        direction: Displacement of the logits at scale 1, [..., K].
        max_kl: The cap in nats, >= 0; one number, or one per row, [...].
        candidate_mask: Which entries are candidates, [..., K]; None takes all.

    Returns:
        The scale, [...], without a gradient; at least float32. 1 for rows without a candidate.

    Raises:
        ValueError: Shapes do not agree, a candidate's direction is not finite, or `max_kl` is out of range.

    Example:
        >>> logits, direction = torch.zeros(2), torch.tensor([4.0, 0.0])
        >>> scale = cap_kl(logits, direction, max_kl=0.1)
        >>> scale, kl_divergence(logits + scale * direction, logits)
        (tensor(0.2359), tensor(0.1000))
    """
    check_shape("direction", direction, logits.shape, "logits")
    if isinstance(max_kl, Tensor):
        check_shape("max_kl", max_kl, logits.shape[:-1], "the rows of logits")
        check_finite("max_kl", max_kl, per_token=True)
    else:
        NON_NEGATIVE.check("max_kl", max_kl)
    mask = as_mask("candidate_mask", candidate_mask, logits, "logits")
    check_logits("logits", logits, mask)
    dtype = working_dtype(logits, direction)
    direction = torch.where(mask, direction.to(dtype), 0.0)
    check_finite("direction", direction, per_token=True)
    direction = below_max(direction, mask)
    log_q = masked_log_softmax(logits.to(dtype), mask)
    eps = torch.finfo(dtype).eps
    # The rounding of a divergence grows with the log-probabilities that it subtracts.
    limit = max_kl - 4 * eps * (1 + torch.where(log_q > -torch.inf, -log_q, 0.0).amax(dim=-1))

    def allowed(scale: Tensor) -> Tensor:
        return _kl(torch.log_softmax(log_q + scale.unsqueeze(-1) * direction, dim=-1), log_q) <= limit

    still = ~direction.any(dim=-1)
    high = torch.ones_like(limit)
    low = (allowed(high) | still).to(dtype)
    for _ in range(_BISECTIONS[dtype]):
        middle = (low + high) / 2
        inside = allowed(middle)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return low
