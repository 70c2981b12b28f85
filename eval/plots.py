# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Plots of a table: what the budget buys, where the proxy parts from gold, and what an answer costs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.report import Row
from vgf_llm.trainer.watch.plots import COLOURS, STYLE

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "vgf-llm[plots]".') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_budget(
    curves: Mapping[str, Sequence[Row]],
    baselines: Sequence[Row],
    path: str | Path,
    title: str,
    score_name: str = "accuracy",
) -> None:
    """Draws the score over the step budget with standard errors, and baselines as horizontal lines.

    Args:
        curves: Rows with `steps`, by label.
        baselines: Rows drawn as lines.
        path: The PNG.
        title: The title.
        score_name: What the score is called.

    Raises:
        ImportError: Without matplotlib, which the extra `plots` installs.
    """
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.4, 4.6), layout="constrained")
        for index, (label, rows) in enumerate(curves.items()):
            axes.errorbar(
                [row.steps for row in rows],
                [row.score for row in rows],
                yerr=[row.standard_error for row in rows],
                color=COLOURS[index % len(COLOURS)],
                marker=_MARKERS[index % len(_MARKERS)],
                capsize=3,
                label=label,
            )
        for index, row in enumerate(sorted(baselines, key=lambda row: -row.score)):
            axes.axhline(
                row.score, color="0.45", linestyle=_DASHES[index % len(_DASHES)], linewidth=1.3, label=row.method
            )
        axes.set_xscale("symlog", base=2, linthresh=1)
        ticks = sorted({row.steps for rows in curves.values() for row in rows if row.steps is not None})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlim(-0.3, max(ticks, default=1) * 1.3 + 0.3)
        axes.set(xlabel="transport steps L", ylabel=score_name, title=title)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        figure.savefig(path)
        plt.close(figure)


def plot_over_optimization(
    rows: Sequence[Row], turn_over: int, path: str | Path, title: str, score_name: str = "gold"
) -> None:
    """Draws gold and proxy over the square root of the divergence, and marks where gold turns over.

    Args:
        rows: One curve in order of budget, with `kl`; without a proxy, gold stands alone.
        turn_over: Index of the row of the highest gold score.
        path: The PNG.
        title: The title.
        score_name: What the gold score is called.

    Raises:
        ValueError: If a row has no divergence.
    """
    if any(row.kl is None for row in rows):
        raise ValueError("Every row of an over-optimisation curve needs a divergence to the reference.")
    plt = _pyplot()
    x = [math.sqrt(max(row.kl, 0.0)) for row in rows]  # type: ignore[arg-type]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
        gold = [row.score for row in rows]
        axes.errorbar(x, gold, yerr=[row.standard_error for row in rows], color=COLOURS[0], marker="o", capsize=3,
                      label=score_name)  # fmt: skip
        with_proxy = all(row.proxy is not None for row in rows)
        if with_proxy:
            proxy = [row.proxy for row in rows]
            errors = [row.proxy_error or 0.0 for row in rows]
            axes.errorbar(x, proxy, yerr=errors, color=COLOURS[1], marker="s", capsize=3, linestyle="--", label="proxy")
        for position, height, row in zip(x, gold, rows, strict=True):
            axes.annotate(f"L={row.steps}", (position, height), xytext=(5, -14), textcoords="offset points", fontsize=8,
                          color=COLOURS[0])  # fmt: skip
        last = turn_over == len(rows) - 1
        text = (
            f"{score_name} is highest at the last budget"
            if last
            else f"{score_name} turns over at L={rows[turn_over].steps}"
        )
        axes.axvline(x[turn_over], color="0.3", linestyle=":", linewidth=1.4, label=text)
        axes.scatter([x[turn_over]], [gold[turn_over]], s=150, facecolors="none", edgecolors="0.2", linewidths=1.6,
                     zorder=5)  # fmt: skip
        axes.margins(x=0.07, y=0.12)
        axes.set(
            xlabel=r"$\sqrt{\mathrm{KL}}$ to the reference, nats per response",
            ylabel="score" if with_proxy else score_name,
            title=title,
        )
        axes.legend(loc="best")
        figure.savefig(path)
        plt.close(figure)


