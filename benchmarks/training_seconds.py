# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Seconds of whole training runs, sampling and reward included, each beside VGF's in the same minutes.

Two processes of one thread start at once: VGF and one of TRL's trainers, from the same base, prompts and reward, with
as many sampled completions. Where one ends first, VGF is started anew to keep the machine as busy until the other ends,
and that run is thrown away. So both seconds of a pair were taken under the same load, and their ratio says what seconds
of different days do not.

    python -m benchmarks.training_seconds --recipe embedded_math --num_train 1024 --methods grpo rloo rft:2 rft:8
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness import hardware, measure, write_json
from eval.baselines import TRAINABLE, Job
from eval.compare import RECIPES
from eval.tasks import TaskOptions, load_task

POLL_SECONDS = 0.2


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.training_seconds", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", choices=RECIPES, required=True)
    parser.add_argument("--methods", nargs="+", default=["grpo", "rloo", "online_dpo", "dpo", "rft"], metavar="METHOD",
                        help="methods of eval.compare, or NAME:PASSES over their completions; dpo and rft make two if "
                        "left out, grpo and rloo one")  # fmt: skip
    parser.add_argument("--num_train", type=int, help="training prompts; as many as the recipe has by default")
    parser.add_argument("--num_generations", type=int, default=4, help="training completions per prompt")
    parser.add_argument("--batch_size", type=int, default=64, help="completions per optimizer step of TRL's trainers")
    parser.add_argument("--vgf_num_train", type=int, help="training prompts of VGF, where it is to have fewer")
    parser.add_argument("--vgf_num_generations", type=int, help="likewise, completions per prompt")
    parser.add_argument("--vgf_config", type=Path, help="another YAML file of VGF settings than the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # one run in a process of its own
    args = parser.parse_args(argv)
    for text in args.methods:
        name, _, passes = text.partition(":")
        if name not in TRAINABLE:
            parser.error(f"--methods must be among {', '.join(TRAINABLE)}; got {name!r}")
        if passes and not (TRAINABLE[name].passes and passes.isdigit() and int(passes) > 0):
            able = ", ".join(key for key, method in TRAINABLE.items() if method.passes)
            parser.error(f"--methods {text}: a number of passes, 1 or more, goes with {able}")
    for name in ("num_train", "num_generations", "batch_size", "vgf_num_train", "vgf_num_generations"):
        if getattr(args, name) is not None and getattr(args, name) < 2:
            parser.error(f"--{name} must be at least 2, got {getattr(args, name)}")
    if args.vgf_config is not None and not args.vgf_config.is_file():
        parser.error(f"--vgf_config {args.vgf_config} is no file; name a YAML file such as the recipe's")
    return args


def train(method: str, args: argparse.Namespace) -> dict[str, float]:
    """Trains one method in this process, with the middle learning rate of its sweep; returns what it took."""
    torch.set_num_threads(1)
    name, _, passes = method.partition(":")
    recipe = RECIPES[args.recipe]
    num_train, num_generations = args.num_train or recipe.num_train, args.num_generations
    if name == "vgf":
        num_train, num_generations = args.vgf_num_train or num_train, args.vgf_num_generations or num_generations
    options = TaskOptions("train", num_train, problem_seed=args.seed)
    rates = TRAINABLE[name].learning_rates
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            base=recipe.base,
            task=load_task(recipe.task, options).for_training(),
            directory=Path(folder),
            seed=args.seed,
            learning_rate=rates[len(rates) // 2] if rates else None,
            vgf_config=args.vgf_config or recipe.vgf_config,
            num_generations=num_generations,
            batch_size=args.batch_size,
            passes=int(passes or (2 if TRAINABLE[name].offline else 1)),
        )
        seconds = measure(lambda: TRAINABLE[name].train(job))
    return {"cpu": round(seconds.cpu, 1), "wall": round(seconds.wall, 1)}


def start(method: str, argv: Sequence[str], out: Path) -> subprocess.Popen:
    """Starts `train` in a process that writes its seconds to `out`."""
    command = [sys.executable, "-m", "benchmarks.training_seconds", *argv, "--worker", method, "--json", str(out)]
    with out.with_suffix(".log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def pair(method: str, argv: Sequence[str], folder: Path) -> dict[str, Any]:
    """Trains VGF and a method at once.

    Raises:
        RuntimeError: If one of them fails; the end of what it printed is in the message.
    """
    outs = {name: folder / f"{name.replace(':', '-')}.json" for name in ("vgf beside", method, "filler")}
    running = {"vgf beside": start("vgf", argv, outs["vgf beside"]), method: start(method, argv, outs[method])}
    filler, failed = None, []
    try:
        while not failed and any(process.poll() is None for process in running.values()):
            if filler is None and any(process.poll() is not None for process in running.values()):
                filler = start("vgf", argv, outs["filler"])
            time.sleep(POLL_SECONDS)
            failed = [name for name, process in running.items() if process.poll()]
    finally:
        for process in [*running.values(), *([] if filler is None else [filler])]:
            process.kill()
            process.wait()
    if failed:
        tail = outs[failed[0]].with_suffix(".log").read_text(encoding="utf-8")[-2000:]
        raise RuntimeError(f"Training {failed[0]} failed:\n{tail}")
    vgf, other = (json.loads(outs[name].read_text(encoding="utf-8")) for name in running)
    return {"vgf": vgf, "other": other, "ratio": round(other["cpu"] / vgf["cpu"], 3)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse_args(argv)
    if args.worker is not None:
        write_json(args.json, train(args.worker, args))
        return 0
    console = Console()
    view = Table(title=f"{args.recipe}: {hardware('cpu')}, two processes of one thread")
    for column in ("method", "processor s", "VGF's beside it", "over VGF's"):
        view.add_column(column, justify="left" if column == "method" else "right")
    names = ("recipe", "num_train", "num_generations", "batch_size", "vgf_num_train", "vgf_num_generations")
    settings = {name: getattr(args, name) for name in names}
    settings["vgf_config"] = None if args.vgf_config is None else str(args.vgf_config)
    rows = {}
    for method in args.methods:
        with tempfile.TemporaryDirectory() as folder:
            rows[method] = row = pair(method, argv, Path(folder))
        view.add_row(method, f"{row['other']['cpu']:.1f}", f"{row['vgf']['cpu']:.1f}", f"{row['ratio']:.2f}")
        write_json(args.json, {"hardware": hardware("cpu"), "settings": settings, "rows": rows})
    console.print(view)
    return 0


if __name__ == "__main__":
    sys.exit(main())
