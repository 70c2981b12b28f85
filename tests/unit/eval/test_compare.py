# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The comparison: what baselines train on, how sweeps are read, its report, and a whole one at a small size."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM

from eval import baselines, compare, compare_report
from eval.baselines import TRAINABLE, Job, best_samples, preference_pairs, vgf_settings
from eval.compare_measure import EXPORTED, LIMITED
from eval.sampling import Samples
from eval.tasks import Task, TaskOptions, load_task
from vgf_llm.models import VGFModel

ROOT = Path(__file__).parents[3]
TINY = {
    "num_generations": 4,
    "per_device_train_batch_size": 16,
    "steps_per_generation": 1,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "value_parametrization": "log_ratio",
    "value_backbone": "copy",
    "learning_rate": 7.0e-4,
    "transport_steps": 2,
    "step_size": 0.5,
    "num_test_problems": 3,
}


def samples(rewards: list[list[float]]) -> Samples:
    gold = torch.tensor(rewards)
    texts = [[f"{i}{j}" for j in range(gold.shape[1])] for i in range(gold.shape[0])]
    return Samples(gold, gold, gold, gold, gold, gold, texts, texts)


def task(count: int) -> Task:
    prompts = Dataset.from_dict({"prompt": [f"p{i}" for i in range(count)]})
    return Task("toy", prompts, lambda completions, **kwargs: [0.0] * len(completions))


def test_right_and_wrong_answers_make_as_many_pairs_as_there_are_of_the_rarer() -> None:
    pairs = preference_pairs(task(3), samples([[1, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]]))
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in pairs] == [
        ("p0", "00", "03"),
        ("p2", "21", "23"),
        ("p2", "22", "20"),
    ]
    with pytest.raises(ValueError, match="nothing to prefer"):
        preference_pairs(task(1), samples([[1, 1]]))


def test_graded_rewards_pair_best_with_worst() -> None:
    pairs = preference_pairs(task(1), samples([[0.2, -1.0, 3.0, 0.1]]))
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [("02", "01"), ("00", "03")]


def test_rejection_sampling_keeps_what_is_right_or_best() -> None:
    kept = best_samples(task(2), samples([[1, 0, 1], [0, 0, 0]]))
    assert kept["completion"] == ["00", "02"]
    assert best_samples(task(2), samples([[0.5, 0.7, 0.1], [-1.0, -2.0, -3.0]]))["completion"] == ["01", "10"]
    with pytest.raises(ValueError, match="nothing to train on"):
        best_samples(task(1), samples([[0, 0]]))


def test_vgf_takes_its_recipes_settings(tmp_path: Path) -> None:
    config = tmp_path / "vgf.yaml"
    config.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    math = load_task("embedded_math", TaskOptions("train", 8))
    job = Job(base="x", task=math, directory=tmp_path, seed=3, vgf_config=config)
    settings = vgf_settings(job, distill_coef=0.5)
    assert (settings.learning_rate, settings.value_backbone, settings.seed) == (7.0e-4, "copy", 3)
    assert (settings.distill_coef, settings.max_completion_length, job.completions) == (0.5, 54, 32)
    assert [len(job.half(i).task.problems) for i in (0, 1)] == [4, 4]
    assert (settings.num_generations, settings.num_train_epochs) == (4, 1)
    config.write_text(yaml.safe_dump({**TINY, "num_generations": 2}), encoding="utf-8")
    settings = vgf_settings(job)
    assert (settings.num_generations, settings.num_train_epochs) == (2, 2)
    with pytest.raises(ValueError, match=r"`num_generations` is 2 in .* does not divide the 3 completions per prompt"):
        vgf_settings(replace(job, num_generations=3))
    for recipe in compare.RECIPES.values():  # the settings of every recipe that is there
        if recipe.vgf_config.is_file():
            vgf_settings(Job(base="x", task=math, directory=tmp_path, vgf_config=recipe.vgf_config))
    with pytest.raises(ValueError, match="`vgf_config` is missing"):
        vgf_settings(Job(base="x", task=math, directory=tmp_path))


