# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Measures a model against its baselines and controls on one task, resumably, and writes table and plots.

    python -m eval.run --model outputs/gsm8k_embedded --task embedded_math --steps 0 1 2 4 8 16 \
        --num_particles 1 4 8 --seeds 0 1 --output_dir outputs/eval

A run that was killed goes on where it stopped when the command is repeated; more methods, budgets or seeds can be added
to a folder, and only what is missing is sampled.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import is_matplotlib_available

from eval import plots, report
from eval.loading import LoadedModel, load_model, local_folder
from eval.methods import METHODS, PlanOptions, abilities, check_methods, plan
from eval.metrics import turn_over
from eval.sampling import PLAIN_SAMPLING, Samples, sample
from eval.scaling import Scaling, measure
from eval.store import SampleStore
from eval.tasks import TASKS, Task, TaskOptions, load_task
from vgf_llm.command_line import Parser

TRANSPORT_OVERRIDES = {"step_size": float, "top_k_candidates": int, "min_candidate_prob": float, "max_kl": float}


def add_model_arguments(parser: argparse.ArgumentParser, *, positional: bool = False) -> None:
    """Adds what says which model runs, and how it samples; `positional` is how the commands of `vgf` take the model."""
    group = parser.add_argument_group("model")
    about = "folder or hub id of a VGF model, or of a plain language model"
    if positional:
        parser.add_argument("model", metavar="path", help=about)
    else:
        group.add_argument("--model", required=True, help=about)
    group.add_argument("--revision", help="revision on the hub")
    group.add_argument("--base_model", help="policy, for a folder without its weights")
    group.add_argument("--tokenizer", help="tokenizer, for a folder without one")
    group.add_argument("--device", help="default: cuda where there is one, else cpu")
    group.add_argument("--dtype", default="auto", help="of the weights; as saved by default")
    group.add_argument("--batch_size", type=int, default=256, help="responses sampled at a time")
    group.add_argument("--cache_implementation", help="`static` is faster for small models on a CPU")
    group.add_argument("--num_threads", type=int, help="CPU threads")
    for name, kind in TRANSPORT_OVERRIDES.items():
        group.add_argument(f"--{name}", type=kind, help="instead of the model's own default")


def add_task_arguments(parser: argparse.ArgumentParser, *, split: str = "test") -> None:
    """Adds what says which problems are measured on."""
    group = parser.add_argument_group("task")
    group.add_argument("--task", required=True, help="; ".join(f"{n}: {e.description}" for n, e in TASKS.items()))
    helps = {
        "split": "validation chooses settings, test is reported",
        "num_problems": "problems; all, or 500 generated ones, by default",
        "problem_seed": "seed that draws or generates them",
        "dataset": "hub id or local folder instead of the task's own",
        "dataset_config": "configuration on the hub, or a folder inside the local one",
        "prompts_file": "JSON lines with a column `prompt`",
        "reward_model": "sequence classifier that scores the task `prompts`",
        "gold_model": "held-out classifier: then it is gold and `--reward_model` is the proxy",
        "conversational": "prompts are chat messages",
        "system_prompt": "first message of a conversation",
        "chat_template_kwargs": "switches of the chat template, as in training: '{\"enable_thinking\": false}'",
        "max_new_tokens": "longest response; the task's own by default",
    }
    kinds = {"num_problems": int, "problem_seed": int, "max_new_tokens": int}
    for item in fields(TaskOptions):
        how: dict[str, Any] = {"type": kinds.get(item.name, str), "default": item.default}
        if item.name == "conversational":
            how = {"action": "store_true"}
        if item.name == "split":
            how["default"] = split
        group.add_argument(f"--{item.name}", help=helps[item.name], **how)


def add_arguments(parser: argparse.ArgumentParser, *, positional: bool = False) -> None:
    """Adds all options; `positional` as for `add_model_arguments`."""
    add_model_arguments(parser, positional=positional)
    add_task_arguments(parser)
    group = parser.add_argument_group("methods")
    described = "; ".join(f"{name}: {text}" for name, text in METHODS.items())
    group.add_argument("--methods", nargs="+", default=["all"], help=f"all, or some of: {described}")
    group.add_argument("--steps", type=int, nargs="+", default=[0, 1, 2, 4, 8, 16], help="budgets L")
    group.add_argument("--control_steps", type=int, nargs="+", help="budgets of the controls; those of --steps")
    group.add_argument("--num_particles", type=int, nargs="+", default=[1, 4, 8], help="counts N")
    group.add_argument("--temperatures", type=float, nargs="+", default=[0.3, 0.7, 1.0], help="grid of `temperature`")
    group.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of the sampling")
    group.add_argument("--compare_to", help="row that paired differences are taken to; the first by default")
    parser.add_argument("--output_dir", required=True, help="results folder; reused by the same model and settings")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(prog="python -m eval.run", description=__doc__)
    add_arguments(parser)
    return parser.parse_args(argv)


