# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What training holds in memory at a vocabulary of 151,936 tokens: VGFTrainer beside GRPOTrainer with the same LoRA.

    python -m benchmarks.memory --json memory.json

Both train on the same fixed completions, as in `benchmarks.train_step`, each run in a process of its own. Tensors are
counted by torch's profiler, beyond what the trainer holds when training starts (the weights, mostly). `states` is the
largest number of states whose logits over the vocabulary existed as one tensor; a loss that takes the logits of a batch
at once has all tokens of its completions there.
"""

import argparse
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import train_step
from benchmarks.harness import hardware, write_json
from benchmarks.sizes import SIZES, build_policy

BASE = "grpo lora"
RUNS = ("log_ratio", "log_ratio, pairs")


class LargestLogits(TorchDispatchMode):
    """The largest number of states in a tensor of `vocab_size` columns, weights of that size aside."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.vocab_size, self.width, self.states = vocab_size, width, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        matrices = (leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor) and leaf.dim() > 1)
        for tensor in matrices:
            # Not the output embedding, transposed.
            if tensor.shape[-1] == self.vocab_size and tensor.shape[-2] != self.width:
                self.states = max(self.states, tensor.numel() // self.vocab_size)
        return found


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; what it leaves open is as in `benchmarks.train_step`."""
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="qwen2.5-0.5b")
    parser.add_argument("--layers", type=int, default=2, help="in place of the shape's own number")
    parser.add_argument("--num_prompts", type=int, default=2)
    parser.add_argument("--num_generations", type=int, default=4)
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--completion_length", type=int, default=80)
    parser.add_argument("--steps", type=int, default=1, help="steps after the first")
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args(argv)
    return argparse.Namespace(**vars(args), warm_up=1, device="cpu", dtype="float32", threads=1)


def measure(run: str, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one run in this process."""
    torch.set_num_threads(args.threads)
    shape, timer = SIZES[args.size], train_step.StepTimer(args.device)
    largest = LargestLogits(shape["vocab_size"], shape["hidden_size"])
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = train_step.build_trainer(run, args, output_dir, timer)
        with largest, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            trainer.train()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    steps = timer.steps(args.warm_up)
    return {
        "peak_bytes": max(accumulate(size for _, size in changes)),
        "cpu_seconds": sum(step["cpu"] for step in steps) / len(steps),
        "states": largest.states,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    args = parse_args(argv)
    found: dict[str, dict[str, Any]] = {}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        policy = build_policy(args.size, "cpu", args.dtype, num_hidden_layers=args.layers)
        policy.save_pretrained(folder)
        train_step.tokenizer(policy.config.vocab_size).save_pretrained(folder)
        del policy
        args.folder = Path(folder)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            for run in (BASE, *RUNS):
                found[run] = pool.submit(measure, run, args).result()
    settings = {name: str(value) for name, value in vars(args).items() if name not in ("json", "folder")}
    tokens = args.num_prompts * args.num_generations * args.completion_length
    view = Table(title=f"{hardware('cpu')}; {args.size}, {args.layers} layers, {tokens} completion tokens")
    for column in ("run", "peak, MB", "over GRPO", "cpu seconds of a step", "over GRPO", "states of one logits tensor"):
        view.add_column(column)
    for run, row in found.items():
        ratios = {name: f"{row[name] / found[BASE][name]:.2f}" for name in ("peak_bytes", "cpu_seconds")}
        view.add_row(run, f"{row['peak_bytes'] / 1e6:.0f}", ratios["peak_bytes"], f"{row['cpu_seconds']:.1f}",
                     ratios["cpu_seconds"], str(row["states"]))  # fmt: skip
    Console().print(view)
    write_json(args.json, {"hardware": hardware("cpu"), "settings": settings, "runs": found})


if __name__ == "__main__":
    main()
