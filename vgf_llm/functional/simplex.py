# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Value gradient flow on the next-token simplex, and the candidates it acts on."""

import math

import torch
from torch import Tensor

from ._checks import COUNT, NON_NEGATIVE, Range, check_finite, check_shape, checks_values
from ._masking import as_mask, below_max, candidate_mask, masked_log_softmax, working_dtype
from .budget import cap_kl

_ALPHA = Range(0, open_low=True, hint="None gives the tilt without a target.")
_STEP_TO_TARGET = Range(0, 1, open_low=True, hint="A longer step overshoots the target.")
_TOP_K, _PROBABILITY = Range(1, integer=True), Range(0, 1)
_MAX_KL = Range(0, hint="None switches the cap off.")


def simplex_flow(
    logits: Tensor,
    q_values: Tensor,
    *,
    step_size: float,
    num_steps: int,
    alpha: float | None = None,
    candidate_mask: Tensor | None = None,
    max_kl: float | None = None,
) -> Tensor:
    """Moves a next-token distribution up its values for a budget of steps.

    With p = softmax(l) over the candidates and mu the start, one step of size epsilon is the natural gradient
        l <- l + epsilon (g - E_p g).
    Without `alpha` g = Q, ascent of E_p Q: a tilt that grows with the budget and has no end. With `alpha`
    g = Q / alpha + log mu - log p, descent of KL(p || pi*) to the Boltzmann target pi* = mu exp(Q / alpha) / Z.

    For a fixed Q the flow has a closed form, and its cost does not depend on `num_steps`: without `alpha` it is
    mu exp(L epsilon Q) / Z. With `alpha` a step is log p <- (1 - epsilon) log p + epsilon log pi* + const, the
    geometric path from mu to pi*: log p_L = (1 - w) log mu + w log pi* + const with w = 1 - (1 - epsilon)^L, and needs
    epsilon <= 1.

    It runs once per decoded token, and looks at the values of its tensors only under `value_checks(True)`.

    Args:
        logits: Logits of the candidates under the reference, [..., K].
        q_values: Q of each candidate, [..., K].
        step_size: epsilon >= 0; with `alpha` in (0, 1].
        num_steps: L >= 0; 0 only normalises.
        alpha: Temperature of the Boltzmann target, positive; None for the tilt.
        candidate_mask: Which entries are candidates, [..., K]; None takes all. What stands elsewhere is never read.
        max_kl: Cap on KL(result || reference) over the candidates, in nats. Where the flow went further, its whole
            displacement of the logits is scaled back along the ray to the reference, see `cap_kl`.

    Returns:
        Log-probabilities, normalised over the candidates, [..., K]; -inf at the others.

    Raises:
        TypeError: A setting is no number.
        ValueError: Shapes do not agree, a number is out of range, or, where values are checked, logits or Q of a
            candidate are not finite or a row has no candidate.

    Source:
        arXiv 2604.14265: discrete gradient flow of KL(q || pi*), here on categorical distributions.

    Example:
        >>> logits, q_values = torch.zeros(2), torch.tensor([1.0, 0.0])
        >>> simplex_flow(logits, q_values, step_size=0.5, num_steps=2).exp()  # sigmoid(1)
        tensor([0.7311, 0.2689])
    """
    check_shape("q_values", q_values, logits.shape, "logits")
    COUNT.check("num_steps", num_steps)
    NON_NEGATIVE.check("step_size", step_size)
    if alpha is not None:
        _ALPHA.check("alpha", alpha)
        _STEP_TO_TARGET.check("step_size", step_size)
    if max_kl is not None:
        _MAX_KL.check("max_kl", max_kl)
    mask = as_mask("candidate_mask", candidate_mask, logits, "logits")
    dtype = working_dtype(logits, q_values)
    q_values = torch.where(mask, q_values.to(dtype), 0.0)
    if checks_values(per_token=True):
        if not bool(mask.any(dim=-1).all()):
            raise ValueError("candidate_mask must leave at least one candidate in each row; candidate_set always does.")
        fix = "mark entries of probability zero with candidate_mask instead of -inf"
        check_finite("logits", torch.where(mask, logits, 0.0), fix, per_token=True)
        check_finite("q_values", q_values, per_token=True)
    time = _fisher_time(step_size, num_steps, to_target=alpha is not None) / (1.0 if alpha is None else alpha)
    displacement = below_max(q_values, mask) * time
    fix = "lower step_size, num_steps or the scale of q_values"
    check_finite("the displacement of the logits", displacement, fix, per_token=True)
    if max_kl is None:
        return masked_log_softmax(logits + displacement, mask).to(logits.dtype)
    log_mu = masked_log_softmax(logits.to(dtype), mask)
    displacement = displacement * cap_kl(log_mu, displacement, max_kl, mask).unsqueeze(-1)
    return torch.log_softmax(log_mu + displacement, dim=-1).to(logits.dtype)


