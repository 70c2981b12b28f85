# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A run's folder says how the run was started, and keeps secrets."""

import json
import platform
import subprocess
import sys

import pytest
import torch
import transformers
from transformers import TrainerState

import vgf_llm
from tests.trainer import tiny
from vgf_llm.trainer.save.run_record import RUN_NAME, RunRecord, git_commit


def starts(folder):
    return json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))["starts"]


def test_every_start_of_a_run_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "--learning_rate", "1e-2", "--note", "two words"])
    settings = {"save_strategy": "steps", "save_steps": 2, "transport_steps": 3}
    tiny.trainer(tmp_path, max_steps=2, **settings).train()
    (first,) = starts(tmp_path)
    assert first["command"] == "python train.py --learning_rate 1e-2 --note 'two words'"
    assert first["resumed_at_step"] is None and first["world_size"] == 1 and first["device"] == "cpu"
    assert first["settings"]["max_steps"] == 2 and first["settings"]["learning_rate"] == 1e-2
    assert first["settings"]["transport"]["transport_steps"] == 3
    versions = {"python": platform.python_version(), "vgf-llm": vgf_llm.__version__, "torch": torch.__version__}
    assert versions.items() <= first["versions"].items()
    assert first["versions"]["transformers"] == transformers.__version__
    tiny.trainer(tmp_path, max_steps=3, **settings).train(resume_from_checkpoint=True)
    again, second = starts(tmp_path)
    assert again == first
    assert second["resumed_at_step"] == 2 and second["settings"]["max_steps"] == 3
    assert not list(tmp_path.glob(f".{RUN_NAME}*"))


def test_tokens_and_passwords_are_masked_wherever_they_stand(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "of-the-environment")
    argv = [
        *("python", "train.py", "--hub_token", "hub-secret", "--wandb_api_key=script-secret", "--max_new_tokens", "5"),
        *("--model_init_kwargs", '{"token": "nested-secret"}', "--data", "https://me:url-secret@host/data"),
    ]
    monkeypatch.setattr(sys, "orig_argv", argv)
    args = tiny.config(
        tmp_path, hub_token="hub-secret", model_init_kwargs='{"token": "nested-secret", "revision": "main"}',
        vllm_server_base_url="http://me:url-secret@host:8000",
    )  # fmt: skip
    RunRecord().on_train_begin(args, TrainerState(is_world_process_zero=True), None)
    text = (tmp_path / RUN_NAME).read_text(encoding="utf-8")
    assert "secret" not in text and "of-the-environment" not in text
    (start,) = starts(tmp_path)
    assert start["settings"]["model_init_kwargs"] == {"token": "<masked>", "revision": "main"}
    assert start["settings"]["vllm_server_base_url"] == "http://<masked>@host:8000"
    assert "--max_new_tokens 5" in start["command"] and "--hub_token '<masked>'" in start["command"]


def test_other_processes_write_nothing(tmp_path):
    RunRecord().on_train_begin(tiny.config(tmp_path), TrainerState(is_world_process_zero=False), None)
    assert not (tmp_path / RUN_NAME).exists()


def test_a_file_of_somebody_elses_is_not_written_over(tmp_path):
    (tmp_path / RUN_NAME).write_text("notes", encoding="utf-8")
    with pytest.raises(ValueError, match=f"{RUN_NAME} is not valid JSON"):
        RunRecord().on_train_begin(tiny.config(tmp_path), TrainerState(is_world_process_zero=True), None)
    assert (tmp_path / RUN_NAME).read_text(encoding="utf-8") == "notes"


def test_the_commit_and_whether_files_differ_from_it(tmp_path, monkeypatch):
    def git(*words):
        who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        return subprocess.run(["git", *who, *words], check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    git("init")
    (tmp_path / "file").write_text("one", encoding="utf-8")
    git("add", "file")
    git("commit", "-m", "one")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")
    assert git_commit() == {"commit": commit, "dirty": False}
    (tmp_path / "untracked").write_text("", encoding="utf-8")
    assert git_commit() == {"commit": commit, "dirty": False}
    (tmp_path / "file").write_text("two", encoding="utf-8")
    assert git_commit() == {"commit": commit, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None
