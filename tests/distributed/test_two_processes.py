# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Two processes do what one does with the same global batch."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.launch import check_resumed, check_same_training, finish, free_port, log_of, start
from tests.distributed.train_cases import CASES

pytestmark = pytest.mark.distributed
NAMES = [name for name in CASES if name not in ("from_disk", "uneven_ungathered")]
LABELS = [*NAMES, "log_ratio-resumed", "sequence-resumed"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What one process and what two processes wrote. Both start at once: most of their time is imports."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for run in [start("one", one, NAMES), start("ddp", two, [*NAMES, "fsdp2", "fsdp2_steps"])]:
        finish(run)
    return one, two


@pytest.mark.parametrize("label", LABELS)
def test_two_processes_do_what_one_does(folders, label):
    check_same_training(*folders, label)


def test_training_moved_the_weights(folders):
    file = Path("value", "adapter_model.safetensors")
    first, last = (load_file(folders[1] / "log_ratio" / name / file) for name in ("checkpoint-3", "set-aside"))
    assert max(float((first[name] - last[name]).abs().max()) for name in first) > 1e-3


@pytest.mark.parametrize("case", ["log_ratio", "sequence"])
def test_two_processes_resume_as_if_uninterrupted(folders, case):
    check_resumed(folders[1], case)


def test_only_what_trains_has_optimiser_state(folders):
    """A frozen policy costs its weights and nothing else, whatever the value is."""
    for label in NAMES:
        trained = load_file(folders[0] / f"{label}.safetensors")
        count = sum(tensor.numel() for tensor in trained.values())
        assert log_of(folders[0], label)["optimised_parameters"] == count
    heads_alone = log_of(folders[0], "bilinear")["optimised_parameters"]
    assert heads_alone == 32 * 32 + 32 + 1


def test_fsdp2_gathers_once_and_lets_a_process_run_nothing(folders):
    found = json.loads((folders[1] / "fsdp2.json").read_text())
    assert found["sharded"] == "DTensor"
    assert found["same"], "sharded generation and scoring differ from the whole model's"
    # one for each of the two layers and one for the rest, however many tokens are sampled and scored
    assert found["counts"] == {"4": 3, "8": 3}
    assert found["prints"][0] == found["prints"][1], "the fingerprint of shards is not that of the whole"


def test_fsdp2_fits_and_measures_whatever_the_ranks_draw(folders):
    found = json.loads((folders[1] / "fsdp2_steps.json").read_text())
    assert len(found) == 6
    for case, results in found.items():
        assert len(results["plain"]) == 24, case
        assert results["sharded"] == pytest.approx(results["plain"], rel=1e-4, abs=1e-6), case
        assert any(abs(x) > 1e-3 for x in results["plain"])


def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(folders, tmp_path):
    run = start("ddp", tmp_path, ["killed"])
    output, _ = run.communicate(timeout=120)
    assert run.returncode != 0
    assert "Signal 9 (SIGKILL)" in output  # torchrun names what ended the run, and which process it hit
    names = sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*"))
    assert names == ["checkpoint-3"]
    finish(start("ddp", tmp_path, ["killed"]))
    whole, resumed = load_file(folders[1] / "log_ratio.safetensors"), load_file(tmp_path / "killed-resumed.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_two_machines_do_what_one_process_does(folders, tmp_path):
    """The shipped file for two machines, with one process on each; both are this one, and meet over TCP."""
    address = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    runs = [start("two_nodes", tmp_path, ["log_ratio"], [*address, "--machine_rank", str(rank)]) for rank in (0, 1)]
    for run in runs:
        finish(run)
    for label in ("log_ratio", "log_ratio-resumed"):
        check_same_training(folders[0], tmp_path, label)
    check_resumed(tmp_path, "log_ratio")
