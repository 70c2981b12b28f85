# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints: a resumed run is the uninterrupted one, bit for bit, and half a checkpoint does not exist."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from tests.trainer import tiny
from vgf_llm.trainer.buffer import ValueBuffer
from vgf_llm.trainer.checkpoint import ROUND_NAME, STATE_NAME

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
    assert resumed.rounds.gate.state() == whole.rounds.gate.state()
    assert resumed.state.num_input_tokens_seen == whole.state.num_input_tokens_seen
    prompts = [run.prompts and run.prompts.state() for run in (resumed, whole)]
    assert prompts[0] == prompts[1]


CASES = {
    "mid-round": (4, {}),
    "third-epoch": (9, {}),
    "epoch-boundary": (4, {"save_steps": 4}),
    "on-the-buffer-alone": (8, {"rollout_fraction": 0.5}),
    "unsolved-prompts": (
        7,
        {"prompt_selection": "unsolved", "reward_funcs": tiny.mostly_high, "value_loss": "likelihood"},
    ),
    "several-passes": (5, {"num_iterations": 2, "save_steps": 5}),
    "evaluation": (7, {"eval_strategy": "steps", "eval_steps": 3}),
    "log-ratio-sampled-itself": (3, {"value_parametrization": "log_ratio", "rollout_policy": "value"}),
    "head-with-transported-rollouts": (3, {"value_parametrization": "vocab", "rollout_transport_steps": 2}),
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
    save = ValueBuffer.save

    def fail_at_the_second(self, directory, *args):
        if "checkpoint-6" in str(directory):
            raise OSError("No space left on device")
        return save(self, directory, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ValueBuffer, "save", fail_at_the_second)
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
    start(directory, max_steps=3, save_steps=3, value_parametrization="vocab", value_backbone="lora")
    return directory / "checkpoint-3"


FILES = ["value_head.safetensors", "value/adapter_model.safetensors", "value_buffer.safetensors", ROUND_NAME]
FILES += [STATE_NAME, "trainer_state.json", "optimizer.pt", "scheduler.pt"]


@pytest.mark.parametrize("harm", ["truncated", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_a_harmed_checkpoint_is_refused_by_name(tmp_path, checkpoint, name, harm):
    shutil.copytree(checkpoint, tmp_path / "checkpoint-3")
    path = tmp_path / "checkpoint-3" / name
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
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
        other = tiny.trainer(tmp_path, **settings, value_parametrization="vocab", value_lora_r=2)
        other.train(resume_from_checkpoint=str(checkpoint))
    newer = tmp_path / "newer"
    shutil.copytree(checkpoint, newer)
    state = json.loads((newer / STATE_NAME).read_text())
    (newer / STATE_NAME).write_text(json.dumps({**state, "format_version": 2}))
    with pytest.raises(ValueError, match=r"vgf_state\.json has format_version 2; this release reads 1"):
        tiny.trainer(tmp_path, **settings, value_parametrization="vocab").train(resume_from_checkpoint=str(newer))


def test_weights_alone_are_no_checkpoint(tmp_path):
    start(tmp_path, max_steps=3, save_steps=3, save_only_model=True)
    with pytest.raises(ValueError, match="save_only_model=True"):
        start(tmp_path, resume=True)
