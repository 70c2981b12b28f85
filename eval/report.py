# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Rows with standard errors, and the tables and plots made of them."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One line of a results table.

    Attributes:
        method: Name.
        accuracy: Mean over problems.
        standard_error: Of the mean, over problems.
        tokens: Sampled tokens per problem.
        seconds: Wall time for all problems.
        steps: L, for methods that transport.
        num_samples: Responses drawn per problem to give one answer.
        kl: Mean KL to the base per token in nats, for methods that transport.
    """

    method: str
    accuracy: float
    standard_error: float
    tokens: float
    seconds: float
    steps: int | None = None
    num_samples: int = 1
    kl: float | None = None


def mean_and_error(per_problem: Tensor) -> tuple[float, float]:
    """Returns the mean of `[B]` and its standard error.

    Example:
        >>> import torch
        >>> mean, error = mean_and_error(torch.tensor([0.0, 1.0, 0.0, 1.0]))
        >>> mean, round(error, 4)
        (0.5, 0.2887)
    """
    values = per_problem.double()
    return float(values.mean()), float(values.std(unbiased=True) / math.sqrt(len(values)))


def lead(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Returns the mean difference of two methods on the same problems, and its paired standard error.

    Args:
        first: `[B]`.
        second: `[B]`.

    Returns:
        The difference and its standard error.
    """
    return mean_and_error(first.double() - second.double())


def to_markdown(rows: Sequence[Row]) -> str:
    """Formats rows as a Markdown table."""
    lines = [
        "| method | L | N | accuracy | s.e. | KL/token | tokens/problem | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def print_table(rows: Sequence[Row], title: str, console: Console | None = None) -> None:
    """Prints rows as a table."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1))  # fits 80 columns
    for name in ("method", "L", "N", "acc.", "s.e.", "KL", "tokens", "sec."):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    (console or Console()).print(table)


def save(rows: Sequence[Row], directory: str | Path, meta: dict[str, object]) -> None:
    """Writes `results.json` and `results.md` into a folder."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"meta": meta, "rows": [asdict(row) for row in rows]}, indent=2)
    (directory / "results.json").write_text(text + "\n", encoding="utf-8")
    (directory / "results.md").write_text(to_markdown(rows), encoding="utf-8")


def plot_budget(curves: dict[str, Sequence[Row]], baselines: Sequence[Row], path: str | Path, title: str) -> None:
    """Draws accuracy over the step budget with standard errors, and baselines as horizontal lines.

    Args:
        curves: Rows with `steps`, by label.
        baselines: Rows drawn as lines.
        path: The PNG.
        title: The title.

    Raises:
        ImportError: Without matplotlib, which the extra `plots` installs.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "vgf-llm[plots]".') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for label, rows in curves.items():
        steps = [row.steps for row in rows]
        errors = [row.standard_error for row in rows]
        axes.errorbar(steps, [row.accuracy for row in rows], yerr=errors, marker="o", capsize=3, label=label)
    for index, row in enumerate(sorted(baselines, key=lambda row: -row.accuracy)):
        style = ["--", ":", "-.", (0, (5, 1)), (0, (1, 1))][index % 5]
        axes.axhline(row.accuracy, color="0.35", linestyle=style, linewidth=1.2, label=row.method)
    axes.set_xscale("symlog", base=2, linthresh=1)
    ticks = sorted({row.steps for rows in curves.values() for row in rows if row.steps is not None})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(xlabel="transport steps L", ylabel="accuracy", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _cells(row: Row) -> list[str]:
    return [
        row.method.removesuffix(f", L={row.steps}"),  # L has a column of its own
        "" if row.steps is None else str(row.steps),
        str(row.num_samples),
        f"{row.accuracy:.3f}",
        f"{row.standard_error:.3f}",
        "" if row.kl is None or math.isnan(row.kl) else f"{row.kl:.3f}",
        f"{row.tokens:.0f}",
        f"{row.seconds:.1f}",
    ]
