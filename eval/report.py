# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Rows with standard errors, and the tables made of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from eval.metrics import paired_difference
from eval.store import write_atomically, write_json


@dataclass(frozen=True)
class Row:
    """One line of a results table.

    Attributes:
        method: Name.
        score: Mean gold score over problems; the accuracy where gold is 0 or 1.
        standard_error: Of the mean, over problems.
        tokens: Sampled tokens per problem.
        seconds: Wall time for all problems.
        steps: L, for methods that transport.
        num_samples: Responses drawn per problem to give one answer.
        proxy: Mean proxy score.
        proxy_error: Its standard error.
        kl: Divergence to the reference per response in nats, the bound log N - (N-1)/N of choosing included.
        kl_per_token: Divergence of the sampled distribution per token.
        base_logp: Log-probability under the reference per token.
        distinct_1: Share of different words, over one response per problem.
        distinct_2: Share of different pairs of words.
        forwards: Tokens that models processed per problem, prompts included.
        peak_mb: Most memory in use while sampling.
    """

    method: str
    score: float
    standard_error: float
    tokens: float
    seconds: float
    steps: int | None = None
    num_samples: int = 1
    proxy: float | None = None
    proxy_error: float | None = None
    kl: float | None = None
    kl_per_token: float | None = None
    base_logp: float | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None
    forwards: float | None = None
    peak_mb: float | None = None


def to_markdown(rows: Sequence[Row], score_name: str = "accuracy") -> str:
    """Formats rows as a Markdown table; columns that no row fills are left out."""
    columns = {
        "method": [row.method.removesuffix(f", L={row.steps}") for row in rows],  # L has a column of its own
        "L": ["" if row.steps is None else str(row.steps) for row in rows],
        "N": [str(row.num_samples) for row in rows],
        score_name: [f"{row.score:.3f} ± {row.standard_error:.3f}" for row in rows],
        "proxy": [_number(row.proxy, 3) + (f" ± {row.proxy_error:.3f}" if row.proxy_error else "") for row in rows],
        "KL": [_number(row.kl, 2) for row in rows],
        "KL/token": [_number(row.kl_per_token, 3) for row in rows],
        "base log p/token": [_number(row.base_logp, 3) for row in rows],
        "distinct-1": [_number(row.distinct_1, 3) for row in rows],
        "distinct-2": [_number(row.distinct_2, 3) for row in rows],
        "tokens": [f"{row.tokens:.0f}" for row in rows],
        "forwards": [_number(row.forwards, 0) for row in rows],
        "seconds": [f"{row.seconds:.1f}" for row in rows],
        "peak MB": [_number(row.peak_mb, 0) for row in rows],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in zip(*columns.values(), strict=True)]
    return "\n".join(lines) + "\n"


def differences_to_markdown(scores: Mapping[str, Tensor], reference: str) -> str:
    """Formats every method's paired difference to one of them, with 95% intervals.

    Args:
        scores: Scores `[B]` per method, on the same problems.
        reference: The method that the others are compared with.

    Returns:
        A Markdown table.

    Raises:
        KeyError: If `reference` is not among the methods.
    """
    lines = [f"| difference to {reference} | mean | s.e. | 95% interval |", "|---|---|---|---|"]
    for name, values in scores.items():
        if name == reference:
            continue
        found = paired_difference(values, scores[reference])
        lines.append(
            f"| {name} | {found.mean:+.3f} | {found.standard_error:.3f} | {found.low:+.3f} to {found.high:+.3f} |"
        )
    return "\n".join(lines) + "\n"


def print_table(
    rows: Sequence[Row], title: str, console: Console | None = None, *, score_name: str = "accuracy"
) -> None:
    """Prints the main columns of rows as a table that fits 80 columns."""
    columns = ("method", "L", "N", score_name[:8], "s.e.", "KL", "tokens", "sec.")
    with_proxy = any(row.proxy is not None for row in rows)
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in (*columns, *(("proxy",) if with_proxy else ())):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=name != "method")
    for row in rows:
        cells = [
            row.method.removesuffix(f", L={row.steps}"),
            "" if row.steps is None else str(row.steps),
            str(row.num_samples),
            f"{row.score:.3f}",
            f"{row.standard_error:.3f}",
            _number(row.kl, 1),
            f"{row.tokens:.0f}",
            f"{row.seconds:.1f}",
        ]
        table.add_row(*cells, *((_number(row.proxy, 3),) if with_proxy else ()))
    (console or Console()).print(table)


def save(
    rows: Sequence[Row],
    directory: str | Path,
    meta: Mapping[str, object],
    *,
    score_name: str = "accuracy",
    sections: Sequence[str] = (),
) -> None:
    """Writes `results.json` and `results.md` into a folder.

    Args:
        rows: The table.
        directory: The folder; created if absent.
        meta: What the table was made of.
        score_name: What the gold score is called.
        sections: Markdown that follows the table.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    table = to_markdown(rows, score_name)
    finite = [{name: _finite(value) for name, value in asdict(row).items()} for row in rows]
    write_json(directory / "results.json", {"meta": {**meta, "score": score_name}, "rows": finite})
    write_atomically(directory / "results.md", "\n".join([table, *sections]))


def _finite(value: object) -> object:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"
