# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints: a resumed run is the uninterrupted one, bit for bit, and half a checkpoint does not exist."""

import io
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback

from tests.trainer import tiny
from vgf_llm import VGFModel
from vgf_llm.models.adapter_rows import adapter_rows
from vgf_llm.models.language_model import inner_model
from vgf_llm.trainer.save import checkpoint as checkpoint_module
from vgf_llm.trainer.save import sharding
from vgf_llm.trainer.save.checkpoint import ROUND_NAME, STATE_NAME, check_whole

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
# A round lasts two optimizer steps and an epoch four.
ROUNDS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "max_steps": 10,
    "save_strategy": "steps",
    "save_steps": 3,
}


class Kill(TrainerCallback):
    """Ends the run like a crash, in the middle of the step after `step`."""

    def __init__(self, step):
        self.step = step

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def start(directory, kill=None, resume=None, **settings):
    settings = {**ROUNDS, **settings}
    evaluation = tiny.prompts(4) if "eval_steps" in settings else None
    run = tiny.trainer(
        directory,
        train_dataset=tiny.prompts(18),
        eval_dataset=evaluation,
        callbacks=[Kill(kill)] if kill else None,
        **settings,
    )
    if kill:
        with pytest.raises(KeyboardInterrupt):
            run.train(resume_from_checkpoint=resume)
    else:
        run.train(resume_from_checkpoint=resume)
    return run


def logged(run):
    timing = ("runtime", "per_second", "step_time")
    logs = [{k: v for k, v in log.items() if not any(word in k for word in timing)} for log in run.state.log_history]
    return [log for log in logs if "train_loss" not in log]


def same_groups(one, other):
    def plain(group):
        logps = None if group.ref_logps is None else [row.tolist() for row in group.ref_logps]
        ids = [row.tolist() for row in group.completion_ids]
        return group.prompt_ids.tolist(), ids, str(group.rewards.tolist()), logps, group.step

    return [plain(group) for group in one] == [plain(group) for group in other]


