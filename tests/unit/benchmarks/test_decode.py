# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The decode benchmark runs, reports what it promises and holds results against its baseline."""

import copy
import json
from pathlib import Path

import pytest
import torch

from benchmarks import decode

TINY = ["--model_size", "tiny", "--batch_size", "2", "--prompt_tokens", "4", "--new_tokens", "3", "--pairs", "2"]


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def baseline() -> dict:
    return json.loads(decode.BASELINE.read_text(encoding="utf-8"))


def result_of(baseline: dict, excess: float) -> dict:
    """A report whose every ratio is `excess` above what the baseline tolerates."""
    rows = {name: {"ratio": row["ratio"] + row["tolerance"] + excess} for name, row in baseline["rows"].items()}
    return {"settings": dict(baseline["settings"]), "rows": rows}


def test_a_run_writes_every_pair_of_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert decode.main([*TINY, "--threads", "1", "--num_particles", "2", "--json", str(out)]) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert list(result["settings"]) == list(decode.SETTINGS)
    assert result["settings"]["new_tokens"] == 3
    assert list(result["rows"]) == list(decode.ROWS)
    printed = capsys.readouterr().out
    for name, row in result["rows"].items():
        assert name in printed
        assert set(row) == {"ratio", "ratios", "plain_seconds", "transported_seconds"}
        pairs = zip(row["plain_seconds"], row["transported_seconds"], row["ratios"], strict=True)
        assert len(row["ratios"]) == 2
        assert min(row["ratios"]) <= row["ratio"] <= max(row["ratios"])
        for plain, transported, ratio in pairs:
            assert plain > 0
            # seconds are written with four digits
            assert ratio == pytest.approx(transported / plain, rel=2e-4 / plain)


def test_both_calls_of_a_pair_sample_the_same_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    args = decode.parse_args([*TINY, "--num_particles", "2"])
    policy = decode.build_policy(args)
    shapes = []
    monkeypatch.setattr(decode, "seconds", lambda call, **_: shapes.append(call().shape) or 1.0)
    row = decode.measure(policy, "log_ratio", torch.full((2, 4), 5), args)
    assert row.ratios == [1.0, 1.0]
    # two prompts with two particles; transport hands out the chosen particle of each prompt
    assert shapes == [(4, 7), (2, 7)] * 3


def test_the_cpu_clock_is_for_one_thread(capsys: pytest.CaptureFixture[str]) -> None:
    assert decode.main([*TINY, "--rows", "vocab", "--threads", "1", "--clock", "cpu"]) == 0
    with pytest.raises(SystemExit):
        decode.parse_args(["--clock", "cpu", "--threads", "2"])
    assert "--threads 1" in capsys.readouterr().err


@pytest.mark.parametrize("row", decode.ROWS)
def test_the_value_of_a_row_is_not_the_zeros_of_an_untrained_one(row: str) -> None:
    policy = decode.build_policy(decode.parse_args(TINY))
    model = decode.build_model(policy, row)
    weights = {n: p for n, p in model.named_parameters() if "lora_B" in n or n.startswith("value.")}
    assert all(bool(p.any()) for p in weights.values())
    assert weights or decode.ROWS[row] == ("log_ratio", "copy", None)
    assert all(p.requires_grad for p in policy.parameters())  # the plain call is of the policy as it came


def test_the_default_model_is_of_the_promised_size() -> None:
    args = decode.parse_args([])
    with torch.device("meta"):
        policy = decode.build_policy(decode.parse_args(["--device", "meta"]))
    assert sum(p.numel() for p in policy.parameters()) >= 50_000_000
    assert policy.config.vocab_size == 32_000
    assert (args.batch_size, args.prompt_tokens, args.new_tokens, args.transport_steps) == (8, 32, 64, 8)


def test_the_baseline_is_of_the_default_settings_and_within_the_promise(baseline: dict) -> None:
    args = decode.parse_args([])
    assert baseline["settings"] == decode.settings(args)
    assert set(baseline["rows"]) == set(decode.ROWS)
    assert all(row["ratio"] > 0 and row["tolerance"] > 0 for row in baseline["rows"].values())
    promised = {"bilinear": 1.10, "vocab": 1.10, "log_ratio": 1.60}
    for name, limit in promised.items():
        row = baseline["rows"][name]
        assert row["ratio"] + row["tolerance"] <= limit + 1e-9, name


def test_check_passes_at_the_tolerance_and_fails_beyond(baseline: dict) -> None:
    assert decode.check(result_of(baseline, -1e-6), baseline) == []
    failures = decode.check(result_of(baseline, 1e-3), baseline)
    assert [failure.split(":")[0] for failure in failures] == list(baseline["rows"])


def test_check_refuses_other_settings_before_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "measure", lambda *args: pytest.fail("measured"))
    with pytest.raises(ValueError, match=r"'batch_size': \(2, 8\)"):
        decode.main([*TINY, "--threads", "1", "--check"])


@pytest.mark.parametrize(("tolerance", "code"), [(1e9, 0), (-1e9, 1)])
def test_check_decides_the_exit_code(baseline: dict, tmp_path: Path, tolerance: float, code: int) -> None:
    argv = [*TINY, "--threads", "1", "--rows", "bilinear"]
    own = copy.deepcopy(baseline)
    own["settings"] = decode.settings(decode.parse_args(argv))
    own["rows"]["bilinear"]["tolerance"] = tolerance
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(own), encoding="utf-8")
    assert decode.main([*argv, "--check", "--baseline", str(path)]) == code


@pytest.mark.parametrize("option", ["batch_size", "pairs", "new_tokens", "num_particles"])
def test_counts_below_one_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        decode.parse_args([f"--{option}", "0"])
    assert f"--{option} must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("particles", [1, 4, 8])
def test_baselines_of_more_particles_belong_to_their_command(particles: int) -> None:
    path = decode.BASELINE.with_name(f"decode_n{particles}.json")
    options = ["--batch_size", "2", "--new_tokens", "32", "--threads", "1", "--clock", "cpu"]
    args = decode.parse_args(["--rows", "bilinear", "--num_particles", str(particles), *options])
    rows = decode.load_baseline(path, decode.settings(args))["rows"]
    assert rows["bilinear"]["ratio"] + rows["bilinear"]["tolerance"] < 1.2