def test_vgf_can_train_on_the_bases_own_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {}

    class Recorded:
        def __init__(self, **kwargs: Any) -> None:
            found.update(kwargs)

        def train(self) -> None: ...

        def save_model(self, folder: str) -> None: ...

    monkeypatch.setattr(baselines, "VGFTrainer", Recorded)
    recipe = compare.RECIPES["embedded_math"]
    job = Job(recipe.base, task(2), tmp_path, vgf_config=recipe.vgf_config, samples=samples([[1, 0], [0, 0]]))
    TRAINABLE["vgf_logged"].train(job)
    assert found["reward_funcs"] is None and found["train_dataset"]["reward"] == [1, 0, 0, 0]
    assert found["train_dataset"]["completion"] == ["00", "01", "10", "11"]
    args = found["args"]
    assert (args.num_generations, args.prompt_selection, args.rollout_policy) == (4, "dataset", "base")
    # As many completions and steps as the recipe that samples: three epochs of two completions, two of them sampled.
    assert args.num_train_epochs * 4 == pytest.approx(3 * 2, rel=1e-3)


def run(
    method: str, seed: int, scores: list[float], *, rate: float | None = None, validation: float = 0.5
) -> dict[str, Any]:
    cell = {"scores": scores, "seconds": 2.0, "tokens": 30.0, "kl": 1.0, "proxy": None}
    return {
        "method": method, "learning_rate": rate, "seed": seed, "train_seconds": 10.0, "completions": 32,
        "versions": {"trl": "1.16.0"}, "threads": 1, "validation": [validation, 0.1],
        "rows": {method: {"greedy": cell}},
    }  # fmt: skip


RUNS = [
    run("vgf", 0, [1.0, 1.0, 0.0, 1.0], validation=0.9),
    run("vgf", 1, [1.0, 1.0, 1.0, 1.0], validation=0.8),
    run("grpo", 0, [0.0, 1.0, 0.0, 0.0], rate=1e-4, validation=0.2),
    run("grpo", 0, [1.0, 1.0, 0.0, 0.0], rate=1e-3, validation=0.6),
    run("grpo", 1, [0.0, 1.0, 0.0, 0.0], rate=1e-3, validation=0.1),
]
SETTINGS = {"recipe": "embedded_math", "num_train": 8, "num_generations": 4, "num_test": 4}


def test_a_sweep_is_decided_by_the_first_seed_on_validation_problems() -> None:
    chosen = compare_report.chosen_runs(RUNS)
    assert [(r["method"], r["seed"], r["learning_rate"]) for r in chosen] == [
        ("vgf", 0, None), ("vgf", 1, None), ("grpo", 0, 1e-3), ("grpo", 1, 1e-3),
    ]  # fmt: skip


def test_the_report_averages_seeds_and_pairs_problems() -> None:
    labels = {name: method.label for name, method in TRAINABLE.items()}
    text = compare_report.render(RUNS, labels, SETTINGS, "python -m eval.compare", "accuracy")
    # Per problem over seeds: VGF 1, 1, .5, 1; GRPO .5, 1, 0, 0.
    assert "| VGF | greedy | 0.875 ± 0.125 | 0.750 to 1.000 |" in text
    assert "| GRPO (TRL) | greedy | 0.375 ± 0.239 | 0.250 to 0.500 | 0.001 |" in text
    # Per seed VGF .75 and 1, GRPO .5 and .25: .25 and .75 apart, with one degree of freedom.
    assert "| GRPO (TRL) | greedy | +0.500 | +0.100 to +0.900 | +2.4 | -2.677 to +3.677 |" in text
    assert "| GRPO (TRL) | 0.0001 | 0.200 ± 0.100 | 10 (wall) |" in text
    assert "32 sampled completions" in text
    assert "| GRPO (TRL) | greedy | 0.375 |" not in text  # one transported sample was not measured


def test_others_are_compared_with_the_recipes_own_mode() -> None:
    distilled = [run("vgf_distilled_1", 0, [1.0] * 4, validation=0.95), run("vgf_on_grpo", 0, [1.0] * 4)]
    assert compare_report.own_method(compare_report.entries([*RUNS, *distilled])) == "vgf"
    assert compare_report.own_method(compare_report.entries(distilled)) == "vgf_distilled_1"
    assert compare_report.own_method(compare_report.entries(RUNS[2:])) is None


