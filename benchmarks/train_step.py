# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What a training step costs outside generation, in time and peak memory: VGFTrainer over TRL's GRPOTrainer.

Both train on the same fixed completions: a `rollout_func` takes the place of sampling, so that what is left is scoring,
loss, backward and optimiser. A random Llama is written to disk once. Every run is a process of its own, for a peak of
its own; base and comparison take turns. A process trains some steps that are not counted, then counts each step; the
peak is what the process held at most, less what it held before it loaded the model (on a GPU: what torch allocated).

    python -m benchmarks.train_step                              # every row, one turn
    python -m benchmarks.train_step --rows head log_ratio --turns 3
    python -m benchmarks.train_step --device cuda --dtype bfloat16 --size qwen2.5-0.5b --completion_length 512
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback

from benchmarks.harness import (
    BASELINES,
    Pairs,
    Seconds,
    check,
    hardware,
    load_baseline,
    shown,
    spread,
    write_json,
)
from benchmarks.sizes import SIZES, build_policy

ROOT = Path(__file__).parent.parent
SETTINGS = (
    "size", "num_prompts", "num_generations", "prompt_tokens", "completion_length", "device", "dtype", "threads",
)  # fmt: skip

# Fields of the trainers' configurations by the name of a run. `lora` puts the default adapter on GRPO's policy.
# With `of_base`, completions come with the base's log-probabilities, as the trainer's own samples of the base do.
VGF_RUNS: dict[str, dict[str, Any]] = {
    "head": {"value_parametrization": "bilinear", "value_backbone": "policy", "replay_ratio": 0.0},
    "head, replay": {"value_parametrization": "bilinear", "value_backbone": "policy", "replay_ratio": 1.0},
    "log_ratio": {"replay_ratio": 0.0},  # rewards are 0 and 1: the likelihood of successes
    "log_ratio, pairs": {"replay_ratio": 0.0, "value_loss": "pairwise"},
    "log_ratio, base samples": {"replay_ratio": 0.0, "value_loss": "pairwise", "of_base": True},
    # One completion in a micro-batch: the scores of the others are computed once, ahead of the pass.
    "log_ratio, one row": {"replay_ratio": 0.0, "one_row": True},
    "log_ratio, pairs, one row": {"replay_ratio": 0.0, "value_loss": "pairwise", "one_row": True},
    "distil head": {
        "value_parametrization": "bilinear",
        "value_backbone": "policy",
        "replay_ratio": 0.0,
        "distill_coef": 1.0,
    },
}
GRPO_RUNS: dict[str, dict[str, Any]] = {
    "grpo": {"beta": 0.0},
    "grpo beta": {"beta": 0.04},
    "grpo lora": {"beta": 0.0, "lora": True},
}
# What a row compares with what, and the largest ratios of time and memory that are aimed at.
ROWS: dict[str, tuple[str, str, float | None, float | None]] = {
    "head": ("head", "grpo", 0.6, 0.6),
    "head, replay": ("head, replay", "grpo", 0.6, 0.6),
    "log_ratio": ("log_ratio", "grpo", 0.6, 0.6),
    "log_ratio, pairs": ("log_ratio, pairs", "grpo", 0.6, 0.6),
    "log_ratio, base samples": ("log_ratio, base samples", "grpo", 0.6, 0.6),
    "log_ratio over grpo lora": ("log_ratio", "grpo lora", None, None),
    "log_ratio, pairs over grpo lora": ("log_ratio, pairs", "grpo lora", None, None),
    "distil head": ("distil head", "grpo beta", 1.0, 1.0),
    "one row over whole groups": ("log_ratio, one row", "log_ratio", None, None),
    "pairs, one row over whole groups": ("log_ratio, pairs, one row", "log_ratio, pairs", None, None),
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.train_step", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="25m", help="a model of this shape, random weights")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--num_prompts", type=int, default=2, help="prompts of a step")
    parser.add_argument("--num_generations", type=int, default=4, help="completions of a prompt")
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--completion_length", type=int, default=64, help="every completion has exactly this length")
    parser.add_argument("--steps", type=int, default=5, help="steps that count")
    parser.add_argument("--warm_up", type=int, default=2, help="steps before them")
    parser.add_argument("--turns", type=int, default=1, help="processes of each run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the cpu clock is exact for one")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--baseline", type=Path, default=BASELINES / "train_step.json", help="for --check")
    parser.add_argument("--check", action="store_true", help="exit with 1 above the baseline's tolerance")
    parser.add_argument("--run", choices=[*VGF_RUNS, *GRPO_RUNS], help=argparse.SUPPRESS)  # inside a process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for name in ("num_prompts", "prompt_tokens", "completion_length", "steps", "turns", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.num_generations < 2 or args.warm_up < 1:
        parser.error("--num_generations must be at least 2 and --warm_up at least 1")
    return args


def tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """One token per word."""
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, vocab_size))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def prompts(args: argparse.Namespace, vocab_size: int) -> Dataset:
    """Random prompts of one length, as many as the run reads."""
    generator = torch.Generator().manual_seed(1)
    count = args.num_prompts * (args.warm_up + args.steps)
    tokens = torch.randint(3, vocab_size, (count, args.prompt_tokens), generator=generator).tolist()
    return Dataset.from_dict({"prompt": [" ".join(f"w{token}" for token in row) for row in tokens]})


def fixed_rollout(rows: list[str], trainer: Any) -> dict[str, Any]:
    """Completions that no model has to be run for, the same in every trainer."""
    ids = trainer.processing_class(rows)["input_ids"]
    length, vocab_size = trainer.args.max_completion_length, len(trainer.processing_class)
    generator = torch.Generator().manual_seed(trainer.state.global_step)
    completions = torch.randint(3, vocab_size, (len(rows), length), generator=generator).tolist()
    uniform = [[-torch.tensor(float(vocab_size)).log().item()] * length] * len(rows)
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": uniform}


def base_rollout(rows: list[str], trainer: Any) -> dict[str, Any]:
    """The same, with what the base thinks of them; it is random, and next to uniform."""
    output = fixed_rollout(rows, trainer)
    return {**output, "ref_logprobs": output["logprobs"]}


def alternating_reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """Half of each prompt's completions succeed, so that every prompt teaches something.

    A likelihood of successes then trains on half of the completions, pairs and policy gradients on all.
    """
    return [float(index % 2) for index in range(len(completion_ids))]


class StepTimer(TrainerCallback):
    """Takes the time of every step, from the end of the one before to its own end."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes both clocks."""
        import time

        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter(), time.process_time()))

    def steps(self, warm_up: int) -> list[dict[str, float]]:
        """The seconds of the steps after the first `warm_up`."""
        pairs = zip(self.ends[warm_up - 1 :], self.ends[warm_up:], strict=False)
        return [{"wall": b[0] - a[0], "cpu": b[1] - a[1]} for a, b in pairs]


def build_trainer(run: str, args: argparse.Namespace, output_dir: str, callback: TrainerCallback) -> Any:
    """The trainer of a run, on the model in `args.folder`."""
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    from vgf_llm import VGFConfig, VGFTrainer

    batch = args.num_prompts * args.num_generations
    common: dict[str, Any] = {
        "output_dir": output_dir,
        "use_cpu": torch.device(args.device).type == "cpu",
        "bf16": args.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": batch,
        "num_generations": args.num_generations,
        "max_completion_length": args.completion_length,
        "max_steps": args.warm_up + args.steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "shuffle_dataset": False,
        "model_init_kwargs": {"dtype": args.dtype},
    }
    path = str(args.folder)
    parts: dict[str, Any] = {
        "model": path,
        "reward_funcs": alternating_reward,
        "train_dataset": prompts(args, SIZES[args.size]["vocab_size"]),
        # Loaded from the folder of a Qwen2 model it would be a Qwen2Tokenizer, which knows none of these words.
        "processing_class": tokenizer(SIZES[args.size]["vocab_size"]),
        "rollout_func": fixed_rollout,
        "callbacks": [callback],
    }
    if run in VGF_RUNS:
        settings = dict(VGF_RUNS[run])
        if settings.pop("of_base", False):
            parts["rollout_func"] = base_rollout
        if settings.pop("one_row", False):
            common |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": batch}
        return VGFTrainer(args=VGFConfig(**common, value_holdout_ratio=0.0, **settings), **parts)
    settings = dict(GRPO_RUNS[run])
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if settings.pop("lora", False) else None
    return GRPOTrainer(args=GRPOConfig(**common, **settings), peft_config=lora, **parts)


