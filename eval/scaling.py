# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What the step budget buys: baselines, transport at every L, and the random-direction control on the same problems."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from eval.report import Row, mean_and_error
from eval.sampling import Samples

Sampler = Callable[..., Samples]


@dataclass
class Scaling:
    """Rows of a budget table, with the per-problem scores behind them.

    Attributes:
        rows: The table.
        scores: `[B]` per method, for paired differences.
        curves: Rows with L, by label.
        chosen_steps: L chosen on validation problems.
    """

    rows: list[Row] = field(default_factory=list)
    scores: dict[str, Tensor] = field(default_factory=dict)
    curves: dict[str, list[Row]] = field(default_factory=dict)
    chosen_steps: int = 0

    def add(self, method: str, scores: Tensor, samples: Samples, n: int, *, steps: int | None = None) -> Row:
        """Adds a row; the cost is that of `n` responses per problem."""
        accuracy, error = mean_and_error(scores)
        share = n / samples.correct.shape[1]
        tokens = float(samples.num_tokens.sum(dim=-1).mean()) * share
        kl = samples.kl if steps else None
        row = Row(method, accuracy, error, tokens, samples.seconds * share, steps, n, kl)
        self.rows.append(row)
        self.scores[method] = scores
        return row

    def row(self, method: str) -> Row:
        """Returns the row of a method."""
        return next(row for row in self.rows if row.method == method)


def measure(
    test: Sampler,
    validation: Sampler,
    *,
    steps: Sequence[int],
    num_particles: int,
    num_baseline: int = 8,
    validation_samples: int = 2,
    compute_matched: int | None = None,
    sampling: dict[str, Any] | None = None,
) -> Scaling:
    """Measures every method on one set of test problems.

    The accuracy of a single response is the mean over the N that are drawn anyway: the same expectation as one draw per
    problem, with less noise.

    Args:
        test: `sample` bound to the test problems; called with `num_samples` and generation arguments.
        validation: The same on validation problems, which choose L.
        steps: The budgets L, 0 included or not.
        num_particles: N, the particles of every transported row.
        num_baseline: Responses of the votes and best-of rows of the base, which are given at N as well.
        validation_samples: Responses per validation problem.
        compute_matched: M of the best-of-M whose cost matches N transported particles; 2 N if left out, for a value
            with a second forward per token.
        sampling: Further arguments of every sampled run.

    Returns:
        A `Scaling`.
    """
    n, result, options = num_particles, Scaling(), sampling or {}
    budgets = sorted({0, *steps})
    result.chosen_steps = best = _choose_steps(validation, budgets, validation_samples, options)
    base = _baseline_rows(result, test, (n, num_baseline), compute_matched or 2 * n, options)
    _transport_rows(result, test, base.take(n), [length for length in budgets if length > 0], n, options)
    control = test(
        num_samples=n,
        transport_steps=best,
        do_sample=True,
        with_values=True,
        control="random",
        description="random control",
        **options,
    )
    result.add(f"random direction, L={best}", control.single(), control, 1, steps=best)
    moved = test(num_samples=1, transport_steps=best, do_sample=False, description=f"VGF greedy, L={best}")
    result.add(f"VGF greedy, L={best}", moved.single(), moved, 1, steps=best)
    return result


def _choose_steps(validation: Sampler, budgets: Sequence[int], num_samples: int, options: dict[str, Any]) -> int:
    """Returns the L of the best single response on validation problems."""
    accuracy = {}
    for length in (length for length in budgets if length > 0):
        samples = validation(
            num_samples=num_samples,
            transport_steps=length,
            do_sample=True,
            description=f"validation, L={length}",
            **options,
        )
        accuracy[length] = float(samples.single().mean())
    return max(accuracy, key=lambda length: accuracy[length])


def _baseline_rows(
    result: Scaling, test: Sampler, counts: tuple[int, int], compute_matched: int, options: dict[str, Any]
) -> Samples:
    """Adds what the base does without transport; returns its samples."""
    most = max(counts)
    greedy = test(num_samples=1, transport_steps=0, do_sample=False, description="greedy")
    result.add("greedy", greedy.single(), greedy, 1)
    cool = test(num_samples=most, transport_steps=0, do_sample=True, temperature=0.7, description="T=0.7", **options)
    result.add("sampled, T=0.7", cool.single(), cool, 1)
    result.add(f"majority@{most}, T=0.7", cool.majority(), cool, most)
    base = test(
        num_samples=max(most, compute_matched),
        transport_steps=0,
        do_sample=True,
        with_values=True,
        description="base",
        **options,
    )
    result.add("sampled, T=1", base.single(), base, 1)
    for count in sorted(set(counts)):
        result.add(f"majority@{count}", base.take(count).majority(), base, count)
    for count in sorted({*counts, compute_matched}):
        result.add(f"best-of-{count} by value", base.take(count).best_of_n(), base, count)
    result.add(f"pass@{most} (oracle)", base.take(most).any_correct(), base, most)
    return base


def _transport_rows(
    result: Scaling, test: Sampler, base: Samples, budgets: Sequence[int], n: int, options: dict[str, Any]
) -> None:
    labels = ("VGF, one particle", f"VGF, best of {n} by value", f"VGF, majority of {n}")
    curves: dict[str, list[Row]] = {label: [] for label in labels}
    for length in (0, *budgets):
        samples = base
        if length > 0:
            samples = test(
                num_samples=n,
                transport_steps=length,
                do_sample=True,
                with_values=True,
                description=f"VGF, L={length}",
                **options,
            )
        scores = (samples.single(), samples.best_of_n(), samples.majority())
        for label, values, count in zip(labels, scores, (1, n, n), strict=True):
            curves[label].append(result.add(f"{label}, L={length}", values, samples, count, steps=length))
    result.curves = curves
