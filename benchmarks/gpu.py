# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Every ratio on one GPU in at most eight minutes: decoding, lookahead, training steps, kernels and rounds by vLLM.

    python -m benchmarks.gpu --json gpu.json
    python -m benchmarks.gpu --tiny          # the same code on a CPU with tiny shapes, whose figures mean nothing

Shapes are those of Qwen2.5-0.5B and Qwen2.5-7B, with random weights in bfloat16. Each part is another benchmark with
sizes that fit the time, in a process of its own. A part that the time has run out for says so in place of its ratios.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness import hardware, write_json

SECONDS = 480.0
SMALL, LARGE = "qwen2.5-0.5b", "qwen2.5-7b"

# Benchmark, shape (none for kernels) and options on a GPU, most wanted first.
_TRAIN = (
    "--num_prompts",
    "4",
    "--num_generations",
    "8",
    "--completion_length",
    "256",
    "--steps",
    "3",
    "--warm_up",
    "1",
)
_DECODE = ("--rows", "bilinear", "log_ratio", "--num_particles", "8", "--new_tokens", "48", "--pairs", "3")
PARTS: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
    ("decode", SMALL, _DECODE),
    ("train_step", SMALL, ("--rows", "head", "log_ratio", "log_ratio over grpo lora", *_TRAIN)),
    ("lookahead", SMALL, ("--new_tokens", "32")),
    ("kernels", None, ("--groups", "64")),
    ("rounds", SMALL, ("--rows", "128", "--new_tokens", "128", "--turns", "2")),
    ("decode", LARGE, _DECODE),
    ("lookahead", LARGE, ("--new_tokens", "24", "--pairs", "2")),
    ("train_step", LARGE, ("--rows", "log_ratio over grpo lora", *_TRAIN)),
    ("rounds", LARGE, ("--rows", "64", "--new_tokens", "64", "--turns", "2")),
)
_FEW = ("--new_tokens", "2", "--prompt_tokens", "4", "--batch_size", "2", "--pairs", "1")
_SHORT = ("--num_prompts", "1", "--num_generations", "2", "--completion_length", "4", "--prompt_tokens", "4")
TINY: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
    ("decode", "tiny", ("--rows", "bilinear", "log_ratio", "--num_particles", "2", *_FEW)),
    ("train_step", "tiny", ("--rows", "log_ratio over grpo lora", *_SHORT, "--steps", "1", "--warm_up", "1")),
    ("lookahead", "tiny", ("--candidates", "4", *_FEW)),
    ("kernels", None, ("--groups", "1", "--width", "64", "--rows", "4", "--pairs", "1")),
    ("rounds", "tiny", ("--rows", "8", "--new_tokens", "4", "--prompt_tokens", "4", "--turns", "1")),
)


def _rounds(report: dict[str, Any]) -> dict[str, float]:
    turns = zip(report["seconds"]["vLLM"], report["seconds"]["transformers"], strict=True)
    return {"vLLM over transformers": statistics.median(own[0] / other[0] for own, other in turns)}


# The ratios of elapsed time, and of memory, in the JSON of a benchmark.
RATIOS: dict[str, Callable[[dict[str, Any]], dict[str, float]]] = {
    "decode": lambda report: {f"{name} over generate": row["ratio"] for name, row in report["rows"].items()},
    "lookahead": lambda report: {
        f"lookahead, {name}, over transport": row["times_faster_wall"]["median"] for name, row in report["rows"].items()
    },
    "train_step": lambda report: {
        f"{name}{'' if ' over ' in name else ' over grpo'}: {what}": row[key]["median"]
        for name, row in report["rows"].items()
        for what, key in (("time", "time_wall"), ("memory", "memory"))
    },
    "kernels": lambda report: {
        f"{name} over its floor": row["floor_wall"]["median"] for name, row in report["rows"].items()
    },
    "rounds": _rounds,
}


def run_part(module: str, options: Sequence[str], seconds: float) -> dict[str, Any]:
    """Runs a benchmark in a process of its own, for so many seconds at most; returns its JSON, or why there is none."""
    if module == "rounds" and find_spec("vllm") is None:
        return {"left_out": "vLLM is not installed"}
    if seconds <= 0:
        return {"left_out": "the time had run out"}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        # A fork has the imports of this process, which has not touched the GPU.
        process = multiprocessing.get_context("fork").Process(
            target=_run, args=(module, [*options, "--json", str(out)])
        )
        process.start()
        process.join(seconds)
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):  # it had no time to lead a group
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.kill()
            process.join()
            return {"left_out": f"stopped after {seconds:.0f} s"}
        if process.exitcode != 0 or not out.is_file():
            return {"left_out": f"ended with exit code {process.exitcode}; its error is above", "failed": True}
        report = json.loads(out.read_text(encoding="utf-8"))
    return {"seconds": time.perf_counter() - began, "ratios": RATIOS[module](report), "report": report}


def _run(module: str, options: list[str]) -> None:
    os.setpgrp()
    sys.exit(importlib.import_module(f"benchmarks.{module}").main(options))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs every part and returns the exit code: 1 if one failed."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on a CPU, to see that the code runs")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the ratios, and the report of every part")
    args = parser.parse_args(argv)
    # A look that does not start CUDA in this process, whose forks could not use it then.
    if not args.tiny and (torch.version.cuda is None or torch.cuda.device_count() == 0):
        parser.error("there is no CUDA device here; --tiny runs the same code on a CPU")
    device = ("--device", "cpu") if args.tiny else ("--device", "cuda", "--dtype", "bfloat16")
    end, found = time.perf_counter() + args.seconds, {}
    for module, size, options in TINY if args.tiny else PARTS:
        name = module if size is None else f"{module}, {size}"
        shape = () if size is None else ("--size", size)
        found[name] = {"options": [*shape, *options, *device]}
        found[name] |= run_part(module, found[name]["options"], end - time.perf_counter())
    view = Table("part", "ratio", "", title="tiny" if args.tiny else hardware("cuda"))
    for name, part in found.items():
        for row, ratio in part.get("ratios", {"not run": part.get("left_out")}).items():
            view.add_row(name, row, ratio if isinstance(ratio, str) else f"{ratio:.2f}")
    Console().print(view)
    write_json(args.json, {"hardware": hardware("cpu" if args.tiny else "cuda"), "parts": found})
    return int(any(part.get("failed", False) for part in found.values()))


if __name__ == "__main__":
    sys.exit(main())
