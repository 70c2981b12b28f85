# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Runs the methods of a table on one set of problems: every draw once, every row from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eval.methods import Method
from eval.metrics import best_of_n_kl, distinct_n, mean_and_error, pass_at_k
from eval.report import Row
from eval.sampling import Draw, Samples, distinct_tokens

Sampler = Callable[..., Samples]


@dataclass
class Scaling:
    """Rows of a table, with the per-problem scores behind them.

    Attributes:
        rows: The table.
        scores: Gold scores `[B]` per row, means over seeds, for paired differences.
        proxies: Proxy scores `[B]` per row, where the task has them.
        families: The family of each row; one with several L is a curve.
        pass_at: pass@k of the base's samples, by k, where gold is 0 or 1.
        chosen_steps: L chosen on validation problems, where one was chosen.
    """

    rows: list[Row] = field(default_factory=list)
    scores: dict[str, Tensor] = field(default_factory=dict)
    proxies: dict[str, Tensor] = field(default_factory=dict)
    families: dict[str, str] = field(default_factory=dict)
    pass_at: dict[int, tuple[float, float]] = field(default_factory=dict)
    chosen_steps: int | None = None

    def row(self, method: str) -> Row:
        """Returns the row of a method."""
        return next(row for row in self.rows if row.method == method)

    @property
    def curves(self) -> dict[str, list[Row]]:
        """Rows of every family that has more than one L, in order of L."""
        families: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.steps is not None:
                families.setdefault(self.families[row.method], []).append(row)
        return {name: sorted(rows, key=lambda row: row.steps or 0) for name, rows in families.items() if len(rows) > 1}


def measure(sampler: Sampler, methods: Sequence[Method], *, seeds: Sequence[int] = (0,)) -> Scaling:
    """Samples every draw that the methods name and scores every method.

    The score of a single response is the mean over all that were drawn: the same expectation as one draw per problem,
    with less noise. Standard errors are over problems, after the mean over seeds.

    Args:
        sampler: `sample` bound to model and task; called with a draw, `num_samples` and `seed`.
        methods: Rows.
        seeds: Seeds of the sampling.

    Returns:
        A `Scaling`.
    """
    if not methods or not seeds:
        raise ValueError(f"Need at least one method and one seed, got {len(methods)} and {len(seeds)}.")
    drawn: dict[str, list[Samples]] = {}
    for name, (draw, count) in _draws(methods).items():
        # Greedy decoding has no randomness: one seed is all seeds.
        used = seeds if draw.options.get("do_sample") else seeds[:1]
        drawn[name] = [sampler(draw=draw, num_samples=count, seed=seed) for seed in used]
    result = Scaling()
    for method in methods:
        _add(result, method, drawn[method.draw.name])
    _add_pass_at(result, drawn.get("base", []))
    return result


def responses_per_problem(methods: Sequence[Method]) -> int:
    """Returns how many responses `measure` samples for each problem and seed."""
    return sum(count for _, count in _draws(methods).values())


def _draws(methods: Sequence[Method]) -> dict[str, tuple[Draw, int]]:
    """The draws that methods name, each with the most responses that one of them needs."""
    found: dict[str, tuple[Draw, int]] = {}
    for method in methods:
        draw, count = found.get(method.draw.name, (method.draw, 1))
        if method.draw.with_values and not draw.with_values:
            draw = method.draw
        found[method.draw.name] = draw, max(count, method.num_samples, method.draws)
    return found


def choose_steps(
    sampler: Sampler, methods: Sequence[Method], *, seed: int = 0, num_samples: int = 2, selection: str = "single"
) -> int:
    """Returns the L of the best transported response on validation problems; ties go to the smaller budget.

    Args:
        sampler: `sample` bound to model and validation problems.
        methods: The methods of a plan; the draws of one particle are tried.
        seed: Seed of the sampling.
        num_samples: Responses per problem.
        selection: How one of them is chosen, see `Samples.pick`; `"single"` is their mean.

    Raises:
        ValueError: If no method transports.
    """
    tried = budget_methods(methods)
    if not tried:
        raise ValueError("Nothing to choose: no method transports one particle with L above 0.")
    scores = {}
    for method in tried:
        samples = sampler(draw=method.draw, num_samples=num_samples, seed=seed)
        scores[method.steps] = float(samples.pick(samples.gold, selection).mean())
    return max(sorted(scores, key=lambda steps: steps or 0), key=scores.__getitem__) or 0


