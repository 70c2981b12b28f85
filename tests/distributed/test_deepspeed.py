# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Two processes under ZeRO, with the configurations that ship, do what one process does.

DeepSpeed compiles a communication library on the first launch (about a minute, needs g++) and keeps it.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.distributed.launch import check_resumed, check_same_training, finish, start
from tests.distributed.train_cases import CASES, OFFLOADED, UNEVEN

# The compilation counts as the first test's.
pytestmark = [pytest.mark.distributed, pytest.mark.deepspeed, pytest.mark.timeout(900)]
# ZeRO-3 is where everything differs; ZeRO-2 shows that optimiser and gradients may be sharded too.
QUICK = {
    "zero2": ["distilled_lora", "uneven_likelihood", "uneven_torn_pairs", "uneven_heads"],
    "zero3": [
        *("log_ratio", "bilinear", "from_disk", "sequence", "sequence_pairs", "vllm"),
        *(*UNEVEN, "uneven_ungathered"),
    ],
}
OTHERS = {"zero3": ["gathers", "torn_sampling"]}


def run_all(tmp_path_factory, cases):
    """Runs cases by backend, the one process beside the first backend."""
    every = list(dict.fromkeys(name for names in cases.values() for name in names))
    folders = {backend: tmp_path_factory.mktemp(backend) for backend in ("one", *cases)}
    alone = start("one", folders["one"], every)
    for backend, names in cases.items():
        finish(start(backend, folders[backend], [*names, *OTHERS.get(backend, [])]), timeout=600)
    finish(alone)
    return folders


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return run_all(tmp_path_factory, QUICK)


@pytest.mark.parametrize(("backend", "case"), [(backend, case) for backend in QUICK for case in QUICK[backend]])
def test_zero_does_what_one_process_does(quick, backend, case):
    check_same_training(quick["one"], quick[backend], case, zero_stage=int(backend[-1]))


@pytest.mark.parametrize(
    ("backend", "case"), [*((backend, QUICK[backend][0]) for backend in QUICK), ("zero3", "sequence")]
)
def test_zero_resumes_as_if_uninterrupted(quick, backend, case):
    check_resumed(quick[backend], case)


def test_the_saved_policy_is_consolidated(quick):
    policy = AutoModelForCausalLM.from_pretrained(quick["zero3"] / "from_disk-model")
    assert all(parameter.numel() > 0 for parameter in policy.parameters())


def test_checkpoints_hold_no_frozen_weights(quick):
    """Of the log-ratio value DeepSpeed's shards hold the adapter alone, not the policy that is frozen beside it."""
    directory = quick["zero3"] / "log_ratio" / "set-aside"
    shards = sorted(directory.glob("global_step*/*model_states.pt"))
    policy = (quick["zero3"] / "log_ratio-model" / "model.safetensors").stat().st_size
    assert len(shards) == 2
    assert all(shard.stat().st_size < policy / 2 for shard in shards)


def test_zero3_gathers_once_for_a_whole_rollout(quick):
    counts = json.loads((quick["zero3"] / "gathers.json").read_text())
    assert counts["gathered"]["4"] == counts["gathered"]["8"] > 0
    assert counts["layer_by_layer"]["8"] > counts["layer_by_layer"]["4"] > counts["gathered"]["4"]


def test_two_processes_sample_a_group_that_they_share(quick):
    assert (quick["zero3"] / "torn_sampling.json").read_text() == '"sampled"'


def test_every_process_hands_its_engine_the_whole_adapter_of_each_round(quick):
    expected = load_file(quick["one"] / "vllm-sent-0.safetensors")
    assert {name.split(".")[0] for name in expected} == {"0", "1", "2", "3", "4"}
    for rank in range(2):
        torch.testing.assert_close(load_file(quick["zero3"] / f"vllm-sent-{rank}.safetensors"), expected)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return run_all(tmp_path_factory, {f"zero{stage}": list(CASES) for stage in (1, 2, 3)})


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_trains_every_case(full, stage, case):
    check_same_training(full["one"], full[f"zero{stage}"], case, zero_stage=stage)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_resumes(full, stage):
    check_resumed(full[f"zero{stage}"], next(iter(CASES)))


@pytest.mark.slow
def test_offloading_does_what_one_process_does(tmp_path_factory):
    folders = run_all(tmp_path_factory, {"zero3_offload": list(OFFLOADED)})
    for name in OFFLOADED:
        for label in (name, f"{name}-resumed"):
            check_same_training(folders["one"], folders["zero3_offload"], label, zero_stage=3)
        check_resumed(folders["zero3_offload"], name)
