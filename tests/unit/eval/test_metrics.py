# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Metrics against values worked out by hand, brute force, or simulation."""

import itertools
import math

import pytest
import torch

from eval.metrics import (
    best_of_n_kl,
    bootstrap_interval,
    difference_over_runs,
    distinct_n,
    mean_and_error,
    paired_difference,
    pass_at_k,
    turn_over,
)


def test_mean_and_error_by_hand() -> None:
    # Deviations of 1, 2, 6 from 3: -2, -1, 3; variance (4 + 1 + 9) / 2 = 7.
    mean, error = mean_and_error(torch.tensor([1.0, 2.0, 6.0]))
    assert (mean, error) == (3.0, pytest.approx(math.sqrt(7 / 3)))
    assert math.isnan(mean_and_error(torch.tensor([1.0]))[1])
    with pytest.raises(ValueError, match="`per_problem` is empty"):
        mean_and_error(torch.tensor([]))


def test_paired_difference_forgets_what_both_share() -> None:
    difficulty = torch.randn(400)
    first, second = difficulty + 0.1, difficulty
    found = paired_difference(first, second)
    assert found.mean == pytest.approx(0.1, abs=1e-6)
    assert found.standard_error < 1e-6
    gaps = torch.tensor([1.0, 2.0, 6.0])
    found = paired_difference(gaps + 10, torch.full((3,), 10.0), confidence=0.95)
    error = math.sqrt(7 / 3)
    assert found.standard_error == pytest.approx(error)
    assert (found.low, found.high) == (
        pytest.approx(3 - 1.959964 * error, rel=1e-4),
        pytest.approx(3 + 1.959964 * error),
    )


def test_paired_difference_refuses_other_problems() -> None:
    with pytest.raises(ValueError, match=r"the same problems, got \(2,\) and \(3,\)"):
        paired_difference(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="`confidence` must be between 0 and 1, got 1"):
        paired_difference(torch.zeros(2), torch.zeros(2), confidence=1)


@pytest.mark.parametrize(("runs", "quantile"), [(2, 12.7062), (3, 4.3027), (5, 2.7764), (31, 2.0423)])
def test_few_runs_widen_the_interval(runs: int, quantile: float) -> None:
    first = torch.arange(runs, dtype=torch.float64)
    found = difference_over_runs(first + 2, torch.zeros(runs, dtype=torch.float64))
    error = float(first.std()) / math.sqrt(runs)
    assert found.mean == pytest.approx(2 + (runs - 1) / 2)
    assert (found.mean - found.low, found.high - found.mean) == (pytest.approx(quantile * error, rel=1e-4),) * 2
    alone = difference_over_runs(torch.tensor([0.5]), torch.tensor([0.25]))
    assert alone.mean == 0.25
    assert math.isnan(alone.low)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    normal, bootstrap = 0, 0
    for trial in range(200):
        values = torch.rand(60, generator=generator, dtype=torch.float64)
        found = paired_difference(values, torch.zeros(60, dtype=torch.float64), confidence=0.9)
        normal += found.low < 0.5 < found.high
        found = bootstrap_interval(values, confidence=0.9, num_resamples=200, seed=trial)
        bootstrap += found.low < 0.5 < found.high
    # Binomial error of 200 trials at 0.9 is 0.021.
    assert abs(normal / 200 - 0.9) < 0.065
    assert abs(bootstrap / 200 - 0.9) < 0.085


def test_bootstrap_error_is_that_of_the_mean_and_repeats() -> None:
    values = torch.rand(200)
    found = bootstrap_interval(values, num_resamples=4000, seed=1)
    assert found.standard_error == pytest.approx(mean_and_error(values)[1], rel=0.06)
    assert found == bootstrap_interval(values, num_resamples=4000, seed=1)
    with pytest.raises(ValueError, match="at least one problem and one resample, got 0 and 2000"):
        bootstrap_interval(torch.tensor([]))


@pytest.mark.parametrize("n", [1, 3, 5])
def test_pass_at_k_is_the_average_over_all_subsets(n: int) -> None:
    for right in range(n + 1):
        correct = [1.0] * right + [0.0] * (n - right)
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(correct, k))
            expected = sum(max(subset) for subset in subsets) / len(subsets)
            assert float(pass_at_k(torch.tensor([correct]), k)) == pytest.approx(expected)


def test_pass_at_k_refuses_what_it_cannot_count() -> None:
    with pytest.raises(ValueError, match="`k` must be from 1 to the 2 samples of a problem, got 3"):
        pass_at_k(torch.zeros(1, 2), 3)
    with pytest.raises(ValueError, match="0 and 1 alone"):
        pass_at_k(torch.tensor([[0.5, 1.0]]), 1)


def test_distinct_n_by_hand() -> None:
    texts = [["a", "b", "a"], ["a", "b"]]
    assert distinct_n(texts, 1) == 2 / 5
    assert distinct_n(texts, 2) == 2 / 3  # ab, ba, ab
    assert distinct_n(texts, 3) == 1.0
    assert math.isnan(distinct_n(texts, 4))
    with pytest.raises(ValueError, match="`n` must be at least 1, got 0"):
        distinct_n(texts, 0)


def test_best_of_n_kl_is_exact_for_a_continuous_reward() -> None:
    # The density of the best of n under the uniform quantile u is n u^(n-1); its KL to the uniform is the formula.
    n = 4
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = n * u ** (n - 1)
    assert best_of_n_kl(n) == pytest.approx(float((density * density.log()).mean()), abs=1e-4)


def test_turn_over_needs_falling_gold_and_a_proxy_that_does_not_fall() -> None:
    rise = [torch.full((50,), x) + 0.01 * torch.randn(50) for x in (0.0, 1.0, 2.0)]
    fall = [rise[0], rise[2], rise[1]]
    assert turn_over(fall, rise).over_optimized
    assert turn_over(fall, rise).index == 1
    assert not turn_over(fall, fall).over_optimized
    assert not turn_over(rise, rise).over_optimized
    assert turn_over(fall).over_optimized
    assert math.isnan(turn_over(fall).proxy_gained)
    with pytest.raises(ValueError, match="got 3 and 2"):
        turn_over(rise, rise[:2])


def test_a_fall_within_noise_is_no_turn_over() -> None:
    noisy = [torch.randn(20) for _ in range(2)]
    noisy[1] = noisy[0] - 0.01 + torch.randn(20)
    assert not turn_over([noisy[0], noisy[1] - noisy[1].mean() + noisy[0].mean() - 0.05]).over_optimized