def test_rows_of_an_exported_model_stand_under_their_method() -> None:
    cell = run("vgf", 0, [1.0, 0.0, 1.0, 1.0])["rows"]["vgf"]["greedy"]
    exported = {**RUNS[0], "rows": {**RUNS[0]["rows"], f"vgf{EXPORTED}": {"greedy": cell}}}
    rows = compare_report.entries([exported, RUNS[2]])
    assert compare_report.own_method(rows) == "vgf"
    assert compare_report.own_method([entry for entry in rows if entry.method.endswith(EXPORTED)]) is None
    labels = {name: method.label for name, method in TRAINABLE.items()}
    text = compare_report.render([exported, RUNS[2]], labels, SETTINGS, "python -m eval.compare", "accuracy")
    assert "| VGF, exported | greedy | 0.750 ± 0.250 |" in text
    assert "| VGF, exported | greedy | +0.000 |" in text


def test_rows_among_likely_tokens_stand_under_their_method_and_need_a_seed_in_common() -> None:
    cell = run("iterated_rft", 0, [0.0, 1.0, 1.0, 0.0])["rows"]["iterated_rft"]["greedy"]
    limited = run("iterated_rft", 0, [1.0, 1.0, 0.0, 0.0], rate=1e-3)
    limited["rows"][f"iterated_rft{LIMITED}"] = {"greedy": cell}
    other = run("dpo", 5, [0.0] * 4, rate=1e-3)
    for made in (RUNS[0], limited, other):
        made["rows"][made["method"]]["sampled"] = made["rows"][made["method"]]["greedy"]
    labels = {name: method.label for name, method in TRAINABLE.items()}
    text = compare_report.render([RUNS[0], limited, other], labels, SETTINGS, "command", "accuracy")
    label = TRAINABLE["iterated_rft"].label
    assert f"| {label}, likely tokens | greedy | 0.500 ± 0.289 |" in text
    assert f"| {label} | greedy | +0.250 |" in text
    assert "| DPO (TRL) | greedy | 0.000 | no seed in common |" in text
    assert "| DPO (TRL) | greedy | +0" not in text


def test_one_transported_sample_meets_the_highest_row_of_every_baseline() -> None:
    runs = []
    for made in RUNS:
        cells = {"sampled": made["rows"][made["method"]]["greedy"]}
        if made["method"] == "grpo":
            cells["greedy"] = {**cells["sampled"], "scores": [1.0, 1.0, 0.0, 1.0]}
        runs.append({**made, "train_cpu_seconds": 7.0, "rows": {made["method"]: cells}})
    labels = {name: method.label for name, method in TRAINABLE.items()}
    text = compare_report.render(runs, labels, SETTINGS, "python -m eval.compare", "accuracy")
    # VGF sampled 1, 1, .5, 1 minus GRPO greedy 1, 1, 0, 1.
    assert "| GRPO (TRL) | greedy | 0.750 | +0.125 ± 0.125 (+1.0) |" in text
    assert "| VGF | sampled | 0.875 ± 0.125 | 0.750 to 1.000 |  |  | 7 |" in text
    assert "10 (wall)" in compare_report.render(RUNS, labels, SETTINGS, "command", "accuracy")