def plot_gold_and_proxy(
    curves: Mapping[str, Sequence[Row]],
    best: Mapping[str, Sequence[Row]],
    baselines: Sequence[Row],
    path: str | Path,
    *,
    x: str = "steps",
) -> None:
    """Draws gold and proxy of single responses over the budget, a panel for each space, and marks where gold turns.

    Args:
        curves: Rows of one particle by space, in order of budget.
        best: Rows of the best of N by proxy, likewise.
        baselines: Rows drawn as lines.
        path: The PNG.
        x: `"steps"` for L, `"kl"` for the square root of the divergence.

    Raises:
        ValueError: For another `x`.
    """
    if x not in ("steps", "kl"):
        raise ValueError(f"`x` must be 'steps' or 'kl', got {x!r}.")
    plt = _pyplot()

    def places(rows: Sequence[Row]) -> list[float]:
        return [math.sqrt(max(row.kl or 0.0, 0.0)) if x == "kl" else float(row.steps or 0) for row in rows]

    with plt.rc_context(STYLE):
        size = (4.2 * len(curves) + 0.6, 4.4)
        figure, panels = plt.subplots(1, len(curves), figsize=size, sharey=True, squeeze=False, layout="constrained")
        for axes, (title, rows) in zip(panels[0], curves.items(), strict=True):
            gold, proxy, tops = [r.score for r in rows], [r.proxy for r in rows], best[title]
            line = {"capsize": 2, "elinewidth": 0.9}
            errors = [r.proxy_error or 0.0 for r in rows]
            style = {"color": COLOURS[1], "marker": "s", "linestyle": "--", "label": "proxy, one response"}
            axes.errorbar(places(rows), proxy, yerr=errors, **style, **line)
            style = {"color": COLOURS[0], "marker": "o", "label": "gold, one response"}
            axes.errorbar(places(rows), gold, yerr=[r.standard_error for r in rows], **style, **line)
            style = {"color": COLOURS[2], "marker": "^", "label": f"gold, best of {tops[0].num_samples} by proxy"}
            axes.errorbar(places(tops), [r.score for r in tops], yerr=[r.standard_error for r in tops], **style, **line)
            for index, row in enumerate(baselines):
                axes.axhline(row.score, color="0.45", linestyle=_DASHES[1 - index % 2], linewidth=1.2,
                             label=f"gold, {row.method} of the base")  # fmt: skip
            turn = max(range(len(rows)), key=gold.__getitem__)
            axes.scatter([places(rows)[turn]], [gold[turn]], s=150, facecolors="none", edgecolors="0.2",
                         linewidths=1.5, zorder=5, label="highest gold")  # fmt: skip
            if turn < len(rows) - 1:
                axes.axvspan(places(rows)[turn], places(rows)[-1], color="0.5", alpha=0.10, linewidth=0)
            if x == "steps":
                axes.set_xscale("symlog", base=2, linthresh=1)
                ticks = sorted({row.steps or 0 for row in rows})
                axes.set_xticks(ticks, [str(tick) for tick in ticks])
                axes.set_xticks([], minor=True)
            label = "transport steps L" if x == "steps" else r"$\sqrt{\mathrm{KL}}$ to the base, nats per response"
            axes.set(xlabel=label, title=title)
        panels[0][0].set_ylabel("standard deviations of base samples")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.savefig(path)
        plt.close(figure)


def plot_frontier(
    groups: Mapping[str, Sequence[Row]], path: str | Path, title: str, score_name: str = "accuracy"
) -> None:
    """Draws the score over the square root of the divergence to the base, a line for each method.

    Args:
        groups: Rows with `kl` in order of it, by method. Those that start with `VGF` are drawn filled, others hollow.
        path: The PNG.
        title: The title.
        score_name: What the score is called.
    """
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.4, 5.6), layout="constrained")
        for (label, rows), style in zip(groups.items(), _group_styles(groups), strict=True):
            axes.errorbar(
                [math.sqrt(max(row.kl or 0.0, 0.0)) for row in rows],
                [row.score for row in rows],
                yerr=[row.standard_error for row in rows],
                linewidth=1.2,
                elinewidth=0.9,
                capsize=2,
                label=label,
                **style,
            )
        label = r"$\sqrt{\mathrm{KL}}$ to the base, nats per response"
        axes.set(xlabel=label, ylabel=score_name, title=title)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.savefig(path)
        plt.close(figure)


def plot_costs(
    groups: Mapping[str, Sequence[Row]],
    path: str | Path,
    title: str,
    score_name: str = "accuracy",
    *,
    join: bool = True,
) -> None:
    """Draws all methods' scores against what an answer costs: sampled tokens on the left, seconds on the right.

    Args:
        groups: Rows by family. Those that start with `VGF` are drawn filled, baselines hollow, and controls (random,
            shuffled) as grey crosses.
        path: The PNG.
        title: The title.
        score_name: What the score is called.
        join: Whether the rows of a family are joined by a line in order of cost.
    """
    plt = _pyplot()
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(11.0, 5.6), sharey=True, layout="constrained")
        panels = (("tokens", "sampled tokens per problem"), ("seconds", "seconds for all problems"))
        for axis, (name, label) in zip(axes, panels, strict=True):
            for (family, rows), style in zip(groups.items(), _group_styles(groups), strict=True):
                ordered = sorted(rows, key=lambda row: getattr(row, name))
                axis.errorbar(
                    [max(getattr(row, name), 1e-3) for row in ordered],
                    [row.score for row in ordered],
                    yerr=[row.standard_error for row in ordered],
                    linestyle="-" if join and len(ordered) > 1 else "none",
                    linewidth=1.2,
                    elinewidth=0.9,
                    capsize=2,
                    label=family,
                    **style,
                )
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.margins(x=0.12)
            axis.set(xlabel=label)
        axes[0].set(ylabel=score_name)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, max(1, len(labels))))
        figure.savefig(path)
        plt.close(figure)


def _group_styles(groups: Iterable[str]) -> list[dict[str, Any]]:
    """Filled markers for VGF, hollow ones for baselines, grey crosses for controls."""
    styles, seen = [], {"vgf": 0, "baseline": 0, "control": 0}
    for family in groups:
        control = family.startswith(("random", "shuffled"))
        kind = "control" if control else "vgf" if family.startswith("VGF") else "baseline"
        index = seen[kind]
        seen[kind] += 1
        if control:
            styles.append({"color": "0.5", "marker": ("x", "+")[index % 2], "markersize": 8})
            continue
        style: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            # Once round the palette the markers move on, so that no two families look alike.
            "marker": _MARKERS[(index + index // len(COLOURS) * 3) % len(_MARKERS)],
            "markersize": 8 if kind == "vgf" else 7,
        }
        styles.append(style if kind == "vgf" else {**style, "markerfacecolor": "white", "markeredgewidth": 1.6})
    return styles
