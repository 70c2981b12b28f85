# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""How the cost of transported decoding grows with N, L, T, V and the batch: fitted exponents.

One dimension is doubled at a time, the others stay. Sizes take turns, so that load on the machine falls on all of them;
the median of each goes into a least-squares line through the logarithms, whose slope b says cost ~ size^b: 0 is free, 1
is proportional. The exponent of plain `generate` stands beside it, and that of what transport adds, where that is more
than a tenth of a percent of the whole. `flow_direction` and `simplex_flow` are fitted the same way.

    python -m benchmarks.scaling --json scaling.json --markdown scaling.md
    python -m benchmarks.scaling --device cuda --dtype bfloat16 --size qwen2.5-0.5b
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.harness import exponent, hardware, measure, write_json
from benchmarks.sizes import SIZES, build_policy
from vgf_llm.functional import flow_direction, simplex_flow
from vgf_llm.models import VGFModel, build_value

SETTINGS = ("size", "device", "dtype", "threads", "turns")
# The point that every dimension is varied from.
CENTRE = {"N": 2, "L": 8, "T": 16, "V": 8_000, "batch": 2}
DIMENSIONS: dict[str, tuple[int, ...]] = {
    "N": (1, 2, 4, 8),
    "L": (1, 4, 16, 64),
    "T": (8, 16, 32, 64),
    "V": (4_000, 8_000, 16_000, 32_000),
    "batch": (1, 2, 4, 8),
}
Calls = dict[int, Callable[[], Any]]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="25m", help="a model of this shape, random weights")
    parser.add_argument("--turns", type=int, default=3, help="timings of every size, after one that does not count")
    parser.add_argument("--shrink", type=int, default=1, help="divides T and V, for a quick look")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the cpu clock is exact for one")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--markdown", type=Path, metavar="OUT")
    args = parser.parse_args(argv)
    for name in ("turns", "shrink", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def medians(calls: Calls, args: argparse.Namespace, repeats: int = 1) -> list[float]:
    """The median seconds of each call, taken in turns; of the cpu clock, on a GPU of the wall clock."""
    clock = "wall" if torch.device(args.device).type == "cuda" else "cpu"
    found: dict[int, list[float]] = {size: [] for size in calls}
    for turn in range(args.turns + 1):
        for size, call in calls.items():
            seconds = getattr(measure(call, args.device, repeats), clock)
            if turn > 0:
                found[size].append(seconds)
    return [statistics.median(seconds) for seconds in found.values()]


def fitted(calls: Calls, args: argparse.Namespace, repeats: int = 1) -> dict[str, Any]:
    """Sizes, median seconds and the exponent."""
    seconds = medians(calls, args, repeats)
    return {
        "sizes": list(calls),
        "seconds": [float(f"{value:.4g}") for value in seconds],
        "exponent": round(exponent(list(calls), seconds), 3),
    }


def build(vocab_size: int, args: argparse.Namespace) -> VGFModel:
    """A policy with this vocabulary and a bilinear value on its features, not the zeros of an untrained one."""
    policy = build_policy(args.size, args.device, args.dtype, vocab_size=vocab_size)
    model = VGFModel(policy, build_value("bilinear", width=policy.config.hidden_size, vocab_size=vocab_size))
    torch.nn.init.normal_(model.value.head.out.weight, std=0.02)
    return model.to(args.device).eval()


def decoding(dimension: str, args: argparse.Namespace) -> dict[str, Any]:
    """How plain and transported decoding grow with one dimension."""
    plain: Calls = {}
    moved: Calls = {}
    models: dict[int, VGFModel] = {}
    for size in DIMENSIONS[dimension]:
        point = {**CENTRE, dimension: size}
        point["T"], point["V"] = max(2, point["T"] // args.shrink), max(64, point["V"] // args.shrink)
        if point["V"] not in models:
            models[point["V"]] = build(point["V"], args)
        model = models[point["V"]]
        prompts = torch.randint(3, point["V"], (point["batch"], 16), device=args.device)
        plain[size], moved[size] = _calls(model, prompts, point)
    base = fitted(plain, args)
    transported = fitted(moved, args)
    return {"plain": base, "transported": transported}


def _calls(model: VGFModel, prompts: Tensor, point: dict[str, int]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Plain and transported sampling at one point."""
    options = {"do_sample": True, "top_k": 0, "min_new_tokens": point["T"], "max_new_tokens": point["T"]}
    rows = prompts.repeat_interleave(point["N"], dim=0)

    def plain() -> Tensor:
        return model.policy.generate(rows, attention_mask=torch.ones_like(rows), **options)

    def transported() -> Any:
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            transport_steps=point["L"],
            num_particles=point["N"],
            **options,
        )

    return plain, transported


def flows(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """How the flows alone grow."""
    options: dict[str, Any] = {"device": args.device, "dtype": getattr(torch, args.dtype)}

    def particles(count: int, width: int) -> Callable[[], Any]:
        u, score = torch.randn(2, 8, count, width, **options)
        return lambda: flow_direction(u, score)

    logits, q_values = torch.randn(2, 512, 40, **options)

    def simplex(steps: int) -> Callable[[], Any]:
        return lambda: simplex_flow(logits, q_values, step_size=0.125, num_steps=steps)

    width = 2**14 // args.shrink
    lengths = DIMENSIONS["L"]
    return {
        "flow_direction over N": fitted({n: particles(n, width) for n in (2, 4, 8, 16, 32)}, args, 3),
        "flow_direction over D": fitted({d: particles(8, d) for d in (width, 2 * width, 4 * width)}, args, 3),
        "simplex_flow over L": fitted({n: simplex(n) for n in lengths}, args, 20),
    }


def markdown(result: dict[str, Any]) -> str:
    """The table of exponents."""
    lines = ["| cost of | over | sizes | exponent | plain `generate` |", "|---|---|---|---|---|"]
    for dimension, row in result["decoding"].items():
        sizes = ", ".join(map(str, row["transported"]["sizes"]))
        exponents = [f"{row[name]['exponent']:.2f}" for name in ("transported", "plain")]
        lines.append(f"| `VGFModel.generate` | {dimension} | {sizes} | {exponents[0]} | {exponents[1]} |")
    for name, row in result["flows"].items():
        what, over = name.rsplit(" over ", 1)
        lines.append(f"| `{what}` | {over} | {', '.join(map(str, row['sizes']))} | {row['exponent']:.2f} | |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    result = {
        "hardware": hardware(args.device),
        "settings": {name: getattr(args, name) for name in SETTINGS},
        "centre": CENTRE,
        "decoding": {dimension: decoding(dimension, args) for dimension in DIMENSIONS},
        "flows": flows(args),
    }
    text = markdown(result)
    Console().print(f"{result['hardware']}\n\n{text}", markup=False)
    write_json(args.json, result)
    if args.markdown is not None:
        args.markdown.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
