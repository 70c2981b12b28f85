# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Ratios, exponents and baselines of the benchmarks, and that every benchmark runs and reports what it promises."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import harness, kernels, lookahead, scaling, train_step
from benchmarks.sizes import SIZES, build_policy


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def seconds(*values: float) -> list[harness.Seconds]:
    return [harness.Seconds(wall=value, cpu=2 * value) for value in values]


def test_ratios_are_taken_pair_by_pair() -> None:
    pairs = harness.Pairs()
    for base, other in zip(seconds(1.0, 10.0, 2.0), seconds(2.0, 30.0, 2.0), strict=True):
        pairs.add(base, other)
    assert pairs.ratios("wall") == pairs.ratios("cpu") == [2.0, 3.0, 1.0]
    assert harness.spread(pairs.ratios("wall")) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert harness.shown(harness.spread([1.0, 2.0, 3.0])) == "2.00 (1.00 - 3.00)"


def test_pairs_alternate_and_the_first_is_dropped() -> None:
    calls: list[str] = []
    result = harness.time_pairs(lambda: calls.append("a"), lambda: calls.append("b"), 2, repeats=3)
    assert calls == (["a"] * 3 + ["b"] * 3) * 3
    assert len(result.base) == len(result.other) == 2


def test_exponents_of_powers() -> None:
    sizes = [1, 2, 8, 64]
    for power in (0.0, 1.0, 1.5, -0.5):
        assert harness.exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power, abs=1e-12)
    for bad in ([1.0], [2.0, 2.0]):
        with pytest.raises(ValueError, match="two different numbers"):
            harness.exponent(bad, bad)
    with pytest.raises(ValueError, match="as many"):
        harness.exponent([1, 2], [1.0])


