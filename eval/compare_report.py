# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Writes a comparison down: scores over seeds with errors over problems, paired differences, sweeps, costs, a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval import plots
from eval.baselines import TRAINABLE
from eval.compare_measure import EXPORTED, LIMITED
from eval.metrics import difference_over_runs, mean_and_error, paired_difference
from eval.report import Row

Run = Mapping[str, Any]
# GRPO, the baseline that the recipe's value is equal to by construction, and the value at L * epsilon = 1.
REFERENCES = ("grpo", f"iterated_rft{LIMITED}", f"vgf{EXPORTED}")


@dataclass(frozen=True)
class Entry:
    """A method in one mode of decoding, over its seeds.

    Attributes:
        method: Key of the row.
        mode: Greedy, sampled, a vote, ...
        scores: `[S, B]`, per seed and problem.
        runs: The runs behind them.
        seconds: Of measuring, mean over seeds.
        tokens: Sampled tokens per problem, mean over seeds.
    """

    method: str
    mode: str
    scores: Tensor
    runs: tuple[Run, ...]
    seconds: float
    tokens: float

    @property
    def over_seeds(self) -> Tensor:
        """`[B]`, the mean over seeds."""
        return self.scores.mean(dim=0)


def _swept(run: Run) -> tuple[float | None, int | None]:
    """What a sweep varies: learning rate and passes over the completions."""
    return run["learning_rate"], run.get("passes")