def test_a_frontier_has_every_budget_of_a_value_and_every_training_of_a_policy(tmp_path: Path) -> None:
    def cell(scores: list[float], kl: float | None) -> dict[str, Any]:
        return {"scores": scores, "seconds": 1.0, "tokens": 5.0, "kl": kl, "proxy": None}

    made = [run("vgf", seed, [1.0]) for seed in (0, 1)]
    for row, kl in zip(made, (4.0, 2.0), strict=True):
        budgets = {"sampled, L=1": cell([0.5, 0.0], kl / 2), "sampled, L=2": cell([1.0, 0.5], kl)}
        row["rows"] = {
            "vgf": {"greedy": cell([1.0, 1.0], 9.0), "sampled": cell([1.0, 0.5], kl), **budgets},
            "base, chosen by VGF's value": {"sampled": cell([0.0, 0.0], 0.1)},
            f"vgf{EXPORTED}": {"sampled, T=0.5": cell([1.0, 0.0], 3.5), "sampled": cell([1.0, 0.0], 3.0)},
        }
    for rate, kl in ((1e-3, 8.0), (1e-4, 0.5)):
        made.append({**run("grpo", 0, [1.0], rate=rate), "rows": {"grpo": {"sampled": cell([0.0, 1.0], kl)}}})
    made.append({**run("grpo", 0, [1.0], rate=1e-2), "rows": {}})  # a sweep's run that no test problem saw
    labels = {name: method.label for name, method in TRAINABLE.items()}
    found = compare_report.frontiers(made, labels)
    assert list(found) == ["VGF", "VGF, exported", "GRPO (TRL)"]
    points = {name: [(row.method, row.kl, row.score) for row in each.points] for name, each in found.items()}
    assert points["VGF"] == [("L=1", 1.5, 0.25), ("L=2", 3.0, 0.75)]
    assert points["VGF, exported"] == [("T=1", 3.0, 0.5), ("T=0.5", 3.5, 0.5)]
    assert [point[:2] for point in points["GRPO (TRL)"]] == [("0.0001", 0.5), ("0.001", 8.0)]
    assert [(each.trainings, each.seconds) for each in found.values()] == [(1, 10.0), (1, 10.0), (2, 20.0)]
    text = compare_report.render(made, labels, SETTINGS, "command", "accuracy")
    assert "| GRPO (TRL) | 0.0001: 0.50, 0.500; 0.001: 8.00, 0.500 | 2 | 20 |" in text
    compare_report.plot_frontier(made, labels, tmp_path / "frontier.png", "accuracy")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_a_comparison_is_drawn_and_kept_as_reference(tmp_path: Path) -> None:
    labels = {name: method.label for name, method in TRAINABLE.items()}
    compare_report.plot(RUNS, labels, tmp_path / "plot.png", "accuracy")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    reference = compare_report.reference(RUNS, labels, "command")
    # Per problem over seeds .5, 1, 0, 0; nothing of VGF was exported.
    assert reference == {"GRPO (TRL)": {"seeds": 2, "command": "command", "greedy": "0.375 ± 0.239"}}
    with pytest.raises(ValueError, match="needs runs with rows of grpo; iterated_rft, likely tokens; vgf, exported"):
        compare_report.reference(RUNS[:2], labels, "command")


def test_the_kept_reference_is_that_of_the_documents() -> None:
    documented = (ROOT / "docs" / "results_comparison.md").read_text(encoding="utf-8")
    kept = json.loads(compare.REFERENCE.read_text(encoding="utf-8"))
    iterated = "iterated rejection-sampling SFT, VGF's schedule, likely tokens"
    assert list(kept) == ["GRPO (TRL)", iterated, "VGF, exported"]
    for label, row in kept.items():
        section = next(part for part in documented.split("\n## ") if f"\n{row['command']}\n" in part)
        assert f"; seeds {', '.join(map(str, range(row['seeds'])))};" in section
        for mode in ("greedy", "sampled", "majority@8"):
            assert f"| {label} | {mode} | {row[mode]} |" in section


def arguments(output: Path, config: Path, **options: Any) -> list[str]:
    given = {
        "recipe": "embedded_math", "output_dir": output, "vgf_config": config, "num_train": 8, "num_validation": 3,
        "num_test": 4, "num_votes": 2, "steps": [1, 2], "batch_size": 16, "seeds": [0], "num_threads": 1, **options,
    }  # fmt: skip
    texts = []
    for name, value in given.items():
        texts += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return texts


@pytest.fixture()
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    return path


