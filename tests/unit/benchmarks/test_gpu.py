# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""All benchmarks in one command: its parts' ratios, what it leaves out, and that it keeps to its time."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, train_step

FAST = tuple(part for part in gpu.TINY if part[0] != "train_step")  # which starts two interpreters


def test_parts_give_their_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "TINY", FAST)
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert gpu.main(["--tiny", "--json", str(tmp_path / "gpu.json")]) == 0
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(parts) == ["decode, tiny", "lookahead, tiny", "kernels", "rounds, tiny"]
    assert parts["rounds, tiny"]["left_out"] == "vLLM is not installed"
    for part in list(parts.values())[:3]:
        assert part["seconds"] > 0 and all(ratio > 0 for ratio in part["ratios"].values())
    decode, lookahead = parts["decode, tiny"], parts["lookahead, tiny"]
    assert decode["ratios"] == {f"{row} over generate": decode["report"]["rows"][row]["ratio"]
                                for row in ("bilinear", "log_ratio")}  # fmt: skip
    faster = lookahead["report"]["rows"]["K = 4"]["times_faster_wall"]["median"]
    assert lookahead["ratios"] == {"lookahead, K = 4, over transport": faster}
    assert "bilinear over generate" in capsys.readouterr().out


def test_ratios_of_steps_and_of_rounds() -> None:
    ours, theirs = (
        {"steps": [{"wall": wall, "cpu": 1.0}], "peak_bytes": peak} for wall, peak in ((1.0, 300), (2.0, 400))
    )
    results = {"log_ratio": [ours], "grpo": [theirs], "grpo lora": [theirs]}
    rows = {name: train_step.compare(name, results) for name in ("log_ratio", "log_ratio over grpo lora")}
    assert gpu.RATIOS["train_step"]({"rows": rows}) == {
        "log_ratio over grpo: time": 0.5,
        "log_ratio over grpo: memory": 0.75,
        "log_ratio over grpo lora: time": 0.5,
        "log_ratio over grpo lora: memory": 0.75,
    }
    seconds = {"vLLM": [[1.0, 9.0], [3.0, 9.0], [2.0, 9.0]], "transformers": [[2.0, 9.0]] * 3}
    assert gpu.RATIOS["rounds"]({"seconds": seconds}) == {"vLLM over transformers": 1.0}


@pytest.mark.parametrize("parts", [gpu.PARTS, gpu.TINY])
def test_options_are_those_of_the_benchmarks(parts: tuple) -> None:
    for module, size, options in parts:
        shape = () if size is None else ("--size", size)
        args = vars(gpu.importlib.import_module(f"benchmarks.{module}").parse_args([*shape, *options]))
        assert size is None or size in (args.get("size"), args.get("model_size"))


def test_a_part_ends_with_the_time() -> None:
    name, size, options = FAST[0]
    options = ["--size", size, *options]
    assert gpu.run_part(name, options, 0.05) == {"left_out": "stopped after 0 s"}
    assert gpu.run_part(name, options, -1.0) == {"left_out": "the time had run out"}
    assert gpu.run_part(name, ["--size", "nothing"], 60.0)["failed"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_it_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--tiny runs the same code on a CPU" in capsys.readouterr().err


@pytest.mark.slow
def test_all_parts_run(tmp_path: Path) -> None:
    assert gpu.main(["--tiny", "--json", str(tmp_path / "gpu.json")]) == 0
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert set(parts["train_step, tiny"]["ratios"]) == {
        f"log_ratio over grpo lora: {what}" for what in ("time", "memory")
    }
