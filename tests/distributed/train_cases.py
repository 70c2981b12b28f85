# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Trains a few tiny values and writes what came out. Started once by itself and once as two processes.

torchrun --nproc_per_node 2 tests/distributed/train_cases.py OUTPUT_DIR 2
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.trainer import tiny

# Completions in a step, over all processes, and the settings of the run.
CASES = {
    "log_ratio": (16, {"replay_ratio": 0.75}),
    "vocab": (8, {"value_parametrization": "vocab", "gradient_accumulation_steps": 2}),
    "distilled": (16, {"distill_coef": 1.0, "value_backbone": "copy", "gradient_checkpointing": True}),
    # Evaluation with one prompt at a time, so that one of two processes has none.
    "evaluated": (
        8,
        {
            "eval_strategy": "steps",
            "eval_steps": 2,
            "num_generations_eval": 8,
            "value_parametrization": "bilinear",
            "distill_coef": 1.0,
        },
    ),
}


def train(name: str, directory: Path, num_processes: int, resume: bool = False, **overrides: object) -> None:
    """Trains one case and writes its metrics and weights."""
    total, settings = CASES[name]
    run = tiny.trainer(
        directory / name,
        rollout_func=tiny.fixed_rollout,
        eval_dataset=tiny.prompts(6) if "eval_steps" in settings else None,
        per_device_train_batch_size=total // num_processes,
        per_device_eval_batch_size=8 // num_processes,
        value_holdout_ratio=0.3,
        # Steps proportional to the gradient: Adam's would blow rounding errors up where gradients vanish.
        optim="sgd",
        learning_rate=0.3,
        max_steps=5,
        save_strategy="steps",
        save_steps=3,
        **{**settings, **overrides},
    )
    if run.accelerator.num_processes != num_processes:
        raise SystemExit(f"{run.accelerator.num_processes} processes run, {num_processes} were asked for.")
    run.train(resume_from_checkpoint=resume)
    if run.accelerator.is_main_process:
        label = f"{name}-resumed" if resume else name
        log = {"processes": run.accelerator.num_processes, "history": run.state.log_history}
        (directory / f"{label}.json").write_text(json.dumps(log))
        save_file({n: p.clone() for n, p in tiny.value_state(run).items()}, directory / f"{label}.safetensors")
    run.accelerator.wait_for_everyone()


def main() -> None:
    """Runs every case, and one of them again from its checkpoint."""
    directory, num_processes = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    for name in CASES:
        train(name, directory, num_processes)
    last = directory / "log_ratio" / "checkpoint-5"
    if num_processes > 1:
        if int(torch.distributed.get_rank()) == 0:
            last.rename(directory / "log_ratio" / "set-aside")
        torch.distributed.barrier()
    else:
        last.rename(directory / "log_ratio" / "set-aside")
    train("log_ratio", directory, num_processes, resume=True)
    if num_processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
