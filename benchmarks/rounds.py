# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Seconds of one round by vLLM over the seconds by transformers, in one process and in turns.

    python -m benchmarks.rounds                          # half of the rows from the value's adapter, half from the base
    python -m benchmarks.rounds --rollout_policy base
    python -m benchmarks.rounds --size qwen2.5-0.5b --device cuda --dtype bfloat16

Every turn changes the adapter first, so that it is sent again. The engine does not compile on a CPU.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table

from benchmarks.harness import hardware, measure, write_seconds
from benchmarks.serving import SETTINGS
from benchmarks.sizes import SIZES, build_policy
from benchmarks.train_step import tokenizer
from vgf_llm import VGFConfig, VGFTrainer


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.rounds", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="60m", help="the model's shape; its weights are random")
    parser.add_argument("--rollout_policy", choices=("value", "base"), default="value")
    parser.add_argument("--rows", type=int, default=64, help="completions of a round, four of a prompt")
    parser.add_argument("--prompt_tokens", type=int, default=40)
    parser.add_argument("--new_tokens", type=int, default=64, help="at most; random weights rarely end sooner")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the seconds of every turn")
    return parser.parse_args(argv)


def build_trainer(args: argparse.Namespace, folder: Path, **settings: Any) -> VGFTrainer:
    """Builds a trainer, of which the sampler alone is used."""
    config = VGFConfig(
        str(folder / "out"),
        use_cpu=args.device == "cpu",
        bf16=False,
        model_init_kwargs={"dtype": args.dtype},
        rollout_policy=args.rollout_policy,
        num_generations=4,
        per_device_train_batch_size=args.rows,
        max_completion_length=args.new_tokens,
        min_candidate_prob=0.0,  # random weights have no likely tokens
        report_to=[],
        **settings,
    )
    prompts = Dataset.from_dict({"prompt": [f"w{number}" for number in range(3, 60)]})
    return VGFTrainer(
        str(folder),
        lambda completion_ids, **kwargs: [0.0] * len(completion_ids),
        config,
        prompts,
        processing_class=tokenizer(SIZES[args.size]["vocab_size"]),
    )


def seconds(args: argparse.Namespace, folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Returns the seconds of every turn, by the wall clock and of the processor."""
    from vllm import LLM

    eager = patch("trl.generation.vllm_generation.LLM", partial(LLM, enforce_eager=True, dtype=args.dtype))
    engine = {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": args.prompt_tokens + args.new_tokens}
    with eager if args.device == "cpu" else nullcontext():
        runs = {"vLLM": build_trainer(args, folder, **engine), "transformers": build_trainer(args, folder)}
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(3, SIZES[args.size]["vocab_size"], (args.rows // 4, args.prompt_tokens), generator=generator)
    rows = [{"prompt": " ".join(f"w{word}" for word in prompt)} for prompt in words.tolist() for _ in range(4)]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(args.turns + 1):
        for name, run in runs.items():
            with torch.no_grad():
                for parameter in run.vgf_model.value_adapter_parameters().values():
                    parameter.add_(1e-3 * torch.randn_like(parameter))
            took = measure(partial(run.sampler, run._request(rows, "train", turn)), args.device)
            if turn > 0:
                found[name].append((took.wall, took.cpu))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    args = parse_args(argv)
    os.environ.update(SETTINGS)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        policy = build_policy(args.size, "cpu", args.dtype)
        policy.save_pretrained(folder)
        tokenizer(policy.config.vocab_size).save_pretrained(folder)
        found = seconds(args, Path(folder))
    title = f"{args.size}, {args.rows} rows from {args.rollout_policy}, {hardware(args.device)}"
    shown = Table("sampler", "seconds (wall)", "seconds (cpu)", "cpu over transformers", "range", title=title)
    for name, turns in found.items():
        wall, cpu = zip(*turns, strict=True)
        ratios = [own[1] / other[1] for own, other in zip(turns, found["transformers"], strict=True)]
        medians = [f"{statistics.median(times):.2f}" for times in (wall, cpu, ratios)]
        shown.add_row(name, *medians, f"{min(ratios):.2f} to {max(ratios):.2f}")
    Console().print(shown)
    write_seconds(args, found)


if __name__ == "__main__":
    main()
