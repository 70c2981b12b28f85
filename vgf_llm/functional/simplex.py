# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Value gradient flow on the next-token simplex, and the candidates it acts on."""

import math
from typing import Literal

import torch
from torch import Tensor

from ._checks import check_count, check_finite, check_number, check_shape
from ._masking import as_mask, below_max, masked_log_softmax, working_dtype
from .budget import cap_kl

Metric = Literal["fisher", "euclidean"]


def simplex_flow(
    logits: Tensor,
    q_values: Tensor,
    *,
    step_size: float,
    num_steps: int,
    metric: Metric = "fisher",
    alpha: float | None = None,
    candidate_mask: Tensor | None = None,
    max_kl: float | None = None,
) -> Tensor:
    """Moves a next-token distribution up its values for a budget of steps.

    With p = softmax(l) over the candidates and mu the start, one step of size epsilon is
        fisher:    l <- l + epsilon (g - E_p g)        (natural gradient)
        euclidean: l <- l + epsilon p (g - E_p g)      (gradient with respect to the logits)
    Without `alpha` g = Q, ascent of E_p Q: a tilt that grows with the budget and has no end. With `alpha`
    g = Q / alpha + log mu - log p, descent of KL(p || pi*) to the Boltzmann target pi* = mu exp(Q / alpha) / Z.

    For a fixed Q the fisher flow has a closed form, and its cost does not depend on `num_steps`: without `alpha` it is
    mu exp(L epsilon Q) / Z. With `alpha` a step is log p <- (1 - epsilon) log p + epsilon log pi* + const, the
    geometric path from mu to pi*: log p_L = (1 - w) log mu + w log pi* + const with w = 1 - (1 - epsilon)^L, and needs
    epsilon <= 1.

    Args:
        logits: Logits of the candidates under the reference, [..., K].
        q_values: Q of each candidate, [..., K].
        step_size: epsilon >= 0; with `alpha` and the fisher metric in (0, 1].
        num_steps: L >= 0; 0 only normalises.
        metric: "fisher" or "euclidean".
        alpha: Temperature of the Boltzmann target, positive; None for the tilt.
        candidate_mask: Which entries are candidates, [..., K]; None takes all. What stands elsewhere is never read.
        max_kl: Cap on KL(result || reference) over the candidates, in nats. Where the flow went further, its whole
            displacement of the logits is scaled back along the ray to the reference, see `cap_kl`.

    Returns:
        Log-probabilities, normalised over the candidates, [..., K]; -inf at the others.

    Raises:
        TypeError: `num_steps` is not an int.
        ValueError: Shapes do not agree, logits or Q of a candidate are not finite, a row has no candidate, a number is
            out of range, or `metric` is unknown.

    Source:
        arXiv 2604.14265: discrete gradient flow of KL(q || pi*), here on categorical distributions.

    Example:
        >>> logits, q_values = torch.zeros(2), torch.tensor([1.0, 0.0])
        >>> simplex_flow(logits, q_values, step_size=0.5, num_steps=2).exp()  # sigmoid(1)
        tensor([0.7311, 0.2689])
    """
    check_shape("q_values", q_values, logits.shape, "logits")
    check_count("num_steps", num_steps)
    check_number("step_size", step_size)
    if metric not in ("fisher", "euclidean"):
        raise ValueError(f"metric must be 'fisher' or 'euclidean', got {metric!r}.")
    if alpha is not None:
        check_number("alpha", alpha, low_open=True, fix="None gives the tilt without a target")
        if metric == "fisher":
            check_number("step_size", step_size, high=1.0, low_open=True, fix="a longer step overshoots the target")
    if max_kl is not None:
        check_number("max_kl", max_kl, fix="None switches the cap off")
    if metric == "fisher" and max_kl is None:
        time = _fisher_time(step_size, num_steps, to_target=alpha is not None) / (1.0 if alpha is None else alpha)
        result = _tilted(logits, q_values, time, candidate_mask)
        if result is not None:
            return result
    mask = as_mask("candidate_mask", candidate_mask, logits, "logits")
    if not bool(mask.any(dim=-1).all()):
        raise ValueError("candidate_mask must leave at least one candidate in each row; candidate_set always does.")
    dtype = working_dtype(logits, q_values)
    q_values = torch.where(mask, q_values.to(dtype), 0.0)
    reference = torch.where(mask, logits.to(dtype), 0.0)
    check_finite("logits", reference, "mark entries of probability zero with candidate_mask instead of -inf")
    check_finite("q_values", q_values)
    log_mu = masked_log_softmax(reference, mask)
    gain = below_max(q_values, mask) if alpha is None else below_max(q_values, mask) / alpha
    if metric == "fisher":
        displacement = gain * _fisher_time(step_size, num_steps, to_target=alpha is not None)
    else:
        displacement = _euclidean_displacement(log_mu, gain, step_size, num_steps, to_target=alpha is not None)
    check_finite("the displacement of the logits", displacement, "lower step_size, num_steps or the scale of q_values")
    if max_kl is not None:
        displacement = displacement * cap_kl(log_mu, displacement, max_kl, mask).unsqueeze(-1)
    return torch.log_softmax(log_mu + displacement, dim=-1).to(logits.dtype)


