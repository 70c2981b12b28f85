# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The figure of the offline maze: the data, and seconds to the goal over the budget."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.offline_environment import GOAL, GOAL_RADIUS, STARTS, WALLS, Dataset

Results = Sequence[dict[str, tuple[float, float]]]
COLOURS = ("tab:orange", "tab:red", "tab:purple", "tab:brown", "tab:pink")


def draw(
    results: Results,
    train_steps: Sequence[int],
    test_steps: Sequence[int],
    data: Dataset,
    paths: dict[str, Tensor],
    path: Path,
) -> None:
    """Draws the maze with its data, paths of two policies, and the curves over L_test.

    Args:
        results: Per seed, seconds to the goal and arrivals by method.
        train_steps: Budgets L_train.
        test_steps: Budgets L_test.
        data: The data of one seed.
        paths: Positions [T, E, 2] of a few episodes by title; nan after the goal.
        path: The PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.titlesize": 10})
    ratios = [1.0] * (1 + len(paths)) + [1.5]
    figure, axes = plt.subplots(
        1, len(ratios), figsize=(3.1 * sum(ratios), 3.5), layout="constrained", gridspec_kw={"width_ratios": ratios}
    )
    _maze(axes[0], "the data (every third transition)")
    speed = torch.linalg.vector_norm(data.actions, dim=-1)
    axes[0].scatter(*data.states[::3, :2].T, s=1.5, c=speed[::3], cmap="viridis", vmin=0, vmax=1.2, linewidths=0)
    for axis, (title, positions) in zip(axes[1:], paths.items(), strict=False):
        _maze(axis, title)
        for episode in range(positions.shape[1]):
            axis.plot(*positions[:, episode].T, color="tab:red", linewidth=0.9, alpha=0.7, marker="o", markersize=2)
    _curves(axes[-1], results, train_steps, test_steps)
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
    plt.close(figure)


def _maze(axis: Any, title: str) -> None:
    from matplotlib.patches import Circle, Rectangle

    for low_x, low_y, high_x, high_y in WALLS.tolist():
        axis.add_patch(Rectangle((low_x, low_y), high_x - low_x, high_y - low_y, color="0.25"))
    (low_x, low_y), (high_x, high_y) = STARTS.tolist()
    axis.add_patch(Rectangle((low_x, low_y), high_x - low_x, high_y - low_y, color="tab:blue", alpha=0.15, zorder=0))
    axis.add_patch(Circle(GOAL.tolist(), GOAL_RADIUS, color="tab:green", alpha=0.35, zorder=0))
    axis.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[], aspect="equal", title=title)


def _curves(axis: Any, results: Results, train_steps: Sequence[int], test_steps: Sequence[int]) -> None:
    """Seconds to the goal over L_test, one curve per L_train."""
    for budget, colour in zip(train_steps, COLOURS, strict=False):
        names = [f"L_train={budget}, L_test={test}" for test in test_steps]
        seconds = torch.tensor([[result[name][0] for name in names] for result in results])
        mean = seconds.mean(dim=0)
        error = seconds.std(dim=0) / len(results) ** 0.5 if len(results) > 1 else torch.zeros_like(mean)
        axis.errorbar(
            test_steps, mean, yerr=error, marker="o", markersize=4, capsize=3, color=colour, label=f"L_train = {budget}"
        )
    means = {name: sum(result[name][0] for result in results) / len(results) for name in results[0]}
    td3 = min((name for name in means if name.startswith("TD3")), key=means.__getitem__)
    for name, style in (("behaviour cloning", ":"), (td3, "--")):
        axis.axhline(means[name], color="0.35", linestyle=style, linewidth=1.2, label=name)
    axis.set_xscale("symlog", base=2, linthresh=1)
    axis.set_xticks(list(test_steps), [str(test) for test in test_steps])
    axis.set(xlabel="L_test (0 is best-of-N)", ylabel="seconds to the goal", title="less is better")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