def _fisher_time(step_size: float, num_steps: int, *, to_target: bool) -> float:
    """The factor of Q (or Q / alpha) that num_steps fisher steps add to the logits."""
    if not to_target:
        return step_size * num_steps
    if num_steps == 0 or step_size == 1.0:
        return float(num_steps > 0)
    # 1 - (1 - step_size)^num_steps without cancellation for small steps.
    return -math.expm1(num_steps * math.log1p(-step_size))


def simplex_direction(
    logits: Tensor,
    q_values: Tensor,
    candidate_mask: Tensor,
    *,
    alpha: float | None = None,
    reference: Tensor | None = None,
) -> Tensor:
    """The velocity of `simplex_flow` at one point, for values that change along the way.

    g - E_p g, where without `alpha` g = Q and with it g = Q / alpha + log mu - log p.

    Args:
        logits: Logits of the candidates, [..., K].
        q_values: Q of each candidate, [..., K].
        candidate_mask: Which entries are candidates, [..., K]; what stands elsewhere is never read.
        alpha: Temperature of the Boltzmann target, positive; None for the tilt.
        reference: log mu of the candidates, [..., K]; needed with `alpha`.

    Returns:
        The velocity of the logits, [..., K], 0 at masked entries.

    Raises:
        ValueError: Shapes do not agree, `alpha` comes without `reference`, or Q of a candidate is not finite.

    Source:
        arXiv 2604.14265: discrete gradient flow of KL(q || pi*), here on categorical distributions.

    Example:
        >>> simplex_direction(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([True, True]))
        tensor([ 0.5000, -0.5000])
    """
    mask = as_mask("candidate_mask", candidate_mask, logits, "logits")
    check_shape("q_values", q_values, logits.shape, "logits")
    log_p = torch.where(mask, masked_log_softmax(logits, mask), 0.0)
    gain = torch.where(mask, q_values.to(working_dtype(logits, q_values)), 0.0)
    check_finite("q_values", gain)
    if alpha is not None:
        _ALPHA.check("alpha", alpha)
        if reference is None:
            raise ValueError("alpha needs `reference`, the log-probabilities of the candidates under the base.")
        log_mu = torch.where(mask, masked_log_softmax(reference, mask), 0.0)
        gain = gain / alpha + log_mu - log_p
    probs = torch.where(mask, log_p.exp(), 0.0)
    return torch.where(mask, gain - (probs * gain).sum(dim=-1, keepdim=True), 0.0)


def candidate_set(logits: Tensor, *, top_k: int, min_prob: float) -> tuple[Tensor, Tensor]:
    """The tokens that transport may choose: the reference's top-k with enough probability.

    It runs once per decoded token, and looks at the values of its tensors only under `value_checks(True)`.

    Args:
        logits: Next-token logits of the reference, [..., V]; -inf is probability zero.
        top_k: K, the number of candidates kept; a vocabulary smaller than this is kept whole.
        min_prob: Least probability of a candidate under the softmax over all V tokens, in [0, 1]. The most likely token
            is a candidate whatever its probability.

    Returns:
        Token ids [..., K], most likely first, and a bool mask [..., K], False where the token is not a candidate.

    Raises:
        TypeError: `top_k` is not an int.
        ValueError: `top_k` < 1, `min_prob` outside [0, 1], or, where values are checked, a row of logits with NaN, +inf
            or nothing finite.

    Example:
        >>> candidate_set(torch.tensor([0.0, 3.0, 2.0, -5.0]), top_k=3, min_prob=0.1)
        (tensor([1, 2, 0]), tensor([ True,  True, False]))
    """
    _TOP_K.check("top_k", top_k)
    _PROBABILITY.check("min_prob", min_prob)
    logits = logits.to(working_dtype(logits))
    # torch normalises a vocabulary in one pass with log_softmax, twice as fast as with logsumexp.
    log_probs = torch.log_softmax(logits, dim=-1)
    values, ids = logits.topk(min(top_k, logits.shape[-1]), dim=-1, sorted=True)
    top_log_probs = log_probs.gather(-1, ids)
    # One number finds every bad row: NaN stays itself, and a row with +inf or with -inf alone has no other normaliser.
    check_finite(
        "the log-normaliser of logits",
        values[..., 0] - top_log_probs[..., 0],
        "a row may hold -inf, but no NaN or +inf, and not only -inf",
        per_token=True,
    )
    return ids, candidate_mask(top_log_probs, min_prob)