def task_options(args: argparse.Namespace) -> TaskOptions:
    """Returns the task's part of the command line."""
    return TaskOptions(**{item.name: getattr(args, item.name) for item in fields(TaskOptions)})


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses bad input before anything is loaded.

    Raises:
        ValueError: For unknown tasks and methods, and empty or impossible sizes.
        FileNotFoundError: For a model that is not there.
    """
    if args.task not in TASKS:
        raise ValueError(f"`--task` must be one of {', '.join(TASKS)}; got {args.task!r}.")
    unknown = [name for name in getattr(args, "methods", ()) if name not in METHODS and name != "all"]
    if unknown:
        raise ValueError(f"`--methods` must be among {', '.join(METHODS)}, or all; got {', '.join(unknown)}.")
    if args.batch_size < 1:
        raise ValueError(f"`--batch_size` must be at least 1, got {args.batch_size}.")
    task_options(args)
    local_folder(args.model, args.revision)


def open_model(args: argparse.Namespace) -> LoadedModel:
    """Loads the model of a command line."""
    if args.num_threads is not None:
        torch.set_num_threads(args.num_threads)
    return load_model(
        args.model,
        revision=args.revision,
        base_model=args.base_model,
        tokenizer=args.tokenizer,
        device=args.device,
        dtype=args.dtype,
    )


def generation_options(args: argparse.Namespace, loaded: LoadedModel) -> dict[str, Any]:
    """Returns generation arguments that every draw shares."""
    options = {name: getattr(args, name) for name in TRANSPORT_OVERRIDES if getattr(args, name) is not None}
    options["pad_token_id"] = loaded.tokenizer.pad_token_id
    if args.cache_implementation is not None:
        options |= {"cache_implementation": args.cache_implementation, "disable_compile": True}
    return options


def open_sampler(
    args: argparse.Namespace, loaded: LoadedModel, task: Task, directory: Path
) -> tuple[Callable[..., Samples], SampleStore]:
    """Binds `sample` to model, task and results folder.

    Raises:
        ValueError: If the folder holds results of another model or other settings.
    """
    options = generation_options(args, loaded)
    settings = {
        "model": loaded.name,
        **loaded.marks,
        "task": args.task,
        **{name: value for name, value in asdict(task_options(args)).items() if value is not None},
        **task.marks,
        "batch_size": args.batch_size,
        "max_new_tokens": task.max_new_tokens,
        "sampling": PLAIN_SAMPLING,
        "generation": options,
    }
    store = SampleStore(directory, settings)
    bound = partial(sample, loaded.model, loaded.tokenizer, task, batch_size=args.batch_size, store=store, **options)
    return bound, store


def run(args: argparse.Namespace) -> Scaling:
    """Evaluates and reports.

    Args:
        args: What `parse` returned.

    Returns:
        The rows with the scores behind them.
    """
    check_arguments(args)
    options = PlanOptions(
        steps=args.steps,
        num_particles=args.num_particles,
        temperatures=args.temperatures,
        control_steps=args.control_steps,
    )
    loaded = open_model(args)
    task = load_task(args.task, task_options(args))
    able = abilities(loaded.model, task, has_value=loaded.has_value)
    methods = plan(check_methods(args.methods, able), able, options)
    if not methods:
        raise ValueError("Nothing to sample: the methods give no row; `--num_particles` needs a count above 1.")
    labels = [method.label for method in methods]
    if args.compare_to is not None and args.compare_to not in labels:
        raise ValueError(f"`--compare_to` must be one of the rows {labels}; got {args.compare_to!r}.")
    directory = Path(args.output_dir)
    sampler, _ = open_sampler(args, loaded, task.to(loaded.model.device), directory)
    result = measure(sampler, methods, seeds=args.seeds)
    meta = {
        "model": loaded.identity,
        "task": task.name,
        "split": args.split,
        "problems": len(task.problems),
        "seeds": args.seeds,
        "settings": {name: value for name, value in vars(args).items() if value is not None},
    }
    default = loaded.model.transport.transport_steps
    write_report(result, directory, task, args.compare_to or labels[0], meta=meta, default_steps=default)
    return result


def write_report(
    result: Scaling,
    directory: Path,
    task: Task,
    reference: str,
    *,
    meta: dict[str, Any],
    default_steps: int | None = None,
) -> None:
    """Writes `results.json`, `results.md` and, where matplotlib is installed, the plots.

    Args:
        result: Rows and scores.
        directory: Where.
        task: What was measured on.
        reference: The row that paired differences are taken to.
        meta: Kept beside the rows.
        default_steps: The budget at which methods are compared by cost; the largest if it was not measured.
    """
    name = task.score_name
    sections = [report.differences_to_markdown(result.scores, reference)]
    if task.binary and result.pass_at:
        cells = ", ".join(f"pass@{k} {mean:.3f} ± {error:.3f}" for k, (mean, error) in result.pass_at.items())
        sections.append(f"Of the base's samples, unbiased: {cells}.\n")
    curves = result.curves
    singles = {label: rows for label, rows in curves.items() if label.endswith("one particle")}
    for label, rows in singles.items():
        sections.append(turn_over_text(result, label, rows))
    report.save(result.rows, directory, meta, score_name=name, sections=sections)
    if not is_matplotlib_available():
        return
    steady = ("greedy", "temperature", "majority", "best_of_n", "best_of_m", "best_of_n_proxy", "value_vote")
    baselines = [row for row in result.rows if result.families[row.method] in steady]
    title = f"{task.name}, {meta['problems']} problems"
    if curves:
        shown = _most_telling(curves)
        plots.plot_budget(shown, _best_per_family(result, baselines), directory / "scaling.png", title, name)
    if singles:
        label, rows = next(iter(singles.items()))
        scores = [result.scores[row.method] for row in rows]
        turn = turn_over(scores, _proxies(result, rows))
        if all(row.kl is not None and not math.isnan(row.kl) for row in rows):
            plots.plot_over_optimization(
                rows, turn.index, directory / "over_optimization.png", f"{title}: {label}", name
            )
    budgets = {row.steps for row in result.rows if row.steps}
    shown = default_steps if default_steps in budgets else max(budgets, default=None)
    suffix = f", transport at L={shown}" if budgets else ""
    plots.plot_costs(_cost_groups(result, shown), directory / "costs.png", title + suffix, name)


def _proxies(result: Scaling, rows: Sequence[report.Row]) -> list[torch.Tensor] | None:
    found = [result.proxies.get(row.method) for row in rows]
    return None if any(scores is None for scores in found) else found  # type: ignore[return-value]


def turn_over_text(result: Scaling, label: str, rows: Sequence[report.Row]) -> str:
    """Says in a sentence where gold is highest along a curve, and what happens to gold and proxy beyond."""
    found = turn_over([result.scores[row.method] for row in rows], _proxies(result, rows))
    best = rows[found.index]
    text = f"{label}: gold is highest at L={best.steps} ({best.score:.3f} ± {best.standard_error:.3f})"
    if found.index < len(rows) - 1:
        text += f", and {found.gold_lost:.3f} lower at L={rows[-1].steps}"
        if found.proxy_gained == found.proxy_gained:  # a task without a proxy has NaN
            text += f", where the proxy has moved by {found.proxy_gained:+.3f}"
    return text + (": over-optimised.\n" if found.over_optimized else ".\n")


def _most_telling(curves: dict[str, list[report.Row]]) -> dict[str, list[report.Row]]:
    """At most seven curves fit a plot: the greatest N of a kind stands for the smaller ones."""
    latest: dict[str, str] = {}
    for label in curves:
        latest["".join(char for char in label if not char.isdigit())] = label
    return {label: curves[label] for label in list(latest.values())[:7]}


def _best_per_family(result: Scaling, rows: Sequence[report.Row]) -> list[report.Row]:
    best: dict[str, report.Row] = {}
    for row in rows:
        family = result.families[row.method]
        if family not in best or row.score > best[family].score:
            best[family] = row
    return list(best.values())[:6]


def _cost_groups(result: Scaling, steps: int | None) -> dict[str, list[report.Row]]:
    """Rows by what they do, whatever their N; transport at one budget, so that no point is the best of several."""
    groups: dict[str, list[report.Row]] = {}
    for row in result.rows:
        family = result.families[row.method]
        if family == "oracle" or (row.steps is not None and row.steps != steps):
            continue
        kind = " ".join(word for word in family.replace("_", " ").split() if not word.isdigit())
        groups.setdefault(kind.removesuffix(" of").replace(" of by", " by"), []).append(row)
    return groups


def execute(args: argparse.Namespace) -> None:
    """Evaluates, reports and prints the table."""
    result = run(args)
    report.print_table(result.rows, f"{args.task}, {args.split}, seeds {args.seeds}", Console())
    shown = "and plots are" if is_matplotlib_available() else "are"
    print(f"results.json, results.md {shown} in {args.output_dir}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, or 1 after an error that was printed."""
    args = parse(argv)
    try:
        execute(args)
    except (ValueError, OSError) as error:  # what bad input raises; anything else is a bug
        print(f"eval.run: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
