# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The training command of reward models: its configurations, the embedded task, real pairs, and bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig
from trl import ModelConfig, RewardConfig, TrlParser

from recipes.embedded_preference import BASE_DIR, make_prompts
from reward_models import train
from reward_models.bradley_terry import load_reward_value
from reward_models.classifier import ClassifierReward
from reward_models.differentiable import DifferentiableReward
from tests.trainer.tiny import saved_llama
from vgf_llm.models.sequence_value import SequenceValue

CONFIGS = sorted((Path(train.__file__).parent / "configs").glob("*.yaml"))
ON_CPU = ["--bf16", "false", "--gradient_checkpointing", "false", "--report_to", "none", "--disable_tqdm", "true"]
SMALL = [*ON_CPU, "--save_strategy", "no", "--per_device_train_batch_size", "8", "--logging_steps", "1"]
EMBEDDED = str(next(path for path in CONFIGS if path.stem == "embedded_preference"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_parse_and_open_with_their_command(path: Path) -> None:
    parser = TrlParser((train.RewardScriptArguments, RewardConfig, ModelConfig))
    args, training_args, _ = parser.parse_args_and_config(args=["--config", str(path), *ON_CPU])
    assert training_args.output_dir.startswith("outputs/")
    assert args.num_members == 4
    command = f"# accelerate launch reward_models/train.py --config reward_models/configs/{path.name}"
    assert command in path.read_text(encoding="utf-8").splitlines()[:5]


def test_the_embedded_proxy_runs_whole(tmp_path: Path) -> None:
    sizes = ["--num_prompts", "8", "--num_eval_prompts", "6", "--max_steps", "3", "--num_samples", "3"]
    results = train.main(["--config", EMBEDDED, "--output_dir", str(tmp_path), *sizes, *SMALL])
    assert results == json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert 0 < results["held_out_pair_accuracy"] < 1 and 0 < results["within_prompt_accuracy"] < 1
    value = load_reward_value(tmp_path)
    assert (value.num_members, value.pooling) == (4, "mean")
    judge = ClassifierReward(tmp_path, lower_bound_coef=1.0)
    prompt, review = make_prompts(1)[0], " the soup felt good ."
    reward = DifferentiableReward.from_pretrained(tmp_path, judge.tokenizer, lower_bound_coef=1.0)
    arguments: dict[str, Any] = {"prompts": [prompt], "completions": [review]}
    assert judge(**arguments) == pytest.approx(reward.score(**arguments), abs=1e-5)
    assert not list(tmp_path.glob("*.bin")) or {p.name for p in tmp_path.glob("*.bin")} == {"training_args.bin"}


def test_an_adapter_is_merged_into_what_is_saved(tmp_path: Path) -> None:
    sizes = ["--num_prompts", "4", "--num_eval_prompts", "4", "--max_steps", "2", "--num_samples", "2"]
    lora = ["--use_peft", "--lora_task_type", "SEQ_CLS", "--lora_modules_to_save", "score"]
    train.main(["--config", EMBEDDED, "--output_dir", str(tmp_path), *sizes, *lora, *SMALL, "--pooling", "last"])
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.num_labels, config.reward_pooling) == (4, "last")
    value = load_reward_value(tmp_path)
    base = SequenceValue.from_classifier(train.build_classifier(str(BASE_DIR), 4))
    name = "layers.0.self_attn.q_proj.weight"
    assert not torch.equal(value.backbone.get_parameter(name), base.backbone.get_parameter(name))
    assert torch.equal(value.embedding, base.embedding)


def test_policy_samples_of_the_users_own(tmp_path: Path) -> None:
    model = saved_llama(tmp_path / "model")
    rows = [{"prompt": f"w{i}", "chosen": f" w{14 + i}", "rejected": f" w{i + 1}"} for i in range(12)]
    (tmp_path / "pairs").mkdir()
    Dataset.from_list(rows).to_json(tmp_path / "pairs" / "train.jsonl")
    samples = [{"prompt": "w1", "responses": [" w2", " w3"], "rewards": [0.0, 1.0]}] * 3
    (tmp_path / "samples").mkdir()
    Dataset.from_list(samples).to_json(tmp_path / "samples" / "test.jsonl")
    arguments = [
        *("--dataset_name", str(tmp_path / "pairs"), "--dataset_test_split", "train", "--num_eval_pairs", "4"),
        *(
            "--model_name_or_path",
            model,
            "--output_dir",
            str(tmp_path / "out"),
            "--max_length",
            "64",
            "--max_steps",
            "1",
        ),
    ]
    results = train.main([*arguments, "--policy_samples", str(tmp_path / "samples"), *SMALL])
    assert results["pairs"] == 8
    assert results["within_prompt_accuracy"] in (0.0, 1.0)
    assert "within_prompt_accuracy" not in train.main([*arguments, *SMALL])
    with pytest.raises(ValueError, match=r"`policy_samples` lacks the columns \['responses', 'rewards'\]"):
        train.load_policy_samples(train.RewardScriptArguments(policy_samples=_copy_as_test(tmp_path / "pairs")), seed=0)


def _copy_as_test(folder: Path) -> str:
    (folder / "test.jsonl").write_bytes((folder / "train.jsonl").read_bytes())
    return str(folder)


def test_bad_arguments(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "w1", "chosen": "w2", "rejected": "w3"}\n', encoding="utf-8")
    local = ["--dataset_name", str(tmp_path), "--output_dir", str(tmp_path / "out"), *SMALL]
    with pytest.raises(ValueError, match="`--model_name_or_path` is missing"):
        train.main(local)
    with pytest.raises(
        ValueError, match="`num_eval_pairs` is 1, but the split 'train', from which they are taken, has 1"
    ):
        train.main([*local, "--model_name_or_path", str(BASE_DIR), "--dataset_test_split", "train"])
    with pytest.raises(ValueError, match="`num_members` must be at least 1; got 0"):
        train.build_classifier(str(BASE_DIR), 0)


@pytest.mark.data
def test_real_pairs_of_hh_train_a_tiny_model(tmp_path: Path, data_dir: Path) -> None:
    model = saved_llama(tmp_path / "model")
    results = train.main(
        [
            *("--dataset_name", str(data_dir / "hh_harmless"), "--dataset_train_split", "test"),
            *("--dataset_test_split", "test", "--num_train_pairs", "64", "--num_eval_pairs", "16"),
            *("--model_name_or_path", model, "--output_dir", str(tmp_path / "out"), "--max_length", "64"),
            *("--max_steps", "2", "--num_members", "2", *SMALL),
        ]
    )
    assert 0 < results["pairs"] <= 64, "pairs longer than `max_length` are left out"
    assert 0 <= results["held_out_pair_accuracy"] <= 1
    assert load_reward_value(tmp_path / "out").num_members == 2
