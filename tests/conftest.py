# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Settings and fixtures that every test shares."""

import os

# Read by the libraries when they are imported, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
import torch

# Tiny models run fastest on one thread, and several test processes then share a machine without fighting for cores.
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

ROOT = Path(__file__).resolve().parents[1]


def _missing_requirement(item: pytest.Item) -> str | None:
    """What the markers of a test ask for and this machine lacks; None when it can run."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        return "no CUDA device"
    for package in ("vllm", "deepspeed"):
        if item.get_closest_marker(package) and importlib.util.find_spec(package) is None:
            return f"{package} is not installed (pip install 'vgf-llm[{package}]')"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests whose marker names something that is missing, and say what."""
    for item in items:
        missing = _missing_requirement(item)
        if missing is not None:
            item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture(autouse=True)
def seed_everything() -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real datasets: VGF_DATA_DIR, or `shared/data` beside the checkout.

    Tests that use it carry the `data` marker. A folder that was named and is not there is an error, not a skip.
    """
    named = os.environ.get("VGF_DATA_DIR")
    path = Path(named).expanduser() if named else ROOT.parent / "shared" / "data"
    if path.is_dir():
        return path
    if named:
        raise FileNotFoundError(f"VGF_DATA_DIR is {named!r}, which is not a folder.")
    pytest.skip(f"no data folder: set VGF_DATA_DIR to one that holds gsm8k/train.jsonl and the like (no {path})")
