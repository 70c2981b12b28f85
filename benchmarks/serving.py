# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What transport costs inside vLLM: an engine that serves a VGF model, as `vgf serve` does, against plain vLLM.

Two engines of one policy (random weights, a Llama shape) live in one process and answer the same prompts with the same
number of new tokens, in turns (plain, budget 0, budget L, plain, ...). Every figure is a ratio within a turn; the table
gives the median and the range over the turns. HTTP, which both would pay alike, is left out. Where the value reads a
model of its own, plain vLLM also answers every prompt twice, which is as many rows through one model.

    .venv-vllm/bin/python -m benchmarks.serving            # in the environment of scripts/setup_vllm_cpu.sh
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM

from benchmarks.decode import CLOCKS, ROWS, SIZES, build_model, build_policy
from benchmarks.harness import write_seconds
from vgf_llm.serving import engine_arguments

# vLLM reads these when it is imported.
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model_size", choices=SIZES, default="60m", help="a Llama of this shape, random weights")
    rows = [name for name, (_, _, control) in ROWS.items() if control is None]
    parser.add_argument("--row", choices=rows, default="vocab", help="the value; see docs/serving.md")
    parser.add_argument("--batch_size", type=int, default=8, help="requests at a time")
    parser.add_argument("--transport_steps", type=int, default=8)
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--new_tokens", type=int, default=32, help="every response has exactly this length")
    parser.add_argument("--pairs", type=int, default=6, help="turns, after one that is not counted")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor seconds, on a busy machine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the seconds of every turn")
    args = parser.parse_args(argv)
    for name in ("batch_size", "transport_steps", "prompt_tokens", "new_tokens", "pairs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def save_model(args: argparse.Namespace, directory: Path) -> None:
    """Writes the model that both engines serve."""
    args.model_name_or_path, args.device, args.dtype = None, "cpu", "float32"
    policy = build_policy(args)
    assert isinstance(policy, LlamaForCausalLM)
    build_model(policy, args.row).save_pretrained(directory)


def measure(args: argparse.Namespace, directory: Path) -> dict[str, list[float]]:
    """Returns the seconds of each kind of call, turn by turn."""
    from vllm import LLM, SamplingParams

    view = directory / "view"
    view.mkdir()
    arguments = engine_arguments(directory / "model", view)
    options: dict[str, Any] = {
        "enforce_eager": True,
        "dtype": "float32",
        "max_model_len": args.prompt_tokens + args.new_tokens,
        "max_num_seqs": 2 * args.batch_size,
        "enable_prefix_caching": False,
        "skip_tokenizer_init": True,
    }
    plain = LLM(model=arguments["model"], logprobs_mode=arguments["logprobs_mode"], **options)
    served = LLM(**arguments, **options)
    generator = torch.Generator().manual_seed(args.seed)
    vocab_size = SIZES[args.model_size]["vocab_size"]
    ids = torch.randint(3, vocab_size, (args.batch_size, args.prompt_tokens), generator=generator)
    prompts = [{"prompt_token_ids": row} for row in ids.tolist()]

    clock = CLOCKS[args.clock]

    def seconds(engine: Any, times: int = 1, **budget: int) -> float:
        params = SamplingParams(
            max_tokens=args.new_tokens, ignore_eos=True, detokenize=False, temperature=1.0, extra_args=budget or None
        )
        start = clock()
        outputs = engine.generate(prompts * times, params, use_tqdm=False)
        elapsed = clock() - start
        assert all(len(output.outputs[0].token_ids) == args.new_tokens for output in outputs)
        return elapsed

    calls: dict[str, Callable[[], float]] = {
        "plain": lambda: seconds(plain),
        "plain, every prompt twice": lambda: seconds(plain, times=2),
        "budget 0": lambda: seconds(served, transport_steps=0),
        f"budget {args.transport_steps}": lambda: seconds(served, transport_steps=args.transport_steps),
    }
    if ROWS[args.row][1] == "policy":
        del calls["plain, every prompt twice"]
    turns: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(args.pairs + 1):
        for name, call in calls.items():
            elapsed = call()
            if turn > 0:
                turns[name].append(elapsed)
    return turns


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    args = parse_args(argv)
    os.environ.update(SETTINGS)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        save_model(args, directory / "model")
        turns = measure(args, directory)
    tokens = args.batch_size * args.new_tokens
    shown = Table("call", "tokens/s", "ratio", "range", title=f"{args.model_size}, {args.row}, batch {args.batch_size}")
    for name, times in turns.items():
        ratios = [b / a for a, b in zip(turns["plain"], times, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        shown.add_row(name, f"{tokens / statistics.median(times):.1f}", f"{statistics.median(ratios):.2f}", spread)
    Console().print(shown)
    write_seconds(args, turns)


if __name__ == "__main__":
    main()
