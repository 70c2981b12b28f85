# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What transport costs at generation: wall time of `VGFModel.generate` over the policy's own `generate`.

Machines and their load differ from minute to minute, so that seconds alone say little. Every figure here is a ratio of
two calls made right after each other (plain, transported, plain, transported, ...), with the same batch, prompts and
number of new tokens, both sampled from the full distribution. The table gives the median and the range over the pairs.

    python -m benchmarks.decode                                  # every row, batch 8, one particle
    python -m benchmarks.decode --rows log_ratio --num_particles 4
    python -m benchmarks.decode --device cuda --dtype bfloat16 --size qwen2.5-7b --rows bilinear
    python -m benchmarks.decode --check                          # exit code 1 beyond benchmarks/baselines/decode.json
"""

import argparse
import copy
import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks import sizes
from benchmarks.harness import hardware, load_baseline, write_json
from benchmarks.sizes import SIZES
from vgf_llm.models import VGFModel, build_value

BASELINE = Path(__file__).parent / "baselines" / "decode.json"

# parametrization, backbone, control; the LoRA adapter is the default one, r=16 on every linear layer.
ROWS: dict[str, tuple[str, str, str | None]] = {
    "bilinear": ("bilinear", "policy", None),
    "vocab": ("vocab", "policy", None),
    "bilinear random control": ("bilinear", "policy", "random"),
    "log_ratio": ("log_ratio", "lora", None),
    "bilinear lora": ("bilinear", "lora", None),
    "bilinear copy": ("bilinear", "copy", None),
    "log_ratio copy": ("log_ratio", "copy", None),
}

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

# What a baseline is measured with; another setting has other ratios.
SETTINGS = (
    "model_size", "batch_size", "num_particles", "transport_steps", "prompt_tokens", "new_tokens", "device", "dtype",
    "threads", "clock",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """The seconds of one row's pairs.

    Attributes:
        name: The row, a key of `ROWS`.
        plain: Seconds of the policy's `generate`, one per pair.
        transported: Seconds of `VGFModel.generate`, one per pair.
    """

    name: str
    plain: list[float]
    transported: list[float]

    @property
    def ratios(self) -> list[float]:
        """Transported over plain, pair by pair."""
        return [b / a for a, b in zip(self.plain, self.transported, strict=True)]

    @property
    def median(self) -> float:
        """The median ratio."""
        return statistics.median(self.ratios)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.decode", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model_size", "--size", choices=SIZES, default="60m", help="this shape, random weights")
    parser.add_argument("--model_name_or_path", help="benchmark this causal language model instead")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--batch_size", type=int, default=8, help="prompts")
    parser.add_argument("--num_particles", type=int, default=1, help="N; the plain call gets N rows per prompt too")
    parser.add_argument("--transport_steps", type=int, default=8)
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--new_tokens", type=int, default=64, help="every response has exactly this length")
    parser.add_argument("--pairs", type=int, default=4, help="pairs per row, after one that is not counted")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu counts the seconds that this process computed, steadier on a busy machine; with --threads 1",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the seconds and ratios of every pair")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="for --check")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a median exceeds the baseline's tolerance")
    args = parser.parse_args(argv)
    for name in ("batch_size", "num_particles", "transport_steps", "prompt_tokens", "new_tokens", "pairs", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.clock == "cpu" and args.threads > 1:
        parser.error("--clock cpu needs --threads 1: threads that wait for each other count as computing")
    if args.model_name_or_path is not None:
        args.model_size = None
    return args


def build_policy(args: argparse.Namespace) -> PreTrainedModel:
    """Builds the policy: random weights of a known shape, or a checkpoint."""
    if args.model_name_or_path is not None:
        dtype = getattr(torch, args.dtype)
        return AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=dtype).to(args.device).eval()
    return sizes.build_policy(args.model_size, args.device, args.dtype)


def build_model(policy: PreTrainedModel, row: str) -> VGFModel:
    """Joins the policy to the value of a row, with random weights in place of the zeros that training starts from."""
    parametrization, backbone, _ = ROWS[row]
    width, vocab_size = policy.get_output_embeddings().weight.shape[1], policy.get_output_embeddings().weight.shape[0]
    value = build_value(parametrization, width=width, vocab_size=vocab_size)
    # A copy: adapters and frozen weights are put into the model itself, and the plain call is of the model as it came.
    model = VGFModel(copy.deepcopy(policy), value, backbone=backbone).to(policy.device).eval()  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name.startswith("value."):
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def seconds(call: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> float:
    """Times one call by `clock`, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def measure(policy: PreTrainedModel, row: str, prompts: Tensor, args: argparse.Namespace) -> Row:
    """Times the pairs of one row; the first pair warms up and is dropped."""
    model = build_model(policy, row)
    length = {"min_new_tokens": args.new_tokens, "max_new_tokens": args.new_tokens}
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, **length}
    rows = prompts.repeat_interleave(args.num_particles, dim=0)

    def plain() -> Tensor:
        return policy.generate(rows, attention_mask=torch.ones_like(rows), **sampling)

    def transported() -> Tensor:
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            transport_steps=args.transport_steps,
            num_particles=args.num_particles,
            control=ROWS[row][2],
            **sampling,
        )

    timed = functools.partial(seconds, device=policy.device, clock=CLOCKS[args.clock])
    pairs = [(timed(plain), timed(transported)) for _ in range(args.pairs + 1)][1:]
    return Row(row, [a for a, _ in pairs], [b for _, b in pairs])


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what a result depends on and a baseline must share."""
    return {name: getattr(args, name) for name in SETTINGS}


def report(rows: Sequence[Row], args: argparse.Namespace) -> dict[str, Any]:
    """Returns what `--json` writes."""
    return {
        "hardware": hardware(args.device),
        "settings": settings(args),
        "rows": {
            row.name: {
                "ratio": round(row.median, 4),
                "ratios": [round(ratio, 4) for ratio in row.ratios],
                "plain_seconds": [round(value, 4) for value in row.plain],
                "transported_seconds": [round(value, 4) for value in row.transported],
            }
            for row in rows
        },
    }


def check(result: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    """Returns one sentence per row of a report whose median exceeds the baseline; rows that it lacks pass."""
    failures = []
    for name, row in result["rows"].items():
        known = baseline["rows"].get(name)
        if known is not None and row["ratio"] > (limit := known["ratio"] + known["tolerance"]):
            failures.append(f"{name}: {row['ratio']:.3f} times plain generate, allowed is {limit:.3f}.")
    return failures


def table(rows: Sequence[Row], args: argparse.Namespace) -> Table:
    """Lays the ratios out for the terminal."""
    tokens = args.batch_size * args.num_particles * args.new_tokens
    title = ", ".join(f"{name} {getattr(args, name)}" for name in SETTINGS if getattr(args, name) is not None)
    shown = Table(title=title, caption=f"{args.pairs} pairs per row")
    shown.add_column("row")
    for column in ("x plain", "min - max", "plain tok/s", "transported tok/s"):
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(
            row.name,
            f"{row.median:.3f}",
            f"{min(row.ratios):.3f} - {max(row.ratios):.3f}",
            f"{tokens / statistics.median(row.plain):,.0f}",
            f"{tokens / statistics.median(row.transported):,.0f}",
        )
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    baseline = load_baseline(args.baseline, settings(args)) if args.check else {"rows": {}}
    console = Console()
    policy = build_policy(args)
    vocab_size = policy.get_output_embeddings().weight.shape[0]
    prompts = torch.randint(3, vocab_size, (args.batch_size, args.prompt_tokens), device=policy.device)
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    console.print(f"{type(policy).__name__}, {parameters / 1e6:.1f}M parameters, {hardware(args.device)}")
    rows = []
    for name in args.rows:
        rows.append(measure(policy, name, prompts, args))
        console.print(f"{name}: {rows[-1].median:.3f}")
    console.print(table(rows, args))
    result = report(rows, args)
    write_json(args.json, result)
    failures = check(result, baseline)
    for failure in failures:
        console.print(f"[red]{failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