def test_a_baseline_of_other_settings_is_refused_and_one_above_it_named(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text('{"settings": {"size": "a"}, "rows": {"x": {"time": {"value": 0.5, "tolerance": 0.1}}}}')
    baseline = harness.load_baseline(path, {"size": "a"})
    assert harness.check({"x": {"time": 0.59, "memory": 9.0}, "y": {"time": 9.0}}, baseline) == []
    assert harness.check({"x": {"time": 0.61}}, baseline) == ["x: time is 0.610, allowed is 0.600."]
    with pytest.raises(ValueError, match=r"'size': \('b', 'a'\)"):
        harness.load_baseline(path, {"size": "b"})


@pytest.mark.parametrize("module", [kernels, lookahead, train_step])
def test_recorded_baselines_fit_the_default_settings(module: Any) -> None:
    args = module.parse_args([])
    baseline = harness.load_baseline(args.baseline, {name: getattr(args, name) for name in module.SETTINGS})
    assert baseline["rows"]
    for quantities in baseline["rows"].values():
        for known in quantities.values():
            assert known["value"] > 0 and 0 < known["tolerance"] <= known["value"]
    excess = {
        row: {name: known["value"] + known["tolerance"] + 0.01 for name, known in quantities.items()}
        for row, quantities in baseline["rows"].items()
    }
    assert len(harness.check(excess, baseline)) == sum(map(len, excess.values()))


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_the_parameters_that_they_are_called_after(size: str) -> None:
    with torch.device("meta"):
        count = build_policy(size, "meta", "bfloat16").num_parameters()
    expected = {"tiny": 6_000, "qwen2.5-0.5b": 494e6, "qwen2.5-1.5b": 1.54e9, "qwen2.5-7b": 7.62e9}
    named = float(size[:-1]) * 1e6 if size.endswith("m") else expected[size]
    assert count == pytest.approx(named, rel=0.15)


def test_kernels_report_their_distance_from_the_floor(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    small = ["--groups", "1", "--width", "64", "--rows", "4", "--candidates", "5", "--pairs", "2", "--json", str(out)]
    assert kernels.main(small) == 0
    result = json.loads(out.read_text())
    assert set(result["rows"]) == {
        "flow_direction", "flow_direction, given `out`", "flow_direction without repulsion", "simplex_flow",
        "simplex_flow with a mask", "two products alone, given `out`", "log_softmax alone",
    }  # fmt: skip
    assert result["rows"]["flow_direction"]["shape"] == [1, 8, 64]
    for row in result["rows"].values():
        for name in ("floor_cpu", "floor_wall", "warm_floor"):
            assert 0 < row[name]["min"] <= row[name]["median"] <= row[name]["max"]


def test_lookahead_over_one_candidate_is_greedy_decoding() -> None:
    policy = build_policy("tiny", "cpu", "float32")
    head = torch.nn.Linear(16, 1)
    prompts = torch.randint(3, 64, (3, 5))
    found = lookahead.Lookahead(policy, head, num_candidates=1).generate(prompts, 6)
    assert torch.equal(found[:, :5], prompts)
    with torch.no_grad():
        greedy = policy(found).logits[:, 4:-1].argmax(dim=-1)
    assert torch.equal(found[:, 5:], greedy)


@torch.no_grad()
def test_lookahead_values_are_those_of_whole_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = build_policy("tiny", "cpu", "float32")
    prompts = torch.randint(3, 64, (2, 5))
    decoder = lookahead.Lookahead(policy, torch.nn.Linear(16, 1), num_candidates=4)
    tried: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = decoder._try

    def record(candidates: torch.Tensor, *rest: Any) -> torch.Tensor:
        tried.append((candidates, original(candidates, *rest)))
        return tried[-1][1]

    monkeypatch.setattr(decoder, "_try", record)
    found = decoder.generate(prompts, 3)
    for step, (candidates, reached) in enumerate(tried):
        for index in range(4):
            whole = torch.cat([found[:, : 5 + step], candidates[:, index : index + 1]], dim=1)
            hidden = policy.model(whole).last_hidden_state[:, -1]
            torch.testing.assert_close(reached[:, index], hidden, atol=1e-5, rtol=1e-4)


def test_lookahead_reports_how_much_faster_transport_is(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    small = ["--size", "tiny", "--new_tokens", "2", "--batch_size", "2", "--pairs", "1", "--candidates", "2", "5"]
    assert lookahead.main([*small, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert list(result["rows"]) == ["K = 2", "K = 5"]
    for row in result["rows"].values():
        faster, share = row["times_faster_wall"]["median"], row["share_of_lookahead"]["wall"]["median"]
        assert faster * share == pytest.approx(1, rel=0.01)
    with pytest.raises(SystemExit):
        lookahead.parse_args(["--size", "tiny", "--candidates", "65"])


def test_scaling_fits_every_dimension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "DIMENSIONS", {name: sizes[:2] for name, sizes in scaling.DIMENSIONS.items()})
    out, page = tmp_path / "out.json", tmp_path / "out.md"
    small = ["--size", "tiny", "--turns", "1", "--shrink", "8", "--json", str(out), "--markdown", str(page)]
    assert scaling.main(small) == 0
    result = json.loads(out.read_text())
    assert set(result["decoding"]) == {"N", "L", "T", "V", "batch"}
    lines = page.read_text().splitlines()
    assert len(lines) == 2 + len(result["decoding"]) + len(result["flows"])
    assert all(line.count("|") == 6 for line in lines)
    row = result["decoding"]["T"]["transported"]
    assert row["exponent"] == pytest.approx(harness.exponent(row["sizes"], row["seconds"]), abs=0.02)
    assert lines[-1].startswith("| `simplex_flow` | L |")


def test_training_runs_share_batch_and_completions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = train_step.parse_args(["--size", "tiny", "--prompt_tokens", "4", "--completion_length", "6"])
    args.folder = tmp_path
    policy = build_policy("qwen2.5-0.5b", "cpu", "float32", **SIZES["tiny"])  # whose folder has a tokenizer of its own
    policy.save_pretrained(tmp_path)
    train_step.tokenizer(policy.config.vocab_size).save_pretrained(tmp_path)
    rows: list[Any] = []

    def recorded(name: str) -> Any:
        real = getattr(train_step, name)

        def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
            output = real(prompts, trainer)
            if name == "fixed_rollout":  # which the other one calls
                rows.append((prompts, dict(output)))
            return output

        return rollout

    for name in ("fixed_rollout", "base_rollout"):
        monkeypatch.setattr(train_step, name, recorded(name))
    seen: dict[str, list[Any]] = {}
    for run in ("head", "log_ratio, base samples", "distil head", "grpo", "grpo lora"):
        timer = train_step.StepTimer("cpu")
        trainer = train_step.build_trainer(run, args, str(tmp_path / "out"), timer)
        trainer.train()
        seen[run], rows[:] = list(rows), []
        assert len(timer.steps(args.warm_up)) == args.steps
        assert all(step["wall"] > 0 and step["cpu"] > 0 for step in timer.steps(args.warm_up))
    assert all(found == seen["grpo"] for found in seen.values())
    prompts, completions = seen["grpo"][0]
    assert len(prompts) == args.num_prompts * args.num_generations
    assert {len(ids) for ids in completions["completion_ids"]} == {6}
    assert {len(ids) for ids in completions["prompt_ids"]} == {4}
    assert "ref_logprobs" in train_step.base_rollout(["w3"], trainer)


def test_training_rows_compare_steps_and_peaks() -> None:
    ours = {"steps": [{"wall": 1.0, "cpu": 2.0}, {"wall": 2.0, "cpu": 3.0}], "peak_bytes": 3_000_000}
    theirs = {"steps": [{"wall": 2.0, "cpu": 4.0}, {"wall": 2.0, "cpu": 4.0}], "peak_bytes": 6_000_000}
    row = train_step.compare("head", {"head": [ours], "grpo": [theirs]})
    assert row["time_wall"] == {"median": 0.75, "min": 0.5, "max": 1.0}
    assert row["time_cpu"] == {"median": 0.625, "min": 0.5, "max": 0.75}
    assert row["memory"]["median"] == 0.5
    assert row["peak_megabytes"] == {"head": 3, "grpo": 6}
    shown = train_step.table({"head": row}, train_step.parse_args([]))
    assert shown.row_count == 1