def check_same(resumed, whole):
    assert logged(resumed) == logged(whole)
    ours, theirs = tiny.value_state(resumed), tiny.value_state(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    moments = [run.optimizer.state_dict()["state"] for run in (resumed, whole)]
    assert moments[0].keys() == moments[1].keys()
    for index, state in moments[0].items():
        assert all(torch.equal(state[name], moments[1][index][name]) for name in state)
    assert same_groups(resumed.rounds.buffer.groups, whole.rounds.buffer.groups)
    assert same_groups(resumed.rounds.fresh, whole.rounds.fresh)
    assert resumed.gate.state() == whole.gate.state()
    assert resumed.state.num_input_tokens_seen == whole.state.num_input_tokens_seen
    prompts = [run.schedule.prompts and run.schedule.prompts.state() for run in (resumed, whole)]
    assert prompts[0] == prompts[1]
    assert resumed.rounds.outcomes.state() == whole.rounds.outcomes.state()


CASES = {
    "mid-round": (4, {}),
    "third-epoch": (9, {}),
    "epoch-boundary": (4, {"save_steps": 4}),
    "on-the-buffer-alone": (8, {"rollout_fraction": 0.5}),
    "unsolved-prompts": (
        7,
        {"prompt_selection": "unsolved", "reward_funcs": tiny.mostly_high, "value_loss": "likelihood"},
    ),
    "adaptive-entropy": (
        4,
        {"entropy_coef": 0.1, "use_adaptive_entropy": True, "entropy_target": 3.45, "entropy_coef_delta": 0.02},
    ),
    "several-passes": (5, {"num_iterations": 2, "save_steps": 5}),
    "evaluation": (7, {"eval_strategy": "steps", "eval_steps": 3}),
    "log-ratio-sampled-itself": (3, {"value_parametrization": "log_ratio", "rollout_policy": "value"}),
    "head-with-transported-rollouts": (3, {"value_parametrization": "vocab", "rollout_policy": "transport"}),
    "distilled": (7, {"distill_coef": 1.0, "value_backbone": "copy"}),
    "distilled-lora": (4, {"distill_coef": 1.0, "peft_config": LORA, "value_learning_rate": 3e-3}),
    "logged-every-other-step": (4, {"logging_steps": 2, "value_holdout_ratio": 0.4}),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_is_uninterrupted(tmp_path, case):
    kill, settings = CASES[case]
    whole = start(tmp_path / "whole", **settings)
    start(tmp_path / "killed", kill=kill, **settings)
    resumed = start(tmp_path / "killed", resume=True, **settings)
    if case == "logged-every-other-step":
        # transformers forgets the losses since the last log; what the trainer itself measured stays.
        for run in (resumed, whole):
            for log in run.state.log_history:
                log.pop("loss", None)
    assert resumed.state.global_step == whole.state.global_step == ROUNDS["max_steps"]
    check_same(resumed, whole)


def test_an_interrupted_save_leaves_no_checkpoint(tmp_path, monkeypatch):
    whole = start(tmp_path / "whole")
    save = checkpoint_module.write_tensors

    def fail_at_the_second(tensors, path):
        if "checkpoint-6" in str(path):
            raise OSError("No space left on device")
        save(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "write_tensors", fail_at_the_second)
        run = tiny.trainer(tmp_path / "killed", train_dataset=tiny.prompts(18), **ROUNDS)
        with pytest.raises(OSError, match="No space left"):
            run.train()
    assert sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*")) == ["checkpoint-3"]
    assert (tmp_path / "killed" / ".incomplete" / "checkpoint-6").is_dir()
    check_same(start(tmp_path / "killed", resume=True), whole)
    assert not (tmp_path / "killed" / ".incomplete").exists()
    assert {path.name for path in (tmp_path / "killed").glob("checkpoint-*")} == {
        "checkpoint-3",
        "checkpoint-6",
        "checkpoint-9",
        "checkpoint-10",
    }


def test_saving_over_a_checkpoint_replaces_it_whole(tmp_path):
    start(tmp_path, max_steps=3, save_steps=3)
    (tmp_path / "checkpoint-3" / "old").touch()
    start(tmp_path, max_steps=3, save_steps=3)
    assert not (tmp_path / "checkpoint-3" / "old").exists()
    assert not (tmp_path / ".incomplete").exists()


def test_only_so_many_checkpoints_stay(tmp_path):
    start(tmp_path, save_total_limit=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-9"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    start(directory, max_steps=6, save_steps=3, value_parametrization="vocab", value_backbone="lora")
    return directory / "checkpoint-3"


FILES = ["value_head.safetensors", "value/adapter_model.safetensors", "vgf_config.json", "model.safetensors"]
FILES += [ROUND_NAME, STATE_NAME, "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"]


@pytest.mark.parametrize("harm", ["truncated", "missing", "changed", "swapped"])
@pytest.mark.parametrize("name", FILES)
def test_a_harmed_checkpoint_is_refused_by_name(tmp_path, checkpoint, name, harm):
    shutil.copytree(checkpoint, tmp_path / "checkpoint-3")
    path = tmp_path / "checkpoint-3" / name
    content = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(content[:-20])
    elif harm == "changed":
        place = len(content) * 2 // 3
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif name == "model.safetensors":
        tiny.llama(seed=1).save_pretrained(tmp_path / "other")
        shutil.copy(tmp_path / "other" / name, path)
    else:
        shutil.copy(checkpoint.with_name("checkpoint-6") / name, path)
    run = tiny.trainer(tmp_path, **{**ROUNDS, "value_parametrization": "vocab"}, rollout_func=never)
    with pytest.raises((ValueError, FileNotFoundError), match=path.name.replace(".", r"\.")):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def never(prompts, trainer):
    pytest.fail("completions were sampled before the error")


def test_foreign_checkpoints_are_refused(tmp_path, checkpoint):
    settings = {**ROUNDS, "rollout_func": never}
    foreign = tmp_path / "foreign"
    tiny.llama().save_pretrained(foreign)
    with pytest.raises(ValueError, match=r"vgf_state\.json does not exist: .*another trainer"):
        tiny.trainer(tmp_path, **settings).train(resume_from_checkpoint=str(foreign))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tiny.trainer(tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors holds .* expects"):
        small = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        other = tiny.trainer(tmp_path, **settings, value_parametrization="vocab", peft_config=small)
        other.train(resume_from_checkpoint=str(checkpoint))
    newer = tmp_path / "newer"
    shutil.copytree(checkpoint, newer)
    state = json.loads((newer / STATE_NAME).read_text())
    (newer / STATE_NAME).write_text(json.dumps({**state, "format_version": 3}))
    with pytest.raises(ValueError, match=r"vgf_state\.json has format_version 3; this release resumes from 2"):
        tiny.trainer(tmp_path, **settings, value_parametrization="vocab").train(resume_from_checkpoint=str(newer))


def test_a_pickle_that_came_later_is_refused(tmp_path, checkpoint):
    shutil.copytree(checkpoint, tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-3" / "global_step3").mkdir()
    (tmp_path / "checkpoint-3" / "global_step3" / "mp_rank_00_model_states.pt").touch()
    with pytest.raises(ValueError, match=r"mp_rank_00_model_states\.pt was not written with this checkpoint"):
        check_whole(tmp_path / "checkpoint-3")


class Code:
    """What a foreign pickle may do."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


@pytest.mark.deepspeed
def test_deepspeed_runs_no_code_of_a_checkpoint(tmp_path, monkeypatch):
    """DeepSpeed calls torch.load with weights_only=False."""
    pytest.importorskip("deepspeed")
    monkeypatch.setattr(
        sharding,
        "deepspeed_load_checkpoint",
        lambda engine, directory, **kwargs: torch.load(directory / "shard.pt", weights_only=False),
    )
    torch.save({"state": torch.ones(2), "more": Code()}, tmp_path / "shard.pt")
    with pytest.raises(pickle.UnpicklingError):
        sharding.load_deepspeed_shards(None, tmp_path)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    torch.save({"state": torch.ones(2)}, tmp_path / "shard.pt")
    sharding.load_deepspeed_shards(None, tmp_path)


def test_changed_settings_are_named(tmp_path, caplog):
    start(tmp_path, kill=4)
    start(tmp_path, kill=5, resume=True, logging_steps=5, save_total_limit=9)
    assert "was saved" not in caplog.text
    start(tmp_path, resume=True, learning_rate=2e-2, num_iterations=2, max_steps=6)
    named = [record.getMessage() for record in caplog.records if "was saved" in record.getMessage()]
    assert len(named) == 1
    for text in ("learning_rate from 0.01 to 0.02", "num_iterations from 1 to 2", "max_steps from 10 to 6"):
        assert text in named[0]
    assert "logging_steps" not in named[0]


def test_secrets_are_not_in_a_checkpoint_and_may_change(tmp_path, caplog):
    folder = tiny.saved_llama(tmp_path / "model")

    def run(token, **settings):
        kwargs = {"token": token, "dtype": "float32", "revision": "main"}
        server = f"http://me:{token}@host/"
        given = {"save_strategy": "steps", "save_steps": 1, "vllm_server_base_url": server, **settings}
        return tiny.trainer(tmp_path / "run", model=folder, model_init_kwargs=kwargs, **given)

    run("first-secret", max_steps=1).train()
    run("second-secret", max_steps=2).train(resume_from_checkpoint=True)
    (warned,) = [record.getMessage() for record in caplog.records if "was saved" in record.getMessage()]
    assert "max_steps from 1 to 2" in warned and "model_init_kwargs" not in warned
    for step in (1, 2):
        path = tmp_path / "run" / f"checkpoint-{step}" / STATE_NAME
        kept = json.loads(path.read_text(encoding="utf-8"))["settings"]["model_init_kwargs"]
        assert kept == {"token": "<masked>", "dtype": "float32", "revision": "main"}
    texts = [path for path in (tmp_path / "run").rglob("*") if path.suffix in (".json", ".md", ".jinja")]
    assert len(texts) > 10 and not [path for path in texts if "-secret" in path.read_text(encoding="utf-8")]


def policy_logits(model):
    """Of the policy itself, without the value's adapter."""
    with torch.no_grad(), adapter_rows(model.policy, model.policy_adapter):
        return inner_model(model.policy)(torch.tensor([[1, 5, 6, 7]])).logits


def merged(policy):
    adapted = get_peft_model(policy, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    return adapted.merge_and_unload()


def adapted(policy):
    return get_peft_model(policy, LoraConfig(target_modules="all-linear", init_lora_weights=False))


# What is made of the policy that a folder holds, and whether a checkpoint has to hold its weights.
POLICIES = {
    "by name": (None, False),
    "loaded before": (lambda policy: policy, False),
    "in memory": (lambda policy: tiny.llama(), True),
    "merged": (merged, True),
    "in bfloat16": (
        lambda policy: AutoModelForCausalLM.from_pretrained(policy.config._name_or_path, dtype=torch.bfloat16),
        False,
    ),
    "adapted": (adapted, False),
}


@pytest.mark.parametrize("kind", POLICIES)
def test_a_checkpoint_loads_the_policy_that_was_trained_over(tmp_path, kind):
    make, written = POLICIES[kind]
    base = tiny.saved_llama(tmp_path / "base")
    policy = base if make is None else make(AutoModelForCausalLM.from_pretrained(base))
    run = start(tmp_path / "run", model=policy, max_steps=3)
    directory = tmp_path / "run" / "checkpoint-3"
    assert (directory / "model.safetensors").exists() == written
    assert (directory / "adapter_model.safetensors").exists() == (kind == "adapted")
    loaded = VGFModel.from_pretrained(directory)
    run.vgf_model.eval()
    assert torch.equal(policy_logits(loaded), policy_logits(run.vgf_model))
    assert loaded.dtype == run.vgf_model.dtype
    # The folder, given as a model, is the model; trained on, its checkpoints are whole again.
    shutil.move(tmp_path / "run", tmp_path / "moved")
    again = tiny.trainer(tmp_path / "run", **{**ROUNDS, "max_steps": 3}, model=str(tmp_path / "moved" / "checkpoint-3"))
    assert all(torch.equal(tiny.value_state(again)[name], tensor) for name, tensor in tiny.value_state(run).items())
    again.train()
    second = VGFModel.from_pretrained(tmp_path / "run" / "checkpoint-3")
    assert torch.equal(policy_logits(second), policy_logits(loaded))


def test_another_policy_cannot_go_on(tmp_path):
    start(tmp_path, kill=4)
    with pytest.raises(ValueError, match=r"checkpoint-3 was saved by a run over another policy.*`model=`"):
        start(tmp_path, resume=True, model=tiny.llama(seed=1), rollout_func=never)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class MineConfig(LlamaConfig):
    model_type = "mine"
class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""
REMOTE = {
    "distilled": {"distill_coef": 1.0, "value_parametrization": "bilinear", "value_backbone": "policy"},
    "copy": {"value_backbone": "copy"},
}


@pytest.mark.parametrize("kind", REMOTE)
def test_a_policy_with_code_of_its_own_resumes(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("sys.stdin", io.StringIO())  # nobody answers whether code may run
    base = Path(tiny.saved_llama(tmp_path / "base"))
    (base / "modeling_mine.py").write_text(CODE)
    config = json.loads((base / "config.json").read_text())
    classes = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    config.update(model_type="mine", architectures=["MineForCausalLM"], auto_map=classes)
    (base / "config.json").write_text(json.dumps(config))
    settings = {"model": str(base), "trust_remote_code": True, "max_steps": 4, **REMOTE[kind]}
    whole = start(tmp_path / "whole", **settings)
    start(tmp_path / "killed", kill=3, **settings)
    check_same(start(tmp_path / "killed", resume=True, **settings), whole)
    directory = tmp_path / "killed" / "checkpoint-3"
    assert type(VGFModel.from_pretrained(directory, trust_remote_code=True).policy).__name__ == "MineForCausalLM"
    with pytest.raises(ValueError, match="trust_remote_code"):
        VGFModel.from_pretrained(directory)


def test_weights_alone_are_no_checkpoint(tmp_path):
    start(tmp_path, max_steps=3, save_steps=3, save_only_model=True)
    with pytest.raises(ValueError, match="save_only_model=True"):
        start(tmp_path, resume=True)