def test_bad_input_is_refused_before_training(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "compare.json").write_text(json.dumps({"num_train": 99}), encoding="utf-8")
    two = tmp_path / "two.yaml"
    two.write_text(yaml.safe_dump({**TINY, "num_generations": 2}), encoding="utf-8")
    cases = [
        (
            {"recipe": "chess"},
            "`--recipe` must be one of embedded_math, embedded_chains, embedded_preference; got 'chess'",
        ),
        ({"methods": ["ppo"]}, "`--methods` must be among base, vgf, "),
        ({"num_test": 0}, "`--num_test` must be at least 2, got 0"),
        ({"batch_size": 6}, "must be a multiple of `--num_generations` 4"),
        ({"vgf_config": tmp_path / "no.yaml"}, "no.yaml, which does not exist"),
        ({"vgf_config": two, "methods": ["vgf"], "num_generations": 3, "batch_size": 6}, "does not divide the 3"),
        ({"methods": ["iterated_rft"]}, "tiny.yaml does not set `prompt_selection: unsolved`"),
        ({"output_dir": tmp_path / "done"}, "holds another comparison (recipe: None there"),
    ]
    for options, message in cases:
        assert compare.main(arguments(tmp_path / "out", config, **{"methods": ["grpo"], **options})) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "models").exists()
    every = compare.check_arguments(compare.parse(arguments(tmp_path / "out", config, methods=["all"])))
    scheduled = ["grpo_unsolved_first", "iterated_rft", "iterated_rft_no_base"]
    assert every == [name for name in compare.METHODS if name not in scheduled]


