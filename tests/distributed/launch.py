# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Starts the training cases with the backends that train on several processes, and compares what they wrote."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer import tiny

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("train_cases.py")
CONFIGS = ROOT / "recipes" / "accelerate_configs"
_TIMING = ("runtime", "per_second", "step_time", "grad_norm")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(backend: str, directory: Path, cases: Iterable[str], node: Iterable[str] = ()) -> subprocess.Popen:
    """Starts cases: `one` process, two by torchrun (`ddp`), or two with a shipped configuration.

    `two_nodes` starts one machine's only process of two; `node` holds the options that tell the machines apart.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # DeepSpeed looks for ninja there
    tiny.saved_llama(directory / "base")
    module, processes = [], "2"
    if backend == "one":
        processes = "1"
    elif backend == "ddp":
        module = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    else:
        module = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{backend}.yaml")]
        module += ["--num_processes", "2", "--mixed_precision", "no"]
        module += list(node) or ["--main_process_port", str(free_port())]
    if not backend.startswith("zero"):  # with DeepSpeed it would leave DeepSpeed out without a word
        environment["ACCELERATE_USE_CPU"] = "true"
    command = [sys.executable, *module, str(SCRIPT), str(directory), processes, *cases]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )


def finish(run: subprocess.Popen, timeout: float = 280) -> None:
    """Waits for a run, and fails with the end of its output if it failed."""
    try:
        output, _ = run.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        run.terminate()
        output, _ = run.communicate(timeout=30)
        pytest.fail(f"no end within {timeout} s:\n{output[-4000:]}")
    assert run.returncode == 0, output[-4000:]


def log_of(directory: Path, label: str) -> dict:
    return json.loads((directory / f"{label}.json").read_text())


def check_same_training(one: Path, two: Path, label: str, zero_stage: int | None = None) -> None:
    """Weights, losses and metrics of two processes are those of one, and so is the model that was saved."""
    ours, theirs = log_of(one, label), log_of(two, label)
    assert (ours["processes"], theirs["processes"], theirs["zero_stage"]) == (1, 2, zero_stage)
    assert theirs["frozen_gradients"] == 0
    expected = load_file(one / f"{label}.safetensors")
    torch.testing.assert_close(load_file(two / f"{label}.safetensors"), expected, rtol=1e-4, atol=1e-6)
    for ours_log, theirs_log in zip(ours["history"], theirs["history"], strict=True):
        assert ours_log.keys() == theirs_log.keys()
        for name, value in ours_log.items():
            if value is None:
                assert theirs_log[name] is None, name
            elif not any(word in name for word in _TIMING):
                assert theirs_log[name] == pytest.approx(value, rel=2e-4, abs=1e-6), name
    check_same_model(one / f"{label}-model", two / f"{label}-model")


def check_same_model(one: Path, two: Path) -> None:
    """Every weight file of two saved models has the same tensors, whole."""
    files = {path.relative_to(one) for path in one.rglob("*.safetensors")}
    assert files and files == {path.relative_to(two) for path in two.rglob("*.safetensors")}
    for file in files:
        torch.testing.assert_close(load_file(two / file), load_file(one / file), rtol=1e-4, atol=1e-6)


def check_resumed(directory: Path, case: str) -> None:
    """A run that went on from its checkpoint ends as the uninterrupted one, bit for bit."""
    whole, resumed = (load_file(directory / f"{label}.safetensors") for label in (case, f"{case}-resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