def chosen_runs(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs of every method with its chosen settings: of a sweep, the best on validation problems."""
    kept = []
    for method in dict.fromkeys(run["method"] for run in runs):
        own = [run for run in runs if run["method"] == method]
        first = min(run["seed"] for run in own)
        swept = [run for run in own if run["seed"] == first]
        best = _swept(max(swept, key=lambda run: run["validation"][0]))
        kept += [run for run in own if _swept(run) == best]
    return kept


def entries(runs: Sequence[Run]) -> list[Entry]:
    """Collects every method and mode over the seeds of its chosen runs."""
    return _entries_of(chosen_runs(runs))


def _entries_of(runs: Sequence[Run]) -> list[Entry]:
    found = []
    keys = dict.fromkeys((name, mode) for run in runs for name, rows in run["rows"].items() for mode in rows)
    for name, mode in keys:
        own = [run for run in runs if mode in run["rows"].get(name, {})]
        cells = [run["rows"][name][mode] for run in own]
        found.append(
            Entry(
                method=name,
                mode=mode,
                scores=torch.tensor([cell["scores"] for cell in cells], dtype=torch.float64),
                runs=tuple(own),
                seconds=sum(cell["seconds"] for cell in cells) / len(cells),
                tokens=sum(cell["tokens"] for cell in cells) / len(cells),
            )
        )
    return found


def render(
    runs: Sequence[Run], labels: Mapping[str, str], settings: Mapping[str, Any], command: str, score_name: str
) -> str:
    """Writes the section of a comparison.

    Args:
        runs: The contents of the run files.
        labels: Names of methods in tables.
        settings: The comparison's sizes.
        command: What printed it.
        score_name: What the gold score is called.

    Returns:
        Markdown.

    Raises:
        ValueError: Without runs.
    """
    if not runs:
        raise ValueError("There are no runs to report.")
    rows = entries(runs)
    chosen = chosen_runs(runs)
    versions = ", ".join(f"{name} {number}" for name, number in chosen[-1]["versions"].items())
    seeds = sorted({run["seed"] for run in chosen})
    completions = settings["num_train"] * settings["num_generations"]
    parts = [
        f"### {settings['recipe']}: side by side",
        f"```bash\n{command}\n```",
        f"Same base, prompts and reward; {completions:,} sampled completions for every trained row; {score_name} on "
        f"{settings['num_test']} test problems, the same for all; seeds {', '.join(map(str, seeds))}; ± is the "
        f"standard error over problems of the mean over seeds, and the range is over seeds. Training in processor "
        f"seconds, sampling included. {versions}; threads: {chosen[-1]['threads']}.",
        _score_table(rows, labels, score_name),
        _best_table(rows, labels, score_name),
        _difference_table(rows, labels),
        _frontier_table(runs, labels, score_name),
        _sweep_table(runs, labels),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _label(name: str, labels: Mapping[str, str]) -> str:
    plain = name.removesuffix(" + transport").removesuffix(EXPORTED).removesuffix(LIMITED)
    return labels.get(plain, plain) + name[len(plain) :]


def _score_table(rows: Sequence[Entry], labels: Mapping[str, str], score_name: str) -> str:
    lines = [
        f"| method | decoding | {score_name} | seeds | lr | L | training | test, s | tokens/problem |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in rows:
        mean, error = mean_and_error(entry.over_seeds)
        per_seed = entry.scores.mean(dim=1)
        spread = f"{float(per_seed.min()):.3f} to {float(per_seed.max()):.3f}" if len(per_seed) > 1 else ""
        transported = entry.method.endswith("+ transport") or _only_transports(entry.method)
        key = "steps_best_of" if entry.mode.endswith("by proxy") else "steps"
        steps = sorted({run[key] for run in entry.runs if key in run}) if transported else []
        cells = [
            _label(entry.method, labels),
            entry.mode,
            f"{mean:.3f} ± {error:.3f}",
            spread,
            _settings(entry.runs[0]),
            ", ".join(map(str, steps)),
            "" if entry.runs[0]["completions"] == 0 else _training_time(entry.runs),
            f"{entry.seconds:.1f}",
            f"{entry.tokens:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _only_transports(name: str) -> bool:
    """Whether a method's rows are transported, and not those of a policy that it trained too."""
    method = TRAINABLE.get(name)
    return method is not None and method.has_value and not method.distilled


def _settings(run: Run) -> str:
    method = TRAINABLE.get(run["method"])
    return "" if method is None else method.settings_text(*_swept(run))


def _training_time(runs: Sequence[Run]) -> str:
    """Processor seconds, or wall seconds where a run has no others."""
    known = [run["train_cpu_seconds"] for run in runs if run.get("train_cpu_seconds") is not None]
    if len(known) == len(runs):
        return f"{sum(known) / len(known):.0f}"
    return f"{sum(run['train_seconds'] for run in runs) / len(runs):.0f} (wall)"


def own_method(rows: Sequence[Entry]) -> str | None:
    """Returns the VGF method that others are compared with: the recipe's own, so that nothing has to be chosen.

    Where that was not run it is the one of highest validation score; `None` without any.
    """
    ours = [entry for entry in rows if entry.method.startswith("vgf") and not entry.method.endswith(EXPORTED)]
    if not ours:
        return None
    if any(entry.method == "vgf" for entry in ours):
        return "vgf"
    return max(ours, key=lambda entry: sum(run["validation"][0] for run in entry.runs) / len(entry.runs)).method


def _best_table(rows: Sequence[Entry], labels: Mapping[str, str], score_name: str) -> str:
    """One transported response, and N of them, against the row of every baseline that is highest on test problems."""
    best = own_method(rows)
    own = {entry.mode: entry for entry in rows if entry.method == best}
    many = [mode for mode in own if mode.startswith("majority") or mode.endswith("by proxy")][:1]
    columns = [mode for mode in ("sampled", *many) if mode in own]
    others = [name for name in dict.fromkeys(entry.method for entry in rows) if not name.startswith("vgf")]
    if best is None or not columns or not others:
        return ""
    lines = [
        f"{_label(best, labels)} minus the row of every other method that is highest on these test problems, a choice "
        "in that method's favour; paired over problems, in brackets in s.e.:",
        "",
        f"| minus | its highest row | {score_name} | " + " | ".join(f"VGF, {mode}" for mode in columns) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for name in others:
        top = max((entry for entry in rows if entry.method == name), key=lambda entry: float(entry.over_seeds.mean()))
        cells = [_label(name, labels), top.mode, f"{float(top.over_seeds.mean()):.3f}"]
        for mode in columns:
            ours, theirs = _of_shared_seeds(own[mode], top)
            if len(ours) == 0:
                cells.append("no seed in common")
                continue
            found = paired_difference(ours.mean(dim=0), theirs.mean(dim=0))
            ratio = f" ({found.mean / found.standard_error:+.1f})" if found.standard_error > 0 else ""
            cells.append(f"{found.mean:+.3f} ± {found.standard_error:.3f}{ratio}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _of_shared_seeds(first: Entry, second: Entry) -> tuple[Tensor, Tensor]:
    """`[S, B]` of both over the seeds that both have, in order."""
    places = [{run["seed"]: place for place, run in enumerate(entry.runs)} for entry in (first, second)]
    shared = sorted(places[0].keys() & places[1].keys())
    return first.scores[[places[0][seed] for seed in shared]], second.scores[[places[1][seed] for seed in shared]]


def _difference_table(rows: Sequence[Entry], labels: Mapping[str, str]) -> str:
    """VGF against every other method in the same decoding, paired over problems."""
    best = own_method(rows)
    if best is None:
        return ""
    lines = [
        f"{_label(best, labels)} minus each other method in the same decoding: the difference paired over problems, "
        "and over the training runs of each seed:",
        "",
        "| minus | decoding | difference | 95% interval over problems | in s.e. | 95% interval over seeds |",
        "|---|---|---|---|---|---|",
    ]
    own = {entry.mode: entry for entry in rows if entry.method == best}
    for entry in rows:
        if entry.method == best or entry.mode not in own:
            continue
        ours, theirs = _of_shared_seeds(own[entry.mode], entry)
        if len(ours) == 0:
            continue
        found = paired_difference(ours.mean(dim=0), theirs.mean(dim=0))
        ratio = f"{found.mean / found.standard_error:+.1f}" if found.standard_error > 0 else ""
        over = difference_over_runs(ours.mean(dim=1), theirs.mean(dim=1))
        seeds = f"{over.low:+.3f} to {over.high:+.3f}" if len(ours) > 1 else ""
        lines.append(
            f"| {_label(entry.method, labels)} | {entry.mode} | {found.mean:+.3f} | {found.low:+.3f} to "
            f"{found.high:+.3f} | {ratio} | {seeds} |"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Frontier:
    """One sampled response of a method, against its divergence to the base.

    Attributes:
        points: In order of divergence; a budget, a temperature or a setting of the sweep each.
        trainings: How many trainings gave the points, per seed.
        seconds: Of all of them, per seed; `None` for the base.
    """

    points: tuple[Row, ...]
    trainings: int
    seconds: float | None


def frontiers(runs: Sequence[Run], labels: Mapping[str, str]) -> dict[str, Frontier]:
    """Collects the frontier of every method whose divergence was measured, by its name in tables.

    A value gives a point for every budget from one training, and the model behind it one for every temperature; a
    policy gives one for every setting that was trained and measured on test problems.
    """
    found: dict[str, Frontier] = {}
    tested = [run for run in runs if run["rows"]]
    for method in dict.fromkeys(run["method"] for run in tested):
        own = [run for run in tested if run["method"] == method]
        settings = list(dict.fromkeys(map(_swept, own)))
        points: dict[str, list[Row]] = {}
        for setting in settings:
            same = _entries_of([run for run in own if _swept(run) == setting])
            # What else is measured with a method is no frontier of its own.
            names = (method, f"{method}{EXPORTED}")
            measured = [entry for entry in same if entry.method in names and entry.mode.startswith("sampled")]
            curves = {entry.method for entry in measured if entry.mode.startswith("sampled, L=")}
            for entry in measured:
                if entry.mode != "sampled" or entry.method not in curves:  # it is the one that validation chose
                    points.setdefault(entry.method, []).append(_point(entry))
        costs = [run.get("train_cpu_seconds") or run["train_seconds"] for run in own if run["completions"]]
        seconds = sum(costs) / len({run["seed"] for run in own}) if costs else None
        for name, rows in points.items():
            known = sorted((row for row in rows if row.kl is not None), key=lambda row: row.kl or 0.0)
            if known:
                found[_label(name, labels)] = Frontier(tuple(known), len(settings), seconds)
    return found


def _point(entry: Entry) -> Row:
    divergences = [run["rows"][entry.method][entry.mode]["kl"] for run in entry.runs]
    kl = None if None in divergences else sum(divergences) / len(divergences)
    detail = entry.mode.removeprefix("sampled").removeprefix(", ") or _settings(entry.runs[0]) or "T=1"
    return Row(detail, *mean_and_error(entry.over_seeds), entry.tokens, entry.seconds, kl=kl)


def _frontier_table(runs: Sequence[Run], labels: Mapping[str, str], score_name: str) -> str:
    lines = [
        f"{score_name.capitalize()} of one sampled response against its KL divergence to the base, in nats per "
        "response, in order of divergence:",
        "",
        f"| method | points: KL, {score_name} | trainings | training |",
        "|---|---|---|---|",
    ]
    for label, frontier in frontiers(runs, labels).items():
        points = "; ".join(f"{row.method}: {row.kl:.2f}, {row.score:.3f}" for row in frontier.points)
        trained = frontier.seconds is not None
        cells = [
            label,
            points,
            str(frontier.trainings) if trained else "",
            f"{frontier.seconds:.0f}" if trained else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 4 else ""


def plot_frontier(runs: Sequence[Run], labels: Mapping[str, str], path: Path, score_name: str) -> None:
    """Draws the frontiers of all methods in one figure."""
    groups = {label: frontier.points for label, frontier in frontiers(runs, labels).items()}
    if groups:
        plots.plot_frontier(groups, path, "One sampled response", score_name)


def _sweep_table(runs: Sequence[Run], labels: Mapping[str, str]) -> str:
    lines = [
        "Learning rates and passes, sampled responses to validation problems with the first seed:",
        "",
        "| method | lr | validation | training |",
        "|---|---|---|---|",
    ]
    swept = [run for run in runs if run["learning_rate"] is not None and TRAINABLE[run["method"]].swept_as is None]
    if not swept:
        return ""
    first = min(run["seed"] for run in swept)
    for run in sorted(swept, key=lambda run: (run["method"], run["learning_rate"], run.get("passes") or 0)):
        if run["seed"] == first:
            mean, error = run["validation"]
            cells = [labels[run["method"]], _settings(run), f"{mean:.3f} ± {error:.3f}"]
            lines.append(f"| {' | '.join(cells)} | {_training_time([run])} |")
    return "\n".join(lines)


def reference(runs: Sequence[Run], labels: Mapping[str, str], command: str) -> dict[str, Any]:
    """Returns the rows that the math recipe prints beside its own, by their labels.

    Raises:
        ValueError: Without such rows.
    """
    found: dict[str, Any] = {}
    for entry in entries(runs):
        if entry.method in REFERENCES and entry.mode in ("greedy", "sampled", "majority@8"):
            row = found.setdefault(_label(entry.method, labels), {"seeds": len(entry.runs), "command": command})
            row[entry.mode] = "{:.3f} ± {:.3f}".format(*mean_and_error(entry.over_seeds))
    if not found:
        raise ValueError(f"`--write_reference` needs runs with rows of {'; '.join(REFERENCES)}.")
    return found


def plot(runs: Sequence[Run], labels: Mapping[str, str], path: Path, score_name: str) -> None:
    """Draws every method's greedy answer, majority vote and best-of-N against the tokens and seconds of answering."""
    groups: dict[str, list[Row]] = {}
    for entry in entries(runs):
        if entry.mode == "greedy" or ("T=" not in entry.mode and entry.mode.startswith(("majority", "best-of"))):
            mean, error = mean_and_error(entry.over_seeds)
            row = Row(entry.mode, mean, error, entry.tokens, entry.seconds)
            groups.setdefault(_label(entry.method, labels), []).append(row)
    plots.plot_costs(groups, path, "Test problems: greedy, majority and best of N", score_name, join=False)
