# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The recipes of the paper's two tasks: their YAML files, real HH pairs on tiny models, and bad input."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from recipes import hh_vgf, preferences, tldr_vgf
from tests.trainer.tiny import llama, tokenizer
from tests.unit.reward_models.classifiers import classifier
from vgf_llm import TransportConfig, VGFModel

ON_CPU = ["--bf16", "false", "--dtype", "float32", "--gradient_checkpointing", "false", "--disable_tqdm", "true"]
RECIPES = {"hh": hh_vgf, "tldr": tldr_vgf}


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    """Tiny policy, reward model and judge with one tokenizer, and a context that holds real prompts."""
    parts = {
        "policy": llama(max_position_embeddings=128),
        "reward": classifier(2, max_position_embeddings=128),
        "judge": classifier(1, seed=1, max_position_embeddings=128),
    }
    for name, model in parts.items():
        if name != "policy":
            model.config.reward_pooling = "mean"
        model.save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    return {name: str(tmp_path / name) for name in parts}


def small(models: dict[str, str], out: Path) -> list[str]:
    return [
        *("--model_name_or_path", models["policy"], "--reward_model", models["reward"], "--output_dir", str(out)),
        *("--num_train_prompts", "8", "--num_test_prompts", "5", "--max_prompt_tokens", "60", "--eval_rows", "12"),
        *("--max_completion_length", "8", "--num_particles", "2", "--sequence_steps", "2", "--num_threads", "1"),
        *("--num_generations", "2", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"),
        *("--steps_per_generation", "2", "--max_steps", "2", "--save_strategy", "no", "--logging_steps", "1", *ON_CPU),
    ]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_configurations_parse_and_name_their_reward_model(name: str) -> None:
    config = RECIPES[name].CONFIG
    args, training_args, model_args = preferences.parse(ON_CPU, config)
    assert training_args.output_dir == f"outputs/{name}_pythia_2.8b"
    assert model_args.model_name_or_path == "EleutherAI/pythia-2.8b"
    reward_config = Path(preferences.__file__).parents[1] / "reward_models" / "configs" / config.name
    assert f"output_dir: {args.reward_model}" in reward_config.read_text(encoding="utf-8").splitlines()
    command = f"# accelerate launch recipes/{name}_vgf.py --config recipes/configs/{config.name}"
    assert command in config.read_text(encoding="utf-8").splitlines()[:5]


@pytest.mark.data
def test_real_hh_pairs_run_whole(models: dict[str, str], tmp_path: Path, data_dir: Path) -> None:
    out = tmp_path / "out"
    data = ["--dataset_name", str(data_dir / "hh_harmless"), "--dataset_train_split", "test"]
    judge = ["--judge_model", models["judge"], "--spaces", *preferences.SPACES]
    preferences.main([*small(models, out), *data, *judge], hh_vgf.CONFIG)
    results = json.loads((out / "win_rates.json").read_text(encoding="utf-8"))
    assert results["meta"] == {"prompts": 5, "seed": 0, "judge": models["judge"]}
    assert set(results["win_rates"]) == {
        *("sampled", "best-of-2", "VGF logit, best of 2"),
        *("VGF sequence_embedding, best of 2", "VGF sequence_logit, best of 2"),
    }
    assert all(0 <= rate <= 1 for sides in results["win_rates"].values() for rate in sides.values())
    table = (out / "win_rates.md").read_text(encoding="utf-8")
    assert "| VGF as the paper reports it, not measured here | 68.1 | 59.0 |" in table
    assert VGFModel.from_pretrained(out).value.parametrization == "log_ratio"


def test_every_space_moves_with_a_budget() -> None:
    args = preferences.PairScriptArguments(dataset_name="x", spaces=list(preferences.SPACES), sequence_steps=3)
    draws = args.draws(TransportConfig(transport_steps=5, step_size=0.25))
    assert [draw.options.get("transport_steps") for draw in draws.values()] == [0, 5, 3, 3]
    assert draws["VGF logit"].options["step_size"] == 0.25


def write_pairs(folder: Path, **columns: list[str]) -> str:
    folder.mkdir()
    for split in ("train", "validation"):
        Dataset.from_dict(columns).to_json(folder / f"{split}.jsonl")
    return str(folder)


def test_pairs_with_prompts_need_no_training_in_sequence_spaces(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"w{i} w{i + 1}" for i in range(6)]
    data = write_pairs(tmp_path / "pairs", prompt=texts, chosen=[" w5"] * 6, rejected=[" w6"] * 6)
    arguments = [*small(models, tmp_path / "out"), "--dataset_name", data, "--spaces", "sequence_embedding"]
    preferences.main([*arguments, "--block_size", "4"], tldr_vgf.CONFIG)
    assert "these are proxy win rates" in capsys.readouterr().out
    assert not (tmp_path / "out" / "vgf_config.json").exists()


def test_repeats_and_long_prompts_are_left_out(tmp_path: Path) -> None:
    prompts = ["w1", "w1", "w1 w2", "w1 w2 w3 w4"]
    data = write_pairs(tmp_path / "pairs", prompt=prompts, chosen=["w5"] * 4, rejected=["w6"] * 4)
    args = preferences.PairScriptArguments(dataset_name=data, max_prompt_tokens=3)
    loaded = preferences.load_prompts(args, "train", tokenizer(), None, seed=0)
    assert sorted(loaded["prompt"]) == ["w1", "w1 w2"]
    assert len(preferences.load_prompts(args, "train", tokenizer(), 1, seed=0)) == 1
    args.max_prompt_tokens = 0
    with pytest.raises(ValueError, match="No prompt of the split 'train' has at most 0 tokens"):
        preferences.load_prompts(args, "train", tokenizer(), None, seed=0)


def test_bad_input_is_named(models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`spaces` must be one or more of logit, sequence_embedding, sequence_logit"):
        preferences.PairScriptArguments(dataset_name="x", spaces=["latent"])
    with pytest.raises(ValueError, match="`num_test_prompts` and `num_particles` must be at least 2; got 5 and 1"):
        preferences.PairScriptArguments(dataset_name="x", num_test_prompts=5, num_particles=1)
    empty = tmp_path / "empty.yaml"
    empty.write_text("dataset_name: x\n", encoding="utf-8")
    given = ["--config", str(empty), "--output_dir", str(tmp_path / "out"), *ON_CPU]
    with pytest.raises(ValueError, match="`--model_name_or_path` is missing"):
        preferences.main(given, hh_vgf.CONFIG)
    with pytest.raises(ValueError, match="`--reward_model` is missing"):
        preferences.main([*given, "--model_name_or_path", models["policy"]], hh_vgf.CONFIG)
    missing = ["--model_name_or_path", models["policy"], "--reward_model", models["reward"]]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        preferences.main([*given, *missing, "--dataset_name", str(tmp_path / "nowhere")], hh_vgf.CONFIG)


def test_a_reward_model_of_another_tokenizer_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    classifier(1, vocab_size=40, max_position_embeddings=128).save_pretrained(models["reward"])
    data = write_pairs(tmp_path / "pairs", prompt=["w1", "w2"], chosen=["w5"] * 2, rejected=["w6"] * 2)
    arguments = [*small(models, tmp_path / "out"), "--dataset_name", data, "--spaces", "sequence_embedding"]
    with pytest.raises(ValueError, match="token ids would mean other tokens"):
        preferences.main(arguments, tldr_vgf.CONFIG)
