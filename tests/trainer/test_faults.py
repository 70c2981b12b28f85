# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A full disk, SIGTERM, a server that is gone: the last checkpoint is whole, and the error says what happened."""

import errno
import os
import shutil
import signal

import pytest
import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

from tests.trainer import tiny
from vgf_llm.trainer.save.checkpoint import check_whole

SETTINGS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
FULL = OSError(errno.ENOSPC, "No space left on device")


def run_of(directory, **settings):
    return tiny.trainer(directory, rollout_func=tiny.fixed_rollout, **{**SETTINGS, **settings})


def checkpoints(directory):
    return sorted(path.name for path in directory.glob("checkpoint-*"))


def same_weights(one, other):
    ours, theirs = tiny.value_state(one), tiny.value_state(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = run_of(tmp_path_factory.mktemp("whole"))
    run.train()
    return run


# Where a checkpoint is written, in order: weights, optimizer and scheduler, random state, buffer, state.
WRITERS = {
    "adapter": ("peft.peft_model.PeftModel.save_pretrained", SafetensorError("I/O error: No space left on device")),
    "optimizer": ("torch.save", FULL),
    "buffer": ("vgf_llm.trainer.save.checkpoint.write_tensors", FULL),
    "state": ("vgf_llm.trainer.save.checkpoint.write_json", FULL),
    "trainer state": ("transformers.trainer_callback.TrainerState.save_to_json", FULL),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch, whole, writer):
    target, error = WRITERS[writer]
    run = run_of(tmp_path)

    def fail(*args, **kwargs):
        raise error

    class Fill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                patch.setattr(target, fail)

    run.add_callback(Fill())
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left") as raised:
        run.train()
    note = "\n".join(raised.value.__notes__)
    assert "The checkpoint of step 4 was not written whole" in note
    assert f"the last whole one is {tmp_path / 'checkpoint-2'}" in note
    assert "MiB are free" in note
    del raised.value.__notes__  # the exceptions of this module are shared
    assert checkpoints(tmp_path) == ["checkpoint-2"]
    check_whole(tmp_path / "checkpoint-2")
    resumed = run_of(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert same_weights(resumed, whole)
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_an_output_dir_that_vanishes(tmp_path, whole):
    """A removed folder is made again; a file in its place is named, with the path."""

    class Harm(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                shutil.rmtree(args.output_dir)
                if args.output_dir.endswith("file"):
                    (tmp_path / "file").write_text("")

    for name in ("removed", "file"):
        run = run_of(tmp_path / name)
        run.add_callback(Harm())
        if name == "removed":
            (tmp_path / name).mkdir(exist_ok=True)
            run.train()
            assert checkpoints(tmp_path / name) == ["checkpoint-4", "checkpoint-6"]
            assert same_weights(run, whole)
            continue
        with pytest.raises(OSError, match=str(tmp_path / name)) as raised:
            run.train()
        assert "there is no earlier one" in raised.value.__notes__[0]


def test_a_file_in_the_place_of_unfinished_checkpoints_is_removed(tmp_path):
    run = run_of(tmp_path, max_steps=2)
    (tmp_path / ".incomplete").write_text("x")
    run.train()
    assert checkpoints(tmp_path) == ["checkpoint-2"]


class Terminate(TrainerCallback):
    """Sends this process SIGTERM in the middle of a step."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_ends_the_step_and_saves(tmp_path, whole, caplog):
    before = signal.getsignal(signal.SIGTERM)
    run = run_of(tmp_path)
    run.add_callback(Terminate())
    with pytest.raises(SystemExit) as ended:
        run.train()
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    resumed = run_of(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert same_weights(resumed, whole)


def test_sigterm_keeps_its_meaning_where_nothing_is_saved(tmp_path):
    seen = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        run = run_of(tmp_path, save_strategy="no", max_steps=4)
        run.add_callback(Terminate())
        run.train()
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert seen == [signal.SIGTERM]
    assert run.state.global_step == 4


def test_an_error_gives_the_signal_back(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("vgf_llm.trainer.save.checkpoint.write_json", lambda *args: (_ for _ in ()).throw(FULL))
    with pytest.raises(OSError, match="No space left"):
        run_of(tmp_path, max_steps=2).train()
    assert signal.getsignal(signal.SIGTERM) == before


class RequestError(OSError):
    """What `requests` raises derives from OSError in the same way."""


class DyingServer:
    """TRL's client of a server that answers `answers` requests, one for each of the two prompts of a step."""

    answers = 0
    refusal: Exception = RequestError("Connection aborted")

    def __init__(self, **kwargs):
        self.left = self.answers
        if not self.left:
            raise ConnectionError("Max retries exceeded")

    def generate(self, prompts, n, **sampling):
        if not self.left:
            raise self.refusal
        self.left -= 1
        return {"completion_ids": [[4 + i, tiny.EOS] for i in range(n)]}


GONE = r"http://10\.1\.2\.3:8123 did not answer at step {} .*vllm-serve"
SERVER = {
    "use_vllm": True,
    "rollout_policy": "base",
    "vllm_mode": "server",
    "vllm_server_host": "10.1.2.3",
    "vllm_server_port": 8123,
}


@pytest.mark.parametrize(("answers", "step"), [(0, 0), (6, 3)])
def test_a_vllm_server_that_is_gone_is_named(tmp_path, monkeypatch, answers, step):
    monkeypatch.setattr(DyingServer, "answers", answers)
    monkeypatch.setattr("vgf_llm.trainer.sample.vllm.vllm_client_class", lambda: DyingServer)
    with pytest.raises(ConnectionError, match=GONE.format(step)):
        tiny.trainer(tmp_path, **SERVER, **SETTINGS).train()
    assert checkpoints(tmp_path) == (["checkpoint-2"] if answers else [])


def test_a_request_that_a_vllm_server_refuses_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(DyingServer, "answers", 2)
    monkeypatch.setattr(DyingServer, "refusal", Exception("Request failed: 400, too long"))
    monkeypatch.setattr("vgf_llm.trainer.sample.vllm.vllm_client_class", lambda: DyingServer)
    with pytest.raises(RuntimeError, match=r"10\.1\.2\.3:8123 refused a request at step 1 .*too long.*--max-model-len"):
        tiny.trainer(tmp_path, **SERVER, **SETTINGS).train()


def test_a_frozen_policy_costs_its_weights_alone(tmp_path, monkeypatch):
    """No gradients, no optimizer state, no second copy."""

    def never(*args, **kwargs):
        raise AssertionError("the policy was copied")

    monkeypatch.setattr("vgf_llm.trainer.setup.copy_language_model", never)
    run = run_of(tmp_path, save_strategy="no")
    run.train()
    model = run.vgf_model
    assert model.ref_model is None and model.value_model is None
    adapter = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in run.optimizer.param_groups for p in group["params"]} == adapter
    assert {id(p) for p in run.optimizer.state} == adapter
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
    assert sum(p.numel() for p in model.policy.parameters() if id(p) not in adapter) == sum(
        p.numel() for p in tiny.llama().parameters()
    )


COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}  # traces all, and needs no compiler of C++


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"bf16": True}, id="bf16"),
        pytest.param({"bf16": True, "gradient_checkpointing": True}, id="bf16-checkpointing"),
        pytest.param(COMPILED, id="compiled", marks=pytest.mark.slow),
    ],
)
def test_bf16_checkpointing_and_compilation_train(tmp_path, settings):
    plain = run_of(tmp_path / "plain", save_strategy="no", max_steps=2, distill_coef=1.0)
    plain.train()
    run = run_of(tmp_path / "run", save_strategy="no", max_steps=2, distill_coef=1.0, **settings)
    run.train()
    tolerance = 0.02 if "bf16" in settings else 1e-4
    assert tiny.history(run, "loss") == pytest.approx(tiny.history(plain, "loss"), rel=tolerance)
