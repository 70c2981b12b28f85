# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`vgf train`: what it reads, what it hands to `accelerate launch`, and a short training."""

import json

import pytest

from tests.trainer import tiny
from vgf_llm import VGFModel
from vgf_llm import train as command
from vgf_llm.cli import main

SHORT = [
    *("--use_cpu", "--bf16", "false", "--max_steps", "1", "--num_generations", "4", "--report_to", "none"),
    *("--per_device_train_batch_size", "8", "--max_completion_length", "6", "--save_strategy", "no"),
]


def rewarded(completions: list[str], **kwargs: object) -> list[float]:
    """A reward that a dotted path names."""
    return [float(index % 2) for index in range(len(completions))]


@pytest.fixture
def given(tmp_path) -> list[str]:
    """A model and data in folders, and where the result goes."""
    model, data = tiny.saved_llama(tmp_path / "model"), tmp_path / "data"
    data.mkdir()
    rows = [json.dumps({"prompt": row["prompt"]}) for row in tiny.prompts(12)]
    (data / "train.jsonl").write_text("\n".join(rows))
    options = ["--model_name_or_path", model, "--dataset_name", str(data), "--output_dir", str(tmp_path / "out")]
    return [*options, "--reward_funcs", f"{__name__}.rewarded", *SHORT]


def test_a_model_is_trained_and_saved(tmp_path, given, capsys):
    command.train(given)
    assert VGFModel.from_pretrained(str(tmp_path / "out")).value.parametrization == "log_ratio"
    assert f"vgf generate {tmp_path / 'out'} PROMPT" in capsys.readouterr().out


def test_options_of_accelerate_are_handed_to_it(given, monkeypatch):
    seen = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", seen.append)
    assert main(["train", "--num_processes", "2", *given, "--step_size", "0.5", "--accelerate_config", "zero2"]) == 0
    (launched,) = seen
    assert launched.num_processes == 2 and launched.config_file.endswith("zero2.yaml")
    assert launched.module and launched.training_script == "vgf_llm.train"
    assert launched.training_script_args == [*given, "--step_size", "0.5"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_procesess", "2"], "`vgf train` has no option --num_procesess. Did you mean --num_processes?"),
        (["--transport_setps", "2"], "`vgf train` has no option --transport_setps. Did you mean --transport_steps?"),
        (["--reward_funcs", "accuracy"], "`reward_funcs` takes accuracy_reward, "),
        (["--reward_funcs", "json.nothing"], "`reward_funcs` names 'json.nothing', which cannot be imported"),
    ],
)
def test_wrong_options_are_named_before_a_process_starts(given, monkeypatch, capsys, options, message):
    monkeypatch.setattr("accelerate.commands.launch.launch_command", None)
    assert main(["train", *given, *options]) == 1
    assert message in capsys.readouterr().err


def test_data_and_model_are_asked_for(given, capsys):
    without_data = [*given[:2], *given[4:]]
    with pytest.raises(ValueError, match=r"Give the data by `--dataset_name`.*none is given"):
        command.train(without_data)
    assert main(["train", *given[2:]]) == 1
    assert "`--model_name_or_path` is missing" in capsys.readouterr().err
