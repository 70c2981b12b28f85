# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Two processes do what one does with the same global batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.train_cases import CASES

SCRIPT = Path(__file__).with_name("train_cases.py")
LABELS = [*CASES, "log_ratio-resumed"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What one process and what two processes wrote. Both start at once: most of their time is imports."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    commands = [[sys.executable, SCRIPT, one, "1"], [sys.executable, *torchrun, SCRIPT, two, "2"]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    runs = [subprocess.Popen(list(map(str, command)), env=environment, **pipes) for command in commands]
    for run in runs:
        output, _ = run.communicate(timeout=280)
        assert run.returncode == 0, output[-4000:]
    return one, two


@pytest.mark.distributed
@pytest.mark.parametrize("label", LABELS)
def test_two_processes_do_what_one_does(folders, label):
    one, two = ((json.loads((path / f"{label}.json").read_text())) for path in folders)
    assert (one["processes"], two["processes"]) == (1, 2)
    ours, theirs = (load_file(path / f"{label}.safetensors") for path in folders)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)
    timing = ("runtime", "per_second", "step_time", "grad_norm")
    for ours_log, theirs_log in zip(one["history"], two["history"], strict=True):
        assert ours_log.keys() == theirs_log.keys()
        for name, value in ours_log.items():
            if value is None:
                assert theirs_log[name] is None, name
            elif not any(word in name for word in timing):
                assert theirs_log[name] == pytest.approx(value, rel=2e-4, abs=1e-6), name


@pytest.mark.distributed
def test_training_moved_the_weights(folders):
    file = Path("value", "adapter_model.safetensors")
    first, last = (load_file(folders[1] / "log_ratio" / name / file) for name in ("checkpoint-3", "set-aside"))
    assert max(float((first[name] - last[name]).abs().max()) for name in first) > 1e-3


@pytest.mark.distributed
def test_two_processes_resume_as_if_uninterrupted(folders):
    whole, resumed = (load_file(folders[1] / f"{label}.safetensors") for label in ("log_ratio", "log_ratio-resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
