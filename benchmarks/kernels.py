# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""How far the flow kernels are from the memory bandwidth: their time over that of a copy of the same bytes.

`flow_direction` has to read the particles and the scores and write the velocity, `simplex_flow` to read logits and Q
and write log-probabilities: three times the size of one tensor. A copy moves two. The floor of a kernel is therefore
3/2 of the time of a copy, timed right before it. Two copies are timed: into a new tensor, as the kernels return one (on
a CPU the system hands out its pages one fault at a time), and into memory that is in use already, as `transport` gives
`flow_direction` for its steps. Two rows are no kernels but arithmetic that no version of them can do without, in
torch's own routines: they say how near torch can come to the floor.

    python -m benchmarks.kernels                                 # 8 of the 64 groups, 1.1 GB
    python -m benchmarks.kernels --groups 64                     # the full shape, [64, 8, 256 * 4096]: 6 GB in fp32
    python -m benchmarks.kernels --groups 64 --device cuda --dtype bfloat16
"""

import argparse
import functools
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.harness import (
    BASELINES,
    check,
    hardware,
    load_baseline,
    measure,
    shown,
    spread,
    time_pairs,
    write_json,
)
from vgf_llm.functional import flow_direction, simplex_flow

# Tensors that a kernel reads or writes, over those of a copy.
FLOOR = 3 / 2
SETTINGS = ("groups", "particles", "width", "rows", "candidates", "device", "dtype", "threads")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=8, help="groups of particles; 64 is the full shape")
    parser.add_argument("--particles", type=int, default=8, help="N")
    parser.add_argument("--width", type=int, default=256 * 4096, help="D, 256 tokens of width 4096")
    parser.add_argument("--rows", type=int, default=512, help="rows of simplex_flow")
    parser.add_argument("--candidates", type=int, default=40, help="K")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--baseline", type=Path, default=BASELINES / "kernels.json", help="for --check")
    parser.add_argument("--check", action="store_true", help="exit with 1 above the baseline's tolerance")
    args = parser.parse_args(argv)
    for name in ("groups", "particles", "width", "rows", "candidates", "pairs", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def kernels(args: argparse.Namespace) -> dict[str, tuple[Tensor, Callable[[], Any], int]]:
    """The kernels by name: a tensor of the size that they read twice and write once, a call, and calls per timing."""
    options: dict[str, Any] = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    particles = torch.randn(args.groups, args.particles, args.width, **options)
    score, velocity = torch.randn_like(particles), torch.empty_like(particles)
    weights = torch.rand(args.groups, args.particles, args.particles, **options)
    logits, q_values = torch.randn(2, args.rows, args.candidates, **options)
    mask = torch.rand(args.rows, args.candidates, device=args.device) < 0.5
    mask[:, 0] = True
    flow = {"step_size": 0.125, "num_steps": 8}

    def products() -> None:
        torch.bmm(particles, particles.mT)
        torch.bmm(weights, score, out=velocity)

    return {
        "flow_direction": (particles, lambda: flow_direction(particles, score), 1),
        "flow_direction, given `out`": (particles, lambda: flow_direction(particles, score, out=velocity), 1),
        "flow_direction without repulsion": (particles, lambda: flow_direction(particles, score, repulsion=False), 1),
        "two products alone, given `out`": (particles, products, 1),
        "simplex_flow": (logits, lambda: simplex_flow(logits, q_values, **flow), 300),
        "simplex_flow with a mask": (logits, lambda: simplex_flow(logits, q_values, candidate_mask=mask, **flow), 300),
        "log_softmax alone": (logits, lambda: torch.log_softmax(logits, dim=-1), 300),
    }


def measure_kernel(tensor: Tensor, call: Callable[[], Any], repeats: int, args: argparse.Namespace) -> dict[str, Any]:
    """Times a kernel beside copies of its tensor."""
    target = torch.zeros_like(tensor)
    warm = [measure(functools.partial(target.copy_, tensor), args.device, repeats) for _ in range(args.pairs + 1)][1:]
    pairs = time_pairs(tensor.clone, call, args.pairs, args.device, repeats)
    clock = "wall" if torch.device(args.device).type == "cuda" else "cpu"
    size = tensor.numel() * tensor.element_size()
    fastest = min(getattr(seconds, clock) for seconds in warm)
    result = {
        "shape": list(tensor.shape),
        "milliseconds": round(statistics.median(getattr(other, clock) for other in pairs.other) * 1e3, 4),
        "warm_copy_gb_per_s": round(2 * size / fastest / 1e9, 2),
        "warm_floor": spread([getattr(other, clock) / (FLOOR * fastest) for other in pairs.other]),
    }
    for name in ("cpu", "wall"):
        result[f"floor_{name}"] = spread([ratio / FLOOR for ratio in pairs.ratios(name)])
    return result


def table(rows: dict[str, dict[str, Any]], args: argparse.Namespace) -> Table:
    """Lays the figures out for the terminal."""
    view = Table(title=f"{hardware(args.device)}, {args.dtype}, {args.threads} threads, {args.pairs} pairs")
    view.add_column("kernel")
    for column in ("shape", "ms", "x floor, new memory (cpu)", "(wall)", "x floor, memory in use", "copy GB/s"):
        view.add_column(column, justify="right")
    for name, row in rows.items():
        floors = [shown(row[key]) for key in ("floor_cpu", "floor_wall", "warm_floor")]
        view.add_row(name, str(row["shape"]), f"{row['milliseconds']:.3f}", *floors, f"{row['warm_copy_gb_per_s']:.1f}")
    return view


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    settings = {name: getattr(args, name) for name in SETTINGS}
    baseline = load_baseline(args.baseline, settings) if args.check else {"rows": {}}
    rows = {name: measure_kernel(*kernel, args) for name, kernel in kernels(args).items()}
    console = Console()
    console.print(table(rows, args))
    write_json(args.json, {"hardware": hardware(args.device), "settings": settings, "rows": rows})
    clock = "wall" if torch.device(args.device).type == "cuda" else "cpu"
    medians = {name: {"floor": row[f"floor_{clock}"]["median"]} for name, row in rows.items()}
    failures = check(medians, baseline)
    for failure in failures:
        console.print(f"[red]{failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
