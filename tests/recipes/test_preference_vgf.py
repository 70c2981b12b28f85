# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The preference recipe: its command line, its rows, the whole of it at a small size, and bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from eval.metrics import paired_difference
from recipes import preference_vgf
from recipes.embedded_preference import PROXY_DIR
from recipes.preference_rows import GRADIENT_COST, SPACES, Budget, base_rows, control_rows, transported_rows

ON_CPU = ["--bf16", "false", "--gradient_checkpointing", "false", "--disable_tqdm", "true", "--num_threads", "1"]
SMALL = [
    *("--num_train_prompts", "16", "--num_validation_prompts", "4", "--num_test_prompts", "6", "--num_particles", "2"),
    *("--max_steps", "2", "--per_device_train_batch_size", "8", "--steps_per_generation", "8"),
    *("--logging_steps", "1", "--baseline_samples", "3"),
    *("--logit_steps", "1", "2", "--embedding_steps", "1", "--soft_token_steps", "1", "--temperatures", "0.7"),
]


def test_the_configuration_is_the_default_and_the_command_line_wins() -> None:
    args, training_args = preference_vgf.parse(["--seed", "3", *ON_CPU])
    assert (training_args.seed, args.proxy) == (3, str(PROXY_DIR))
    assert training_args.output_dir == "outputs/preference_embedded"
    assert args.num_test_prompts >= 200
    text = preference_vgf.CONFIG.read_text(encoding="utf-8")
    assert (
        f"# accelerate launch recipes/preference_vgf.py --config recipes/configs/{preference_vgf.CONFIG.name}" in text
    )


def test_the_shipped_proxy_is_small_and_holds_no_pickle() -> None:
    assert (PROXY_DIR / "model.safetensors").stat().st_size < 3e6
    assert not list(PROXY_DIR.glob("*.bin"))
    measured = json.loads((PROXY_DIR / "results.json").read_text(encoding="utf-8"))
    assert measured["within_prompt_accuracy"] > 0.78


def test_rows_share_samples_and_controls_keep_the_budget() -> None:
    budget = Budget("sequence_embedding", [4, 1], {"step_size": 0.5})
    rows = transported_rows(budget, 4)
    assert [(row.steps, row.num_samples) for row in rows] == [(1, 1), (1, 4), (4, 1), (4, 4)]
    assert rows[0].draw == rows[1].draw and rows[0].draws == 4, "a single response is the mean over all four"
    assert rows[0].draw.options["step_size"] == 0.5 and rows[0].draw.options["relift"] is True
    controls = control_rows(budget, 4, 4)
    assert [row.draw.options["control"] for row in controls] == ["random", "shuffled", "swaps"]
    assert [row.draw.options["transport_steps"] for row in controls] == [4, 4, 4 * GRADIENT_COST]
    assert len(control_rows(Budget("logit", [2]), 2, 4)) == 2, "token by token there are no swaps"
    base = base_rows([4, 16, 4], [0.5])
    assert [row.label for row in base] == ["sampled, T=1", "sampled, T=0.5", "best-of-4", "best-of-16"]
    assert base[0].draw == base[-1].draw


def test_the_recipe_runs_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preference_vgf.main(["--output_dir", str(tmp_path / "first"), *SMALL, *ON_CPU])
    results = json.loads((tmp_path / "first" / "results.json").read_text(encoding="utf-8"))
    rows: dict[str, dict[str, Any]] = {row["method"]: row for row in results["rows"]}
    for title in SPACES.values():
        for name in (f"{title}, one particle, L=1", f"{title}, best of 2, L=1"):
            assert rows[name]["tokens"] > 0 and rows[name]["forwards"] > rows[name]["tokens"] and rows[name]["kl"] >= 0
    two, moved = rows["best-of-2"], rows["VGF sequence_embedding, best of 2, L=1"]
    assert two["proxy"] >= rows["sampled, T=1"]["proxy"]
    # A sample is a decoding and a value; one step adds a gradient (three forwards) and a second decoding.
    assert 2 < moved["forwards"] / two["forwards"] < 5
    assert results["meta"]["L"].keys() == SPACES.keys()
    assert "best-of-3" in rows and any(name.startswith("swaps, VGF sequence_embedding") for name in rows)
    for name in ("gold_and_proxy_over_steps", "gold_and_proxy_over_kl"):
        assert (tmp_path / "first" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "first" / "results.md").read_text(encoding="utf-8")
    assert "| best of N | against | difference | s.e. | in s.e. |" in text and "gold is highest at L=" in text
    assert "Paired differences of gold" in capsys.readouterr().out

    # The value of an earlier run, one space alone: nothing is trained.
    again = ["--value", str(tmp_path / "first"), "--spaces", "logit", "--output_dir", str(tmp_path / "again")]
    preference_vgf.main([*again, *SMALL, *ON_CPU])
    repeated = json.loads((tmp_path / "again" / "results.json").read_text(encoding="utf-8"))
    same = next(row for row in repeated["rows"] if row["method"] == "VGF logit, one particle, L=2")
    assert same["score"] == pytest.approx(rows["VGF logit, one particle, L=2"]["score"], abs=1e-6)


def test_proxies_are_standardised_on_base_samples() -> None:
    prompt = "ann reviews the cafe , brief , on soup and staff :"
    reviews = [" the soup felt lovely .", " the soup felt not lovely .", " the staff seemed odd ."]
    proxy = preference_vgf.StandardProxy(str(PROXY_DIR), [prompt], [reviews])
    scores = torch.tensor(proxy(prompts=[prompt] * 3, completions=reviews))
    assert float(scores.mean()) == pytest.approx(0, abs=1e-5) and float(scores.std()) == pytest.approx(1, abs=1e-5)
    assert paired_difference(scores[:1].repeat(2), scores[1:2].repeat(2)).mean > 0, "praise beats dispraise"


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`num_particles` must be at least 2; got 1"):
        preference_vgf.PreferenceScriptArguments(num_particles=1)
    with pytest.raises(ValueError, match="`spaces` must be one or more of logit, sequence_embedding, sequence_logit"):
        preference_vgf.PreferenceScriptArguments(spaces=["latent"])
    with pytest.raises(ValueError, match="The budgets of 'logit' must be one or more integers >= 1"):
        preference_vgf.PreferenceScriptArguments(logit_steps=[0, 1]).budgets()
    # A reward model that scores all alike, as an untrained head of zeros does.
    model = AutoModelForSequenceClassification.from_pretrained(PROXY_DIR)
    torch.nn.init.zeros_(model.score.weight)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(PROXY_DIR).save_pretrained(tmp_path)
    prompt = "ann reviews the cafe , brief , on soup and staff :"
    with pytest.raises(ValueError, match="gives all base samples one score"):
        preference_vgf.StandardProxy(str(tmp_path), [prompt], [[" the soup felt nice .", " the soup felt odd ."]])
