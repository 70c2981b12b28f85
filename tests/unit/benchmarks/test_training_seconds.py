# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The pairing of `benchmarks.training_seconds`, with processes that sleep in place of those that train."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import training_seconds as benchmark
from eval.baselines import TRAINABLE, Job
from eval.compare import RECIPES

RECIPE = ["--recipe", "embedded_math"]


def sleeper(seconds: dict[str, float], started: list[str]):
    """A `start` whose processes write `cpu` and end after some seconds; negative ones fail."""

    def start(method: str, argv: list[str], out: Path) -> subprocess.Popen:
        started.append(out.stem)
        length = seconds[method if out.stem != "filler" else "filler"]
        out.with_suffix(".log").write_text("no such base", encoding="utf-8")
        code = f"import time, pathlib; time.sleep({abs(length)})"
        if length < 0:
            code += "; raise SystemExit(1)"
        else:
            code += f"; pathlib.Path({str(out)!r}).write_text({json.dumps({'cpu': length, 'wall': length})!r})"
        return subprocess.Popen([sys.executable, "-c", code])

    return start


@pytest.mark.parametrize(("vgf", "other"), [(0.2, 1.0), (1.0, 0.2)])
def test_the_machine_stays_busy_until_the_slower_one_ends(vgf, other, tmp_path, monkeypatch):
    started: list[str] = []
    monkeypatch.setattr(benchmark, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(benchmark, "start", sleeper({"vgf": vgf, "rft:8": other, "filler": 60.0}, started))
    row = benchmark.pair("rft:8", RECIPE, tmp_path)
    assert (row["vgf"]["cpu"], row["other"]["cpu"], row["ratio"]) == (vgf, other, round(other / vgf, 3))
    assert started == ["vgf beside", "rft-8", "filler"]


def test_a_run_that_fails_says_what_it_printed(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(benchmark, "start", sleeper({"vgf": 60.0, "grpo": -0.1, "filler": 60.0}, []))
    with pytest.raises(RuntimeError, match="Training grpo failed:\nno such base"):
        benchmark.pair("grpo", RECIPE, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "ppo"], "--methods must be among vgf, "),
        (["--methods", "vgf:3"], "a number of passes, 1 or more, goes with grpo, rloo, grpo_unsolved_first, dpo, rft"),
        (["--methods", "rft:0"], "a number of passes, 1 or more, goes with"),
        (["--num_train", "1"], "--num_train must be at least 2, got 1"),
        (["--vgf_num_train", "0"], "--vgf_num_train must be at least 2, got 0"),
        (["--vgf_config", "no.yaml"], "--vgf_config no.yaml is no file"),
    ],
)
def test_bad_input_is_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args([*RECIPE, *options])
    assert message in capsys.readouterr().err


def test_a_run_is_trained_and_timed(tmp_path):
    out = tmp_path / "out.json"
    argv = [*RECIPE, "--num_train", "2", "--num_generations", "2", "--batch_size", "2"]
    assert benchmark.main([*argv, "--worker", "grpo", "--json", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["cpu"] > 0
    assert found["wall"] > 0


def test_vgf_can_have_fewer_completions_and_settings_of_its_own(tmp_path, monkeypatch):
    made: dict[str, Job] = {}
    for name in ("vgf", "grpo"):
        method = replace(TRAINABLE[name], train=lambda job, name=name: made.update({name: job}))
        monkeypatch.setitem(TRAINABLE, name, method)
    fewer = [*RECIPE, "--num_train", "8", "--vgf_num_train", "6", "--vgf_num_generations", "2"]
    own = tmp_path / "own.yaml"
    own.touch()
    for options, config in (([], RECIPES["embedded_math"].vgf_config), (["--vgf_config", str(own)], own)):
        args = benchmark.parse_args([*fewer, *options])
        for name in ("vgf", "grpo"):
            benchmark.train(name, args)
        assert {name: job.completions for name, job in made.items()} == {"vgf": 12, "grpo": 32}
        assert made["vgf"].vgf_config == config
