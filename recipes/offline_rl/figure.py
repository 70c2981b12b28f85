# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The learning curves of `recipes/ogbench_vgf.py`."""

from collections.abc import Sequence
from pathlib import Path

import torch


def draw_curves(curves: dict[str, Sequence[Sequence[float]]], title: str, path: Path) -> None:
    """Draws success over gradient steps: the mean over seeds, and each seed as a thin line.

    Args:
        curves: By method, points of gradient steps and the success of each seed.
        title: Of the figure.
        path: The PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for name, points in curves.items():
        steps, *rates = torch.tensor(points, dtype=torch.float64).T
        (line,) = axis.plot(steps, 100 * torch.stack(rates).mean(dim=0), marker="o", markersize=4, label=name)
        for rate in rates:
            axis.plot(steps, 100 * rate, color=line.get_color(), linewidth=0.6, alpha=0.5)
    axis.set(xlabel="gradient steps", ylabel="success in percent", title=title, ylim=(-3, 103))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
    plt.close(figure)
