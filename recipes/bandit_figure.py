# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The figure of the two-mode bandit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from recipes.toy_bandit import Outcome, Problem

COLOURS = {
    "VGF": "tab:red",
    "VGF, lone particles": "tab:orange",
    "one-step policy": "tab:blue",
    "flow policy": "tab:purple",
}


def draw(
    problem: Problem,
    sweeps: dict[str, list[Outcome]],
    rows: Sequence[Outcome],
    seeds: int,
    true_reward: Callable[[Tensor], Tensor],
    box: float,
    path: Path,
) -> None:
    """Draws samples over contours for the first seed, and curves over all seeds.

    Args:
        problem: Data and fitted reward.
        sweeps: Outcomes over the knob, by method.
        rows: Outcomes of the table.
        seeds: How many seeds the curves are over.
        true_reward: The true reward of actions [..., 2].
        box: Half the side of the action square.
        path: The PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.titlesize": 10})
    figure, axes = plt.subplots(2, 4, figsize=(13, 6.6), layout="constrained", gridspec_kw={"height_ratios": [1, 1]})
    side = torch.linspace(-box, box, 81)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1)
    with torch.no_grad():
        flat = grid.reshape(1, -1, 2).expand(len(problem.actions), -1, -1)
        learned = problem.reward(flat)[0].reshape(81, 81)
    truth = true_reward(grid)
    by_name = {row.name: row for row in rows}
    best_of = next(row for row in rows if row.name.startswith("best-of-"))

    _map(axes[0, 0], side, truth, truth, "true reward, behaviour samples")
    _dots(axes[0, 0], problem.actions[0], "white", size=9)
    panels = [
        (axes[0, 1], best_of.picks[0], f"{best_of.name}: stays in the support"),
        (axes[0, 2], by_name["flow policy"].picks[0], f"flow policy, tuned (weight {by_name['flow policy'].knob:g})"),
        (axes[0, 3], sweeps["flow policy"][1].picks[0], f"flow policy, weight {sweeps['flow policy'][1].knob:g}"),
        (
            axes[1, 0],
            by_name["one-step policy"].picks[0],
            f"one-step, tuned (weight {by_name['one-step policy'].knob:g})",
        ),
        (axes[1, 1], by_name["VGF"].picks[0], f"VGF, L = {by_name['VGF'].knob:g}"),
    ]
    for axis, picks, title in panels:
        _map(axis, side, learned, truth, title)
        _dots(axis, picks, "tab:red", size=14)
    _curves(axes[1, 2], sweeps["VGF"], seeds)
    _frontier(axes[1, 3], sweeps, best_of, seeds)
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
    plt.close(figure)


def _map(axis: Any, side: Tensor, values: Tensor, truth: Tensor, title: str) -> None:
    """Filled contours of `values`, with the true reward as lines."""
    axis.contourf(side, side, values.clamp(-0.5, 2.5), levels=12, cmap="viridis", alpha=0.75)
    axis.contour(side, side, truth, levels=[0.3, 0.55, 0.9], colors="black", linewidths=0.8)
    axis.set(title=title, xticks=[-2, 0, 2], yticks=[-2, 0, 2], aspect="equal")


def _dots(axis: Any, points: Tensor, colour: str, size: float) -> None:
    axis.scatter(*points.T, s=size, c=colour, edgecolors="black", linewidths=0.4, clip_on=False, zorder=3)


def _curves(axis: Any, outcomes: Sequence[Outcome], seeds: int) -> None:
    """True and learned reward over the budget."""
    budgets = [outcome.knob for outcome in outcomes]
    for key, colour in (("true", "tab:red"), ("learned", "0.45")):
        values = torch.stack([getattr(outcome, key)[:seeds] for outcome in outcomes])
        mean, error = values.mean(dim=1), values.std(dim=1) / seeds**0.5
        axis.plot(budgets, mean, marker="o", markersize=3, color=colour, label=f"{key} reward")
        axis.fill_between(budgets, mean - error, mean + error, color=colour, alpha=0.25, linewidth=0)
        if key == "true":
            top = int(mean.argmax())
            axis.axvline(
                budgets[top], color=colour, linestyle=":", linewidth=1, label=f"turn-over, L = {budgets[top]:g}"
            )
    axis.set_xscale("symlog", base=2, linthresh=1)
    axis.set_xticks([0, 1, 2, 4, 8, 16, 32, 64], ["0", "1", "2", "4", "8", "16", "32", "64"])
    axis.set(xlabel="budget L", title="VGF: too much budget over-optimises")
    axis.legend(fontsize=8, loc="upper left")
    axis.grid(alpha=0.3)


def _frontier(axis: Any, sweeps: dict[str, list[Outcome]], best_of: Outcome, seeds: int) -> None:
    """True against learned reward along each method's knob."""
    for name, outcomes in sweeps.items():
        x = [float(outcome.learned[:seeds].mean()) for outcome in outcomes]
        y = [float(outcome.true[:seeds].mean()) for outcome in outcomes]
        axis.plot(x, y, marker="o", markersize=3, color=COLOURS[name], label=name)
    start = (float(best_of.learned[:seeds].mean()), float(best_of.true[:seeds].mean()))
    axis.scatter(*start, marker="*", s=110, color="black", zorder=4, label=best_of.name)
    axis.set(xlabel="learned reward of the picks", ylabel="true reward", title="along each knob")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