def resident_bytes() -> int:
    """What this process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def train_here(args: argparse.Namespace) -> dict[str, Any]:
    """Trains one run in this process and returns the seconds of its steps and its peak memory in bytes."""
    import trl  # noqa: F401  (imports are no part of the peak)

    import vgf_llm  # noqa: F401

    torch.set_num_threads(args.threads)
    before = resident_bytes()
    timer = StepTimer(args.device)
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = build_trainer(args.run, args, output_dir, timer)
        trainer.train()
    if torch.device(args.device).type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"steps": timer.steps(args.warm_up), "peak_bytes": peak}


def train_apart(run: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trains one run in a process of its own."""
    out = folder / "result.json"
    out.unlink(missing_ok=True)
    names = ("size", "num_prompts", "num_generations", "prompt_tokens", "completion_length", "steps", "warm_up")
    options = [f"--{name}={getattr(args, name)}" for name in (*names, "device", "dtype", "threads")]
    command = [sys.executable, "-m", "benchmarks.train_step", "--run", run, "--folder", str(folder), "--json", str(out)]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "OMP_NUM_THREADS": str(args.threads),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, cwd=folder)
    if done.returncode != 0 or not out.is_file():
        raise RuntimeError(f"The run {run!r} ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(out.read_text(encoding="utf-8"))


def compare(row: str, results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The ratios of a row, of the steps of each turn one by one, and of the peaks."""
    run, base, time_target, memory_target = ROWS[row]
    pairs = Pairs()
    for ours, theirs in zip(results[run], results[base], strict=True):
        for own, other in zip(ours["steps"], theirs["steps"], strict=True):
            pairs.add(Seconds(**other), Seconds(**own))
    peaks = [
        ours["peak_bytes"] / theirs["peak_bytes"] for ours, theirs in zip(results[run], results[base], strict=True)
    ]
    return {
        "compared_with": base,
        "time_cpu": spread(pairs.ratios("cpu")),
        "time_wall": spread(pairs.ratios("wall")),
        "memory": spread(peaks),
        "targets": {"time": time_target, "memory": memory_target},
        "peak_megabytes": {
            name: round(statistics.median(result["peak_bytes"] for result in results[name]) / 1e6)
            for name in (run, base)
        },
        "step_seconds": {
            name: round(statistics.median(step["wall"] for result in results[name] for step in result["steps"]), 3)
            for name in (run, base)
        },
    }


def table(rows: dict[str, dict[str, Any]], args: argparse.Namespace) -> Table:
    """Lays the ratios out for the terminal."""
    settings = ", ".join(f"{name} {getattr(args, name)}" for name in SETTINGS)
    view = Table(title=f"{hardware(args.device)}; {settings}")
    for column in ("VGF", "GRPO"):
        view.add_column(column)
    for column in ("time (cpu)", "time (wall)", "target", "memory", "target", "MB"):
        view.add_column(column, justify="right")
    for name, row in rows.items():
        figures = [shown(row[key]) for key in ("time_cpu", "time_wall", "memory")]
        targets = ["-" if row["targets"][key] is None else str(row["targets"][key]) for key in ("time", "memory")]
        megabytes = " / ".join(str(value) for value in row["peak_megabytes"].values())
        view.add_row(name, row["compared_with"], *figures[:2], targets[0], figures[2], targets[1], megabytes)
    return view


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    args = parse_args(argv)
    if args.run is not None:
        write_json(args.json, train_here(args))
        return 0
    settings = {name: getattr(args, name) for name in SETTINGS}
    baseline = load_baseline(args.baseline, settings) if args.check else {"rows": {}}
    console = Console()
    torch.manual_seed(0)
    runs = list(dict.fromkeys(run for row in args.rows for run in ROWS[row][:2]))
    results: dict[str, list[dict[str, Any]]] = {run: [] for run in runs}
    with tempfile.TemporaryDirectory() as folder:
        policy = build_policy(args.size, args.device, args.dtype)
        policy.save_pretrained(folder)
        tokenizer(policy.config.vocab_size).save_pretrained(folder)
        console.print(f"{type(policy).__name__}, {policy.num_parameters() / 1e6:.1f}M parameters")
        del policy
        torch.cuda.empty_cache()  # the runs have the device to themselves
        for _ in range(args.turns):
            for run in runs:
                results[run].append(train_apart(run, args, Path(folder)))
    rows = {row: compare(row, results) for row in args.rows}
    console.print(table(rows, args))
    report = {"hardware": hardware(args.device), "settings": settings, "rows": rows, "runs": results}
    write_json(args.json, report)
    clock = "time_wall" if torch.device(args.device).type == "cuda" else "time_cpu"
    medians = {name: {"time": row[clock]["median"], "memory": row["memory"]["median"]} for name, row in rows.items()}
    failures = check(medians, baseline)
    for failure in failures:
        console.print(f"[red]{failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
