# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What is computed from samples: means with errors, paired differences, pass@k, diversity, and where gold turns over.

Everything is a function of plain tensors, so that each has a test against a value worked out by hand.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """An estimate with its standard error and a confidence interval.

    Attributes:
        mean: The estimate.
        standard_error: Of the estimate.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    mean: float
    standard_error: float
    low: float
    high: float


def mean_and_error(per_problem: Tensor) -> tuple[float, float]:
    """Returns the mean of `[B]` and its standard error, which is NaN for a single problem.

    Example:
        >>> mean, error = mean_and_error(torch.tensor([0.0, 1.0, 0.0, 1.0]))
        >>> mean, round(error, 4)
        (0.5, 0.2887)
    """
    values = per_problem.double()
    if len(values) == 0:
        raise ValueError("`per_problem` is empty: a mean needs at least one problem.")
    error = float(values.std(unbiased=True) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), error


def paired_difference(first: Tensor, second: Tensor, *, confidence: float = 0.95) -> Interval:
    """Compares two methods on the same problems; their errors share what a problem's difficulty contributes.

    Args:
        first: `[B]`.
        second: `[B]`, the same problems in the same order.
        confidence: Of the normal interval.

    Returns:
        The mean of `first - second` with its paired standard error and interval.

    Raises:
        ValueError: For scores of different problems, or a confidence outside (0, 1).

    Example:
        >>> result = paired_difference(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0, 0.0]))
        >>> result.mean, round(result.standard_error, 4)
        (0.5, 0.2887)
    """
    if first.shape != second.shape or first.dim() != 1:
        raise ValueError(
            f"`first` and `second` must be [B] over the same problems, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )
    mean, error = mean_and_error(first.double() - second.double())
    reach = _quantile(confidence) * error
    return Interval(mean, error, mean - reach, mean + reach)


def difference_over_runs(first: Tensor, second: Tensor, *, confidence: float = 0.95) -> Interval:
    """Compares two methods with training runs as the unit, so that the interval holds what seeds change.

    Args:
        first: `[S]`, the score of each run.
        second: `[S]`, of the runs of the same seeds in the same order.
        confidence: Of the interval, by Student's t with S - 1 degrees of freedom.

    Returns:
        The mean of `first - second` with its paired standard error and interval, which are NaN for a single run.

    Raises:
        ValueError: For scores of different seeds, or a confidence outside (0, 1).

    Example:
        >>> result = difference_over_runs(torch.tensor([3.0, 5.0, 4.0]), torch.tensor([1.0, 1.0, 1.0]))
        >>> round(result.mean, 2), round(result.low, 2), round(result.high, 2)
        (3.0, 0.52, 5.48)
    """
    found = paired_difference(first, second, confidence=confidence)
    reach = student_quantile(confidence, len(first) - 1) * found.standard_error if len(first) > 1 else math.nan
    return Interval(found.mean, found.standard_error, found.mean - reach, found.mean + reach)


def bootstrap_interval(
    per_problem: Tensor, *, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Returns the mean of `[B]` with a percentile bootstrap interval over problems.

    Args:
        per_problem: `[B]`.
        confidence: Of the interval.
        num_resamples: Bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        The mean; its standard error is the bootstrap's.

    Raises:
        ValueError: Without problems or resamples, or for a confidence outside (0, 1).
    """
    values = per_problem.double()
    if len(values) == 0 or num_resamples < 1:
        raise ValueError(f"Need at least one problem and one resample, got {len(values)} and {num_resamples}.")
    _quantile(confidence)
    generator = torch.Generator().manual_seed(seed)
    # One resample at a time would be slow, all at once large: a block holds about a million draws.
    block = max(1, 1_000_000 // len(values))
    means = []
    for start in range(0, num_resamples, block):
        rows = min(block, num_resamples - start)
        picks = torch.randint(len(values), (rows, len(values)), generator=generator)
        means.append(values[picks].mean(dim=-1))
    resampled = torch.cat(means)
    tail = (1 - confidence) / 2
    low, high = torch.quantile(resampled, torch.tensor([tail, 1 - tail], dtype=resampled.dtype)).tolist()
    error = float(resampled.std(unbiased=True)) if num_resamples > 1 else math.nan
    return Interval(float(values.mean()), error, low, high)


def pass_at_k(correct: Tensor, k: int) -> Tensor:
    """Estimates pass@k without bias from N >= k samples: 1 - C(N - c, k) / C(N, k).

    Args:
        correct: `[B, N]`, 0 or 1.
        k: Samples that a user would draw.

    Returns:
        `[B]`, in float64.

    Raises:
        ValueError: If `k` is not from 1 to N, or a score is neither 0 nor 1.

    Source:
        Chen et al., "Evaluating Large Language Models Trained on Code", 2021, arXiv 2107.03374, equation 1.

    Example:
        >>> pass_at_k(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), 2).tolist()
        [0.5]
    """
    n = correct.shape[-1]
    if not 1 <= k <= n:
        raise ValueError(f"`k` must be from 1 to the {n} samples of a problem, got {k}.")
    if not bool(((correct == 0) | (correct == 1)).all()):
        raise ValueError("`correct` must hold 0 and 1 alone: pass@k counts right answers.")
    right = correct.sum(dim=-1).long().tolist()
    return torch.tensor([1 - math.comb(n - c, k) / math.comb(n, k) for c in right], dtype=torch.float64)


def distinct_n(sequences: Sequence[Sequence[Hashable]], n: int) -> float:
    """Returns the share of n-grams that are different, over all sequences together.

    Args:
        sequences: Token sequences.
        n: Length of the n-grams.

    Returns:
        A number in (0, 1], NaN if no sequence has n tokens.

    Source:
        Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", 2016, arXiv 1510.03055.

    Example:
        >>> distinct_n([["a", "b", "a", "b"]], 2)
        0.6666666666666666
    """
    if n < 1:
        raise ValueError(f"`n` must be at least 1, got {n}.")
    grams = [tuple(tokens[i : i + n]) for tokens in sequences for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def best_of_n_kl(n: int) -> float:
    """Returns log n - (n - 1) / n, the bound on the KL that choosing the best of n samples spends, in nats.

    Source:
        Stiennon et al., 2020, arXiv 2009.01325, appendix G; an upper bound by Beirami et al., 2024, arXiv 2401.01879.

    Example:
        >>> best_of_n_kl(1)
        0.0
    """
    if n < 1:
        raise ValueError(f"`n` must be at least 1, got {n}.")
    return math.log(n) - (n - 1) / n


@dataclass(frozen=True)
class TurnOver:
    """Where more budget stops helping.

    Attributes:
        index: The point of the highest gold score.
        gold_lost: How far the last point's gold score is below the highest.
        proxy_gained: How far the proxy moves from there to the last point; NaN without a proxy.
        over_optimized: Whether gold falls by more than two standard errors while the proxy does not fall.
    """

    index: int
    gold_lost: float
    proxy_gained: float
    over_optimized: bool


def turn_over(gold: Sequence[Tensor], proxy: Sequence[Tensor] | None = None) -> TurnOver:
    """Finds the turn-over of a budget curve: the gold score's highest point, and what happens beyond it.

    Args:
        gold: Per-problem gold scores `[B]`, one tensor per point, in order of budget.
        proxy: Per-problem proxy scores `[B]`, likewise; `None` if the task has no proxy.

    Returns:
        A `TurnOver`. Errors are paired over problems. Without a proxy, falling gold alone counts.

    Raises:
        ValueError: Without points, or for curves of different lengths.

    Example:
        >>> gold = [torch.full((4,), x) for x in (0.0, 2.0, 1.0)]
        >>> result = turn_over(gold, [torch.full((4,), x) for x in (0.0, 1.0, 3.0)])
        >>> result.index, result.gold_lost, result.proxy_gained, result.over_optimized
        (1, 1.0, 2.0, True)
    """
    if not gold or (proxy is not None and len(proxy) != len(gold)):
        raise ValueError(f"`gold` needs points, and `proxy` as many: got {len(gold)} and {len(proxy or ())}.")
    means = [float(scores.double().mean()) for scores in gold]
    best = max(range(len(means)), key=means.__getitem__)
    if best == len(means) - 1:
        return TurnOver(best, 0.0, 0.0 if proxy is not None else math.nan, False)
    lost = paired_difference(gold[best], gold[-1])
    gained = math.nan
    if proxy is not None:
        gained = float(proxy[-1].double().mean() - proxy[best].double().mean())
    falls = lost.mean > 2 * lost.standard_error
    return TurnOver(best, lost.mean, gained, falls and not gained < 0)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, got {confidence!r}.")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def student_quantile(confidence: float, degrees: int) -> float:
    """The t that Student's variable stays within: with t = sqrt(n) tan(a), a has a density of cos(a)^(n - 1)."""
    count, width = 1_000_000, math.pi / 2_000_000
    mass = ((torch.arange(count, dtype=torch.float64) + 0.5) * width).cos().pow(degrees - 1).cumsum(0)
    place = int(torch.searchsorted(mass, confidence * mass[-1]))
    return math.sqrt(degrees) * math.tan((place + 1) * width)
