# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Trains a few tiny values and writes what came out. Started once by itself and once as two processes.

torchrun --nproc_per_node 2 tests/distributed/train_cases.py OUTPUT_DIR 2 log_ratio vocab
accelerate launch --config_file recipes/accelerate_configs/zero3.yaml --num_processes 2 --mixed_precision no \\
    tests/distributed/train_cases.py OUTPUT_DIR 2 log_ratio
"""

import gc
import itertools
import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.device_mesh
import torch.distributed.fsdp
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.trainer import tiny
from tests.trainer.engines import stand_in
from vgf_llm import VGFTrainer
from vgf_llm.models import VGFModel, build_value
from vgf_llm.models.language_model import inner_model
from vgf_llm.models.origin import base_tensors, fingerprint
from vgf_llm.trainer.fit.micro_batch import Row, collate
from vgf_llm.trainer.fit.objective import Objective
from vgf_llm.trainer.keep.buffer import RolloutGroup
from vgf_llm.trainer.keep.rounds import ValueRounds
from vgf_llm.trainer.measure.gate import measure_gate
from vgf_llm.trainer.save.sharding import whole, whole_parameters, whole_state_dict

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def uneven(index: list[int], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """Groups without a success, with few and with many: ranks draw unequal work, ties and nothing."""
    return [float(sum(ids) % 4 < (0, 1, 3)[i % 3]) for i, ids in zip(index, completion_ids, strict=True)]


# What may differ between ranks in a round is what they do with it, never how often they run the model.
UNEVEN: dict[str, tuple[int, dict[str, Any]]] = {
    f"uneven_{name}{suffix}": (total, {"reward_funcs": uneven, "replay_ratio": 0.5, **settings, **more})
    for name, total, settings in (
        ("likelihood", 8, {"value_loss": "likelihood"}),
        ("pairs", 8, {"value_loss": "pairwise"}),
        ("torn_pairs", 4, {"value_loss": "pairwise"}),
        ("heads", 8, {"value_parametrization": "vocab", "value_loss": "bernoulli"}),
    )
    for suffix, more in (("", {}), ("_checkpointed", {"gradient_checkpointing": True}))
}
# Completions in a step, over all processes, and the settings of the run.
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    # a frozen policy: its LoRA adapter as value, heads on its features, a model of the value's own
    "log_ratio": (16, {"replay_ratio": 0.75}),
    "vocab": (8, {"value_parametrization": "vocab", "gradient_accumulation_steps": 2}),
    # prompts chosen by outcomes, successes alone with a bonus of their entropy, and a last step without sampling
    "unsolved": (
        16,
        {
            "entropy_coef": 0.5,
            "use_adaptive_entropy": True,
            "entropy_target": 9.0,
            "prompt_selection": "unsolved",
            "reward_funcs": tiny.mostly_high,
            "value_loss": "likelihood",
            "rollout_fraction": 0.8,
            "train_dataset": tiny.prompts(8),
        },
    ),
    "bilinear": (16, {"value_parametrization": "bilinear", "value_backbone": "policy"}),
    "own_model": (16, {"value_backbone": "copy"}),
    # from a folder, which ZeRO-3 shards while it loads
    "from_disk": (16, {"value_backbone": "copy", "distill_coef": 1.0, "model": "saved"}),
    # distillation: all weights, and LoRA
    "distilled": (16, {"distill_coef": 1.0, "value_backbone": "copy", "gradient_checkpointing": True}),
    "distilled_lora": (16, {"distill_coef": 1.0, "peft_config": LORA}),
    # values of whole responses: an ensemble on samples, and preference pairs, which need none
    "sequence": (16, {"value_parametrization": "sequence", "value_backbone": "copy", "value_ensemble_size": 2}),
    "sequence_pairs": (
        8,
        {
            "value_parametrization": "sequence",
            "value_backbone": "copy",
            "reward_funcs": None,
            "train_dataset": "pairs",
            "rollout_func": None,
            "num_generations": 2,
            "replay_ratio": 0.5,
            "model": "saved",
        },
    ),
    # completions of a dataset, of prompts that have one to six: ranks get groups that are not full
    "logged": (
        8,
        {
            "reward_funcs": None,
            "train_dataset": "logged",
            "rollout_func": None,
            "value_loss": "pairwise",
            "replay_ratio": 0.5,
        },
    ),
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
CASES.update(UNEVEN)
# Rounds of base and value through a stand-in for vLLM, whose completions follow from the seed of a row and its adapter.
CASES["vllm"] = (16, {"rollout_func": None, "use_vllm": True, "vllm_mode": "colocate", "replay_ratio": 0.5})
# The weights of ZeRO-3 stay shards while completions are sampled and scored.
CASES["uneven_ungathered"] = (8, {**UNEVEN["uneven_pairs"][1], "ds3_gather_for_generation": False})
# Where the optimiser's state is offloaded, accelerate puts Adam in the place of any other.
OFFLOADED: dict[str, tuple[int, dict[str, Any]]] = {
    "adam": (16, {"replay_ratio": 0.75, "optim": "adamw_torch", "learning_rate": 1e-3}),
}
STEPS = 5
RESUMED = ("sequence",)


def build(name: str, directory: Path, num_processes: int, **overrides: Any) -> VGFTrainer:
    """The trainer of a case."""
    total, settings = {**CASES, **OFFLOADED}[name]
    if settings.get("use_vllm"):
        stand_in(pytest.MonkeyPatch())
    if settings.get("model") == "saved":
        settings = {**settings, "model": str(directory / "base")}  # written before the processes start
    if settings.get("train_dataset") == "pairs":
        settings = {**settings, "train_dataset": tiny.pairs()}
    if settings.get("train_dataset") == "logged":
        settings = {**settings, "train_dataset": tiny.logged(sizes=tiny.UNEQUAL)}
    defaults: dict[str, Any] = dict(
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
    )
    return tiny.trainer(directory / name, **{**defaults, **settings, **overrides})


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
    if name == "vllm" and not resume:  # what the engine of this process was given
        files = run.vllm_generation.llm.llm_engine.weights
        sent = {f"{number}.{key}": tensor for number, file in enumerate(files) for key, tensor in file.items()}
        save_file(sent, directory / f"{name}-sent-{run.accelerator.process_index}.safetensors")
    del run
    gc.collect()


class CountedGathers(torch.profiler.profile):
    """Counts the collectives that gather shards while the context lasts, whoever calls them."""

    def __init__(self) -> None:
        super().__init__(activities=[torch.profiler.ProfilerActivity.CPU])

    @property
    def count(self) -> int:
        """Calls, once the context has ended."""
        events = self.key_averages()
        return sum(event.count for event in events if event.key.startswith("c10d::") and "allgather" in event.key)


def gathers(directory: Path, num_processes: int) -> None:
    """Counts how often ZeRO-3 gathers while it samples short and long completions, with and without the context."""
    counts = {}
    for label, gathered in (("gathered", True), ("layer_by_layer", False)):
        run = tiny.trainer(
            directory / "gathers",
            max_steps=1,
            per_device_train_batch_size=8 // num_processes,
            ds3_gather_for_generation=gathered,
        )
        run.train()
        request = run._request(list(tiny.prompts(4)), "eval", 0)
        run.sampler(request)  # small layers are still whole after a step; the first gathering shards them again
        lengths = {}
        for length in (4, 8):
            run.sampler.generation_kwargs.update(max_new_tokens=length, min_new_tokens=length)
            with CountedGathers() as counted:
                run.sampler(request)
            lengths[length] = counted.count
        counts[label] = lengths
        del run
        gc.collect()
    write_json(directory / "gathers.json", counts)


def torn_sampling(directory: Path, num_processes: int) -> None:
    """Samples groups that two processes share: one has the base's completions, the other the value's."""
    for gathered in (True, False):
        run = tiny.trainer(
            directory / "torn", max_steps=2, per_device_train_batch_size=2, ds3_gather_for_generation=gathered
        )
        run.train()
        assert [len(group) for group in run.rounds.fresh] == [4] and run.state.global_step == 2
        del run
        gc.collect()
    write_json(directory / "torn_sampling.json", "sampled")


def fsdp2(directory: Path, num_processes: int) -> None:
    """Samples from a model that `fully_shard` split over the processes, as accelerate's FSDP2 splits it on GPUs."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = tiny.llama()
    value = VGFModel(model).eval()
    with torch.no_grad():
        torch.manual_seed(0)  # the same weights in every process
        value.value.head.out.weight.normal_()
    ids = torch.tensor([[1, 5, 9], [1, 7, 4]])
    ones = torch.ones_like(ids)
    settings = {"transport_steps": 4, "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    expected = value.generate(ids, ones, **settings)
    scores = value.score(torch.cat([ids, ids], dim=1), torch.cat([ones, ones], dim=1), ones).values
    mesh = init_device_mesh("cpu", (num_processes,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(value, mesh=mesh)
    counts = {}
    for length in (4, 8):
        with torch.no_grad(), CountedGathers() as counted, whole_parameters(value, None):
            settings.update(max_new_tokens=length, min_new_tokens=length)
            found = value.generate(ids, ones, **settings)
            found_scores = value.score(torch.cat([ids, ids], dim=1), torch.cat([ones, ones], dim=1), ones).values
        counts[length] = counted.count
    with torch.no_grad(), whole_parameters(value, None):
        if torch.distributed.get_rank() == 0:  # the other process has nothing to run
            alone = value.score(torch.cat([ids, ids], dim=1), torch.cat([ones, ones], dim=1), ones).values
            found_scores = found_scores if torch.allclose(alone, scores) else alone
    value(torch.cat([ids, ids], dim=1), torch.cat([ones, ones], dim=1), ids.shape[1]).scores.sum().backward()
    own = base_tensors(value.policy)
    prints = [fingerprint(base_tensors(tiny.llama())), fingerprint(own, whole)]
    sharded = type(value.value.head.out.weight).__name__
    same = bool((found == expected).all()) and bool(torch.allclose(found_scores, scores))
    write_json(directory / "fsdp2.json", {"counts": counts, "same": same, "sharded": sharded, "prints": prints})


def fsdp2_steps(directory: Path, num_processes: int) -> None:
    """Fits and measures rounds whose groups differ, with a model that `fully_shard` split, as the trainer does."""
    found = {}
    for kind, checkpointed in itertools.product(("likelihood", "pairwise", "heads"), (False, True)):
        plain = fit_rounds(kind, checkpointed, num_processes, sharded=False)
        sharded = fit_rounds(kind, checkpointed, num_processes, sharded=True)
        found[f"{kind}, checkpointed={checkpointed}"] = {"plain": plain, "sharded": sharded}
    write_json(directory / "fsdp2_steps.json", found)


def fit_rounds(kind: str, checkpointed: bool, num_processes: int, *, sharded: bool) -> list[float]:
    """The losses of this process's micro-batches, summed over processes, and the gate's counts."""
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    name, backbone = ("vocab", "lora") if kind == "heads" else ("log_ratio", "lora")
    value = VGFModel(tiny.llama(), build_value(name, width=32, vocab_size=tiny.VOCAB), backbone=backbone).train()
    if checkpointed:
        value.gradient_checkpointing_enable()
    if sharded:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (num_processes,))
        for layer in tiny_layers(value):
            torch.distributed.fsdp.fully_shard(layer, mesh=mesh)
        torch.distributed.fsdp.fully_shard(value, mesh=mesh)
    objective = Objective(value, value_loss="bernoulli" if kind == "heads" else kind)
    rounds = ValueRounds(groups_per_round=3, steps_per_round=2, replay_ratio=0.5, num_processes=num_processes)
    results = []
    for number in range(2):
        groups = []
        for prompt, rewards in enumerate(([1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0])):
            ids = [[8 + (prompt + row + number) % 20, 9 + row, tiny.EOS] for row in range(3)]
            logps = None if kind == "likelihood" else [[-3.0] * 3] * 3
            groups.append(RolloutGroup([1, 5 + prompt], ids, rewards, logps, step=number))
        rounds.retire(objective.keeps)
        rounds.begin(groups)
        for step in rounds.shares(
            number, lambda g: objective.reads(g, rounds.outcomes), whole_groups=kind == "pairwise"
        ):
            share = step[rank]
            rows = [Row(*row) for row in share.rows]
            batch = collate(
                rows,
                0,
                num_groups=share.num_groups,
                num_rows=share.num_rows,
                absent=[] if rows else [Row(rounds.any_group(), 0)],
                with_reference=kind == "pairwise",
            )
            loss, _ = objective(value, value, batch)
            loss.backward()
            total = loss.detach().clone()
            torch.distributed.all_reduce(total)
            results.append(total.item())
        # One group for two processes, and none.
        for held_out in (groups[:1], []):
            with torch.no_grad(), whole_parameters(value, None) if sharded else nullcontext():
                value.eval()
                counts, _ = measure_gate(
                    value,
                    held_out,
                    sequence=False,
                    groups_at_a_time=1,
                    num_processes=num_processes,
                    process_index=rank,
                    pad_token_id=0,
                )
                value.train()
            torch.distributed.all_reduce(counts)
            results += counts.tolist()
    return results


def tiny_layers(value: VGFModel) -> Any:
    """The decoder layers of a tiny model."""
    return inner_model(value.policy).model.layers


class KillRank(TrainerCallback):
    """Kills the second process in the middle of the step after `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Kills this process if it is the one."""
        if state.global_step == self.step and args.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(directory: Path, num_processes: int) -> None:
    """Trains the first case until a process dies; started again, goes on from the checkpoint."""
    resume = (directory / "killed").exists()
    CASES["killed"] = CASES["log_ratio"]
    if resume:
        train("killed", directory, num_processes, resume=True)
    else:
        build("killed", directory, num_processes, callbacks=[KillRank(4)]).train()


def write_json(path: Path, content: Any) -> None:
    """Writes on the first process."""
    if torch.distributed.get_rank() == 0:
        path.write_text(json.dumps(content))
    torch.distributed.barrier()


# Runs that train nothing worth comparing.
OTHERS = {
    "gathers": gathers,
    "torn_sampling": torn_sampling,
    "fsdp2": fsdp2,
    "fsdp2_steps": fsdp2_steps,
    "killed": killed,
}


def main() -> None:
    """Runs the named cases, and some of them again from their checkpoints: the first, and those in `RESUMED`."""
    directory, num_processes, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or list(CASES)
    torch.set_num_threads(1)
    for name in names:
        if name in OTHERS:
            OTHERS[name](directory, num_processes)
            gc.collect()
        else:
            train(name, directory, num_processes)
    if names[0] in OTHERS:
        return
    for name in dict.fromkeys([names[0], *(name for name in RESUMED if name in names)]):
        if num_processes == 1 or int(torch.distributed.get_rank()) == 0:
            (directory / name / f"checkpoint-{STEPS}").rename(directory / name / "set-aside")
        if num_processes > 1:
            torch.distributed.barrier()
        train(name, directory, num_processes, resume=True)
    if num_processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
