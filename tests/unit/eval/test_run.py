# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The commands `eval.run`, `eval.tune_budget` and `eval.win_rate` from the command line to their files."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval import loading, run, sampling, tune_budget, win_rate
from eval.methods import DEFAULT_METHODS
from eval.metrics import TurnOver
from eval.sampling import Samples
from eval.store import SampleStore, fingerprint
from recipes.embedded_math import BASE_DIR
from tests.layouts import vgf_model
from tests.unit.eval.models import save_vgf
from vgf_llm import VGFModel
from vgf_llm.models.config import TransportConfig

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_vgf(tmp_path_factory.mktemp("model"))


def arguments(model: str, output: Path, /, **options: Any) -> list[str]:
    given = {
        "model": model,
        "task": "embedded_math",
        "num_problems": 3,
        "max_new_tokens": 4,
        "output_dir": output,
        "num_threads": 1,
        **options,
    }
    texts = []
    for name, value in given.items():
        values = value if isinstance(value, list | tuple) else [value]
        texts += [f"--{name}", *map(str, values)]
    return texts


SMALL = {"steps": [0, 2], "num_particles": [1, 2], "seeds": [0, 1]}


def test_a_whole_table_with_plots_and_nothing_sampled_twice(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [name for name in DEFAULT_METHODS if name not in ("vgf", "best_of_n_proxy", "best_of_m")]
    argv = arguments(model, tmp_path, **SMALL, methods=[*names, "vgf_logit"])
    assert run.main(argv) == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    methods = [row["method"] for row in results["rows"]]
    for name in ("greedy", "sampled, T=0.7", "majority@2", "best-of-2 by value", "value-weighted vote of 2",
                 "pass@2 (oracle)", "VGF, one particle, L=2", "VGF, majority of 2, L=2",
                 "random direction, L=2", "shuffled value, L=2"):  # fmt: skip
        assert name in methods
    assert all(0 <= row["score"] <= 1 and row["tokens"] > 0 and row["seconds"] > 0 for row in results["rows"])
    assert results["meta"]["model"].startswith(model)
    assert results["meta"]["score"] == "accuracy"
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| difference to greedy |" in text and "pass@1" in text and "gold is highest at L=" in text
    for name in ("scaling.png", "over_optimization.png", "costs.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)
    assert "VGF, one particle" in capsys.readouterr().out

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("sampled again")

    before = (tmp_path / "results.json").read_text(encoding="utf-8")
    monkeypatch.setattr(sampling, "_generate", refuse)
    assert run.main(argv) == 0
    assert (tmp_path / "results.json").read_text(encoding="utf-8") == before
    # The extra `demo` brings no matplotlib: the table is written and printed without plots.
    (tmp_path / "costs.png").unlink()
    monkeypatch.setattr(run, "is_matplotlib_available", lambda: False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run.main(argv) == 0
    assert not (tmp_path / "costs.png").exists()
    assert f"results.json, results.md are in {tmp_path}" in " ".join(capsys.readouterr().out.split())


def test_a_plain_language_model_is_a_baseline(tmp_path: Path) -> None:
    argv = arguments(str(BASE_DIR), tmp_path, **SMALL, methods=["greedy", "majority"])
    assert run.main(argv) == 0
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["rows"]
    assert [row["method"] for row in rows] == ["greedy", "majority@2, T=0.7", "majority@2"]


def test_bad_input_is_refused_before_anything_is_sampled(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_vgf(tmp_path / "other", seed=2)
    done = tmp_path / "done"
    SampleStore(done, {"model": "another", "fingerprint": "0123456789abcdef"})
    cases = [
        ({"task": "chess"}, "`--task` must be one of embedded_math"),
        ({"methods": ["ppo"]}, "`--methods` must be among greedy"),
        ({"methods": ["vgf_sequence_logit"]}, "this model's moves in logit"),
        ({"model": str(BASE_DIR), "methods": ["vgf"]}, "needs a learned value"),
        ({"model": str(tmp_path / "nowhere")}, "is neither a folder nor a hub id"),
        ({"num_problems": 0}, "`num_problems` must be at least 1"),
        ({"num_particles": [0]}, "`num_particles` must be one or more integers >= 1"),
        ({"batch_size": 0}, "`--batch_size` must be at least 1"),
        ({"compare_to": "ppo"}, "`--compare_to` must be one of the rows"),
        ({"model": other, "output_dir": done}, "holds samples of 'another', not of"),
        ({"dtype": "float12"}, "`dtype` must be `auto` or a torch dtype"),
    ]
    for options, message in cases:
        assert run.main(arguments(model, tmp_path / "out", **{**SMALL, **options})) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "samples.jsonl").exists()


def test_a_checkpoint_is_measured_and_its_folder_knows_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = AutoModelForCausalLM.from_pretrained(BASE_DIR)
    checkpoint = tmp_path / "run" / "checkpoint-3"
    vgf_model(base, "bilinear", seed=1, std=0.5).save_pretrained(checkpoint, save_policy=False)
    assert not (checkpoint / "model.safetensors").exists()
    argv = arguments(str(checkpoint), tmp_path / "out", methods=["greedy"], num_problems=2)
    assert run.main(argv) == 0
    settings = json.loads((tmp_path / "out" / "meta.json").read_text(encoding="utf-8"))["settings"]
    assert settings["base"] == f"{BASE_DIR} ({fingerprint(BASE_DIR)})"
    assert settings["dtype"] == "float32" and settings["rewards"] == {"gold": "reward_models.verifiable.gsm8k_reward"}
    assert settings["sampling"]["temperature"] == 1.0
    capsys.readouterr()
    assert run.main([*argv, "--dtype", "bfloat16"]) == 1
    assert "dtype: 'float32' there, 'bfloat16' now" in capsys.readouterr().err
    tokenizer = AutoTokenizer.from_pretrained(BASE_DIR)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert run.main([*argv, "--tokenizer", str(tmp_path / "tokenizer")]) == 1
    assert f"tokenizer: {settings['tokenizer']!r} there" in capsys.readouterr().err
    assert run.main([*argv, "--problem_seed", "1"]) == 1
    assert f"problems: {settings['problems']!r} there, '2 (" in capsys.readouterr().err
    monkeypatch.setattr(loading, "identity", lambda name, revision=None: "another")
    assert run.main(argv) == 1
    assert f"base: {settings['base']!r} there, '{BASE_DIR} (another)' now" in capsys.readouterr().err


def fake_samples(gold: list[float], proxy: list[float] | None) -> Samples:
    column = torch.tensor(gold).unsqueeze(-1)
    return Samples(column, column, column, column, column, column, [["1"]] * 3, [["x"]] * 3,
                   proxy=None if proxy is None else torch.tensor(proxy).unsqueeze(-1))  # fmt: skip


def test_the_budget_is_chosen_by_gold_and_the_proxy_is_warned_of() -> None:
    golds = {0: [0.0, 0.0, 0.0], 2: [1.0, 2.0, 3.0], 4: [0.0, 1.1, 1.9]}
    proxies = {0: [0.0, 0.0, 0.0], 2: [1.0, 1.0, 1.0], 4: [5.0, 5.0, 5.0]}

    def sampler(draw: Any, num_samples: int, seed: int) -> Samples:
        steps = draw.options.get("transport_steps", 0)
        return fake_samples(golds[steps], proxies[steps])

    choice = tune_budget.choose(sampler, [(4, 0.5), (0, 0.5), (2, 0.5)], space="logit")
    assert (choice.chosen.steps, [budget.steps for budget in choice.budgets]) == (2, [0, 2, 4])
    assert choice.by_proxy is not None and choice.by_proxy.steps == 4
    assert choice.risk == TurnOver(1, pytest.approx(1.0, abs=1e-6), 4.0, True)
    assert (
        "The proxy alone would have chosen L*epsilon = 2, 1.000 lower in gold: it is over-optimised" in choice.warning()
    )
    with pytest.raises(ValueError, match="`budgets` is empty"):
        tune_budget.choose(sampler, [], space="logit")


def test_a_cautious_choice_takes_the_smallest_budget_that_is_as_good() -> None:
    golds = {1: [0.0, 1.0, 0.5], 2: [1.0, 0.9, 0.5], 4: [1.0, 1.0, 0.6]}

    def sampler(draw: Any, num_samples: int, seed: int) -> Samples:
        return fake_samples(golds[draw.options["transport_steps"]], None)

    budgets = [(steps, 0.5) for steps in golds]
    assert tune_budget.choose(sampler, budgets, space="logit").chosen.steps == 4
    # L=2 is .067 behind, with an error of .033; L=1 is .367 behind, with an error of .318.
    assert tune_budget.choose(sampler, budgets, space="logit", cautious=True).chosen.steps == 4
    golds[2] = [1.0, 1.0, 0.59]
    assert tune_budget.choose(sampler, budgets, space="logit", cautious=True).chosen.steps == 2


def test_tuning_writes_the_models_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_vgf(tmp_path / "model")
    argv = arguments(model, tmp_path / "out", steps=[0, 1, 4], step_sizes=[0.25, 1.0], num_samples=1)
    before = (tmp_path / "model" / "vgf_config.json").read_text(encoding="utf-8")
    assert tune_budget.main(argv) == 0
    assert (tmp_path / "model" / "vgf_config.json").read_text(encoding="utf-8") == before
    assert tune_budget.main([*argv, "--write"]) == 0
    chosen = json.loads((tmp_path / "out" / "budget.json").read_text(encoding="utf-8"))["chosen"]
    found = VGFModel.from_pretrained(tmp_path / "model").transport
    assert (found.transport_steps, found.step_size) == (chosen["steps"], chosen["step_size"])
    assert found.top_k_candidates == TransportConfig().top_k_candidates
    assert sorted(p.name for p in (tmp_path / "model").glob(".*")) == []
    assert tune_budget.main(arguments(model, tmp_path / "out", split="test")) == 1
    assert "would choose the budget on the problems that are reported" in capsys.readouterr().err
    assert tune_budget.main(arguments(str(BASE_DIR), tmp_path / "base")) == 1
    assert "it needs a learned value" in capsys.readouterr().err


def test_win_rates_of_a_results_folder(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**SMALL, "seeds": [0], "methods": ["greedy", "vgf_logit"]}
    assert run.main(arguments(model, tmp_path, **options)) == 0
    capsys.readouterr()

    # The judge is a reward model's name on the command line; a function stands in for one here.
    def longer(name: str, **options: Any) -> Any:
        return lambda prompts, pairs: [0 if a >= b else 1 for a, b in pairs]

    monkeypatch.setattr(win_rate, "RewardModelJudge", longer)
    argv = ["--samples", str(tmp_path), "--reward_model", "x", "--second", "greedy x1"]
    assert win_rate.main([*argv, "--first", "VGF logit L=2 x2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["wins"] + found["losses"] + found["ties"] == 3
    assert win_rate.main([*argv, "--first", "nothing"]) == 1
    assert "There are no samples of 'nothing' with seed 0; those there are: VGF logit" in capsys.readouterr().err
    assert win_rate.main(["--samples", str(tmp_path / "no"), *argv[2:], "--first", "x"]) == 1


def test_the_tokenizer_of_a_model_without_one_is_the_bases(tmp_path: Path) -> None:
    from eval.loading import load_model

    model = save_vgf(tmp_path)
    for path in (*tmp_path.glob("tokenizer*"), *tmp_path.glob("chat_template*")):
        path.unlink()
    loaded = load_model(model)
    assert loaded.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(BASE_DIR).get_vocab()
    assert loaded.has_value