def _tilted(logits: Tensor, q_values: Tensor, time: float, mask: Tensor | None) -> Tensor | None:
    """log softmax of logits + time * Q over the candidates [..., K], or None unless the input is known to be good.

    The closed form in as few passes as it takes. Whatever is wrong with the input shows in the result, so that only the
    result is looked at here and the caller finds out what it was.
    """
    q_values = q_values.to(working_dtype(logits, q_values))
    if mask is not None:
        if mask.shape != logits.shape:
            return None
        mask = mask.bool()
        q_values = q_values.masked_fill(~mask, -torch.inf)
    largest = q_values.amax(dim=-1, keepdim=True)
    if not math.isfinite(largest.detach().sum()):  # a row without candidates among others
        return None
    # A common offset of Q would take digits.
    tilted = torch.add(logits, q_values - largest, alpha=time)
    if mask is not None:
        tilted = tilted.masked_fill(~mask, -torch.inf)
    result = torch.log_softmax(tilted, dim=-1)
    good = math.isfinite(result.detach().sum()) if mask is None else torch.equal(result > -torch.inf, mask)
    return result.to(logits.dtype) if good else None


def _fisher_time(step_size: float, num_steps: int, *, to_target: bool) -> float:
    """The factor of Q (or Q / alpha) that num_steps fisher steps add to the logits."""
    if not to_target:
        return step_size * num_steps
    if num_steps == 0 or step_size == 1.0:
        return float(num_steps > 0)
    # 1 - (1 - step_size)^num_steps without cancellation for small steps.
    return -math.expm1(num_steps * math.log1p(-step_size))


def _euclidean_displacement(
    log_mu: Tensor, gain: Tensor, step_size: float, num_steps: int, *, to_target: bool
) -> Tensor:
    """l_L - l_0 of the euclidean flow; zero at masked entries, whose probability is zero."""
    displacement = torch.zeros_like(log_mu)
    for _ in range(num_steps):
        probs = torch.softmax(log_mu + displacement, dim=-1)
        # log mu - log p is minus the displacement up to a constant, and constants drop out of g - E_p g.
        g = gain - displacement if to_target else gain
        displacement = displacement + step_size * probs * (g - (probs * g).sum(dim=-1, keepdim=True))
    return displacement


def simplex_direction(
    logits: Tensor,
    q_values: Tensor,
    candidate_mask: Tensor,
    *,
    metric: Metric = "fisher",
    alpha: float | None = None,
    reference: Tensor | None = None,
    entropy: bool = True,
) -> Tensor:
    """The velocity of `simplex_flow` at one point, for values that change along the way.

    fisher: g - E_p g; euclidean: p (g - E_p g). Without `alpha` g = Q, with it g = Q / alpha + log mu - log p. Langevin
    dynamics have the entropy in their noise, and g = Q / alpha + log mu there (`entropy=False`).

    Args:
        logits: Logits of the candidates, [..., K].
        q_values: Q of each candidate, [..., K].
        candidate_mask: Which entries are candidates, [..., K]; what stands elsewhere is never read.
        metric: "fisher" or "euclidean".
        alpha: Temperature of the Boltzmann target, positive; None for the tilt.
        reference: log mu of the candidates, [..., K]; needed with `alpha`.
        entropy: Whether g holds - log p.

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
    if metric not in ("fisher", "euclidean"):
        raise ValueError(f"metric must be 'fisher' or 'euclidean', got {metric!r}.")
    mask = as_mask("candidate_mask", candidate_mask, logits, "logits")
    check_shape("q_values", q_values, logits.shape, "logits")
    log_p = torch.where(mask, masked_log_softmax(logits, mask), 0.0)
    gain = torch.where(mask, q_values.to(working_dtype(logits, q_values)), 0.0)
    check_finite("q_values", gain)
    if alpha is not None:
        check_number("alpha", alpha, low_open=True, fix="None gives the tilt without a target")
        if reference is None:
            raise ValueError("alpha needs `reference`, the log-probabilities of the candidates under the base.")
        log_mu = torch.where(mask, masked_log_softmax(reference, mask), 0.0)
        gain = gain / alpha + log_mu - (log_p if entropy else 0.0)
    probs = torch.where(mask, log_p.exp(), 0.0)
    centred = torch.where(mask, gain - (probs * gain).sum(dim=-1, keepdim=True), 0.0)
    return centred if metric == "fisher" else probs * centred


def candidate_set(logits: Tensor, *, top_k: int, min_prob: float) -> tuple[Tensor, Tensor]:
    """The tokens that transport may choose: the reference's top-k with enough probability.

    Args:
        logits: Next-token logits of the reference, [..., V]; -inf is probability zero.
        top_k: K, the number of candidates kept; a vocabulary smaller than this is kept whole.
        min_prob: Least probability of a candidate under the softmax over all V tokens, in [0, 1]. The most likely token
            is a candidate whatever its probability.

    Returns:
        Token ids [..., K], most likely first, and a bool mask [..., K], False where the token is not a candidate.

    Raises:
        TypeError: `top_k` is not an int.
        ValueError: `top_k` < 1, `min_prob` outside [0, 1], or a row of logits with NaN, +inf or nothing finite.

    Example:
        >>> candidate_set(torch.tensor([0.0, 3.0, 2.0, -5.0]), top_k=3, min_prob=0.1)
        (tensor([1, 2, 0]), tensor([ True,  True, False]))
    """
    check_count("top_k", top_k, low=1)
    check_number("min_prob", min_prob, high=1.0)
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
    )
    mask = (top_log_probs.exp() >= min_prob) & (values > -torch.inf)
    mask[..., 0] = True
    return ids, mask
