# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Trains a few tiny values and writes what came out. Started once by itself and once as two processes.

torchrun --nproc_per_node 2 tests/distributed/train_cases.py OUTPUT_DIR 2 log_ratio vocab
accelerate launch --config_file recipes/accelerate_configs/zero3.yaml --num_processes 2 --mixed_precision no \\
    tests/distributed/train_cases.py OUTPUT_DIR 2 log_ratio
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.trainer import tiny
from vgf_llm import VGFTrainer
from vgf_llm.trainer.sharding import whole_state_dict

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
# Completions in a step, over all processes, and the settings of the run.
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    # a frozen policy: its LoRA adapter as value, heads on its features, a model of the value's own
    "log_ratio": (16, {"replay_ratio": 0.75}),
    "vocab": (8, {"value_parametrization": "vocab", "gradient_accumulation_steps": 2}),
    "bilinear": (16, {"value_parametrization": "bilinear", "value_backbone": "policy", "td_lambda": 0.5}),
    "own_model": (16, {"value_backbone": "copy"}),
    # distillation: all weights, and LoRA
    "distilled": (16, {"distill_coef": 1.0, "value_backbone": "copy", "gradient_checkpointing": True}),
    "distilled_lora": (16, {"distill_coef": 1.0, "peft_config": LORA}),
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
STEPS = 5


def build(name: str, directory: Path, num_processes: int, **overrides: Any) -> VGFTrainer:
    """The trainer of a case."""
    total, settings = CASES[name]
    return tiny.trainer(
        directory / name,
        rollout_func=tiny.fixed_rollout,
        eval_dataset=tiny.prompts(6) if "eval_steps" in settings else None,
        per_device_train_batch_size=total // num_processes,
        per_device_eval_batch_size=8 // num_processes,
        value_holdout_ratio=0.3,
        # Steps proportional to the gradient: Adam's would blow rounding errors up where gradients vanish.
        optim="sgd",
        learning_rate=0.3,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=3,
        **{**settings, **overrides},
    )


def write(run: VGFTrainer, directory: Path, label: str, **extra: Any) -> None:
    """Writes what training did: its log, the weights that train, and the model as users save it."""
    trained = {name for name, parameter in run.vgf_model.named_parameters() if parameter.requires_grad}
    main = run.accelerator.is_main_process
    state = whole_state_dict(run.vgf_model, keep=main, wanted=trained.__contains__)
    run.save_model(str(directory / f"{label}-model"))
    optimised = sum(p.numel() for group in run.optimizer.param_groups for p in group["params"])
    frozen = [p for p in run.vgf_model.parameters() if not p.requires_grad]
    if main:
        log = {
            "processes": run.accelerator.num_processes,
            "zero_stage": getattr(getattr(run.accelerator.state, "deepspeed_plugin", None), "zero_stage", None),
            "history": run.state.log_history,
            "optimised_parameters": optimised,
            "frozen_gradients": sum(p.grad is not None for p in frozen),
            **extra,
        }
        (directory / f"{label}.json").write_text(json.dumps(log))
        save_file({n: p.clone() for n, p in state.items()}, directory / f"{label}.safetensors")
    run.accelerator.wait_for_everyone()


def train(name: str, directory: Path, num_processes: int, resume: bool = False, **overrides: Any) -> None:
    """Trains one case and writes its metrics and weights."""
    run = build(name, directory, num_processes, **overrides)
    if run.accelerator.num_processes != num_processes:
        raise SystemExit(f"{run.accelerator.num_processes} processes run, {num_processes} were asked for.")
    run.train(resume_from_checkpoint=resume)
    write(run, directory, f"{name}-resumed" if resume else name)
    del run
    gc.collect()


def main() -> None:
    """Runs the named cases, and the first of them again from its checkpoint."""
    directory, num_processes, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or list(CASES)
    torch.set_num_threads(1)
    for name in names:
        train(name, directory, num_processes)
    last = directory / names[0] / f"checkpoint-{STEPS}"
    if num_processes > 1:
        if int(torch.distributed.get_rank()) == 0:
            last.rename(directory / names[0] / "set-aside")
        torch.distributed.barrier()
    else:
        last.rename(directory / names[0] / "set-aside")
    train(names[0], directory, num_processes, resume=True)
    if num_processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