def test_a_comparison_goes_on_where_it_stopped(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Short responses: what is tested is the book-keeping.
    monkeypatch.setattr(compare, "load_task", lambda name, options: load_task(name, replace(options, max_new_tokens=4)))
    argv = arguments(tmp_path / "out", config, learning_rates=[1e-4, 1e-3], num_iterations=[1], num_train=4,
                     num_validation=2, num_test=2)  # fmt: skip
    assert compare.main([*argv, "--methods", "base", "grpo"]) == 0
    files = sorted(path.name for path in (tmp_path / "out" / "runs").iterdir())
    assert files == ["base-seed0.json", "grpo-lr0.0001-passes1-seed0.json", "grpo-lr0.001-passes1-seed0.json"]
    printed = capsys.readouterr().out
    assert "GRPO (TRL), lr 0.0001, 1 iteration:" in printed
    assert "| base | majority@2 |" in printed

    def refuse(job: Job) -> None:
        raise AssertionError("trained again")

    for name, method in TRAINABLE.items():
        monkeypatch.setitem(TRAINABLE, name, replace(method, train=refuse))
    assert compare.main([*argv, "--methods", "grpo"]) == 0
    report = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "| GRPO (TRL) | greedy |" in report
    assert shlex.join(["python", "-m", "eval.compare", *argv, "--methods", "grpo"]) in report


@pytest.mark.parametrize(
    ("method", "option", "unit", "copies"),
    [("rft", "offline_epochs", "epochs", "vgf_on_rft"), ("grpo", "num_iterations", "iterations", "vgf_on_grpo")],
)
def test_passes_are_swept_at_the_learning_rate_that_the_first_of_them_chose(
    method: str, option: str, unit: str, copies: str, tmp_path: Path, config: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    trained: list[tuple[float | None, int]] = []
    scores = {(1e-4, 2): 0.1, (1e-3, 2): 0.3, (1e-3, 4): 0.7, (1e-3, 8): 0.5}

    def train(job: Job) -> None:
        trained.append((job.learning_rate, job.passes))

    monkeypatch.setitem(TRAINABLE, method, replace(TRAINABLE[method], train=train))
    monkeypatch.setattr(compare.Comparison, "base_samples", lambda *args: (None, compare.Stopwatch()))
    monkeypatch.setattr(compare.measured, "validate", lambda *args: {"validation": [scores[trained[-1]], 0.01]})
    argv = arguments(tmp_path / "out", config, methods=[method], learning_rates=[1e-4, 1e-3], **{option: [2, 4, 8]})
    comparison = compare.Comparison(compare.parse(argv))
    assert comparison.choose(method) == (1e-3, 4)
    assert trained == list(scores)
    assert f"(TRL), lr 0.001, 4 {unit}: 0.700" in capsys.readouterr().out
    assert comparison.choose(copies) == (1e-3, 4)  # swept once, and said once
    assert capsys.readouterr().out == ""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in comparison.runs.glob("*.json")]
    assert [run["passes"] for run in compare_report.chosen_runs(runs)] == [4]
    table = compare_report.render(runs, {method: "X"}, SETTINGS, "python -m eval.compare", "accuracy")
    assert f"| X | 0.001, 4 {unit} | 0.700 ± 0.010 |" in table


@pytest.mark.parametrize(("method", "trainer"), [("grpo", "GRPOTrainer"), ("dpo", "DPOTrainer")])
def test_passes_reach_the_trainer(method: str, trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Built(Exception):
        pass

    def build(*args: Any, **kwargs: Any) -> None:
        raise Built(kwargs["args"])

    monkeypatch.setattr(baselines, trainer, build)
    job = Job(str(compare.RECIPES["embedded_math"].base), task(2), tmp_path, learning_rate=1e-3, passes=3)
    with pytest.raises(Built) as found:
        TRAINABLE[method].train(replace(job, samples=samples([[1, 0], [1, 0]])))
    settings = found.value.args[0]
    assert (settings.num_iterations if method == "grpo" else settings.num_train_epochs) == 3


@pytest.mark.parametrize(("method", "rate"), [("vgf", None), ("iterated_rft", 1e-3)])
def test_runs_of_other_vgf_settings_are_not_reused(
    method: str, rate: float | None, tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(yaml.safe_dump({**TINY, "prompt_selection": "unsolved"}), encoding="utf-8")
    argv = arguments(tmp_path / "out", config, methods=[method], learning_rates=[1e-3])
    compare.Comparison(compare.parse(argv))
    stale = {**run(method, 0, [1.0] * 4, rate=rate), "vgf_config": "of another file"}
    name = f"{method}-seed0.json" if rate is None else f"{method}-lr{rate:g}-seed0.json"
    (tmp_path / "out" / "runs" / name).write_text(json.dumps(stale), encoding="utf-8")
    assert compare.main(argv) == 1
    assert "was made with other settings than" in capsys.readouterr().err


def test_what_fine_tuning_changed_can_be_the_value(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(job: Job) -> None:
        tuned = AutoModelForCausalLM.from_pretrained(job.base)
        with torch.no_grad():
            tuned.get_output_embeddings().weight.mul_(1.1)
        tuned.save_pretrained(job.directory)

    monkeypatch.setattr(baselines, "train_rft", tune)
    base = str(compare.RECIPES["embedded_math"].base)
    baselines.train_vgf_on_rft(Job(base, task(3), tmp_path / "out", vgf_config=config))
    model = VGFModel.from_pretrained(tmp_path / "out").eval()
    policy = AutoModelForCausalLM.from_pretrained(base)
    for ours, theirs, factor in ((model.policy, policy, 1.0), (model.value_model, policy, 1.1)):
        torch.testing.assert_close(ours.get_output_embeddings().weight, factor * theirs.get_output_embeddings().weight)
    assert (model.vgf_config.parametrization, model.transport.transport_steps, model.transport.step_size) == (
        "log_ratio", 2, 0.5,
    )  # fmt: skip
    assert TRAINABLE["vgf_on_rft"].swept_as == "rft"


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in TRAINABLE if name not in ("rft", "vgf_on_rft")])
def test_every_method_trains_and_is_measured(method: str, tmp_path: Path, config: Path) -> None:
    if TRAINABLE[method].scheduled:
        config.write_text(yaml.safe_dump({**TINY, "prompt_selection": "unsolved"}), encoding="utf-8")
    once = {"offline_epochs": [1], "num_iterations": [1]}
    argv = arguments(tmp_path / "out", config, methods=[method], learning_rates=[1e-3], **once)
    if TRAINABLE[method].swept_as is not None:
        argv += ["--num_generations", "4"]
    assert compare.main(argv) == 0
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "out" / "runs").glob(f"{method}-*")]
    assert len(runs) == 1
    assert runs[0]["completions"] == 32
    for rows in runs[0]["rows"].values():
        for cell in rows.values():
            assert len(cell["scores"]) == 4
            assert cell["tokens"] > 0
    if TRAINABLE[method].has_value:
        assert runs[0]["steps"] in (1, 2)
    alone = TRAINABLE[method].has_value and not TRAINABLE[method].distilled
    assert (f"{method}{EXPORTED}" in runs[0]["rows"]) == (alone and not method.startswith("guided"))
    assert (f"{method}{LIMITED}" in runs[0]["rows"]) == TRAINABLE[method].scheduled