def budget_methods(methods: Sequence[Method]) -> list[Method]:
    """Returns the methods that `choose_steps` tries: one transported particle at each L above 0."""
    tried = [m for m in methods if m.selection == "single" and m.steps and m.draw.options.get("do_sample")]
    return [m for m in tried if "control" not in m.draw.options and m.family == tried[0].family]


def _add(result: Scaling, method: Method, drawn: Sequence[Samples]) -> None:
    """Adds the row of a method, its costs those of `num_samples` responses per problem."""
    n = method.num_samples
    # A single response is the mean over all that were drawn.
    shares = [samples if method.selection == "single" else samples.take(n) for samples in drawn]
    share = n / shares[0].gold.shape[1]
    gold = torch.stack([s.pick(s.gold, method.selection) for s in shares]).mean(dim=0)
    score, error = mean_and_error(gold)

    def mean(name: str, per_problem: bool = True) -> float:
        total = torch.stack([getattr(s, name).sum(dim=-1) * share for s in shares]).mean(dim=0)
        return float(total.mean() if per_problem else total.sum())

    cost: dict[str, Any] = {
        "tokens": mean("num_tokens"),
        "forwards": mean("forwards"),
        "seconds": mean("seconds", False),
    }
    if method.selection in ("value", "weighted_vote") and shares[0].value_seconds is not None:
        cost["forwards"] += mean("value_forwards")
        cost["seconds"] += mean("value_seconds", False)
    proxy: tuple[float | None, float | None] = (None, None)
    # Where the proxy ranks nothing it is what the chosen response earned; an oracle has no choice to look at.
    if shares[0].proxy is not None and method.selection != "oracle":
        proxies = torch.stack([s.pick(s.proxy, method.selection) for s in shares]).mean(dim=0)  # type: ignore[arg-type]
        proxy = mean_and_error(proxies)
        result.proxies[method.label] = proxies
    lengths = sum(float(s.num_tokens.sum()) for s in shares)
    kl = sum(float(s.kl.sum()) for s in shares) / sum(s.kl.numel() for s in shares)
    chosen_of = n if method.selection in ("value", "proxy") else 1
    # One response per problem: the share of different words falls with the number of responses.
    words = [distinct_tokens(s.take(1).responses) for s in shares]
    peaks = [s.peak_mb for s in shares if s.peak_mb is not None]
    result.rows.append(
        Row(
            method=method.label,
            score=score,
            standard_error=error,
            steps=method.steps,
            num_samples=n,
            proxy=proxy[0],
            proxy_error=proxy[1],
            kl=None if method.selection in ("majority", "weighted_vote", "oracle") else kl + best_of_n_kl(chosen_of),
            kl_per_token=kl * sum(s.kl.numel() for s in shares) / max(lengths, 1.0),
            base_logp=sum(float(s.base_logps.sum()) for s in shares) / max(lengths, 1.0),
            distinct_1=sum(distinct_n(w, 1) for w in words) / len(words),
            distinct_2=sum(distinct_n(w, 2) for w in words) / len(words),
            peak_mb=max(peaks) if peaks else None,
            **cost,
        )
    )
    result.scores[method.label] = gold
    result.families[method.label] = method.family


def _add_pass_at(result: Scaling, drawn: Sequence[Samples]) -> None:
    """Adds pass@k of the base for every power of two up to the samples drawn."""
    if not drawn or not all(bool(((s.gold == 0) | (s.gold == 1)).all()) for s in drawn):
        return
    k, most = 1, drawn[0].gold.shape[1]
    while k <= most:
        result.pass_at[k] = mean_and_error(torch.stack([pass_at_k(s.gold, k) for s in drawn]).mean(dim=0))
        k *= 2
