# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The Bradley-Terry trainer: its loss against the formula and against TRL's, its pooling, and what it saves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification
from trl import RewardConfig, RewardTrainer

from reward_models.accuracy import pair_accuracy, policy_accuracy, score_responses
from reward_models.bradley_terry import (
    BradleyTerryTrainer,
    PairCollator,
    add_bootstrap_weights,
    load_reward_value,
)
from reward_models.pairs import tokenize_pairs
from tests.trainer.tiny import tokenizer
from tests.unit.reward_models.classifiers import classifier
from vgf_llm.models.sequence_value import SequenceValue


def pairs(count: int = 48) -> Dataset:
    """The chosen response has the higher words; prompts and lengths vary."""
    rows = []
    for index in range(count):
        low, high = f" w{index % 12}", f" w{14 + index % 12}"
        rows.append({"prompt": f"w{index % 7} w3", "chosen": high * (1 + index % 3), "rejected": low * (1 + index % 2)})
    return Dataset.from_list(rows)


def trainer(folder: Path, model: Any = None, train: Dataset | None = None, **settings: Any) -> BradleyTerryTrainer:
    options = {key: settings.pop(key) for key in ("pooling", "bootstrap", "peft_config") if key in settings}
    return BradleyTerryTrainer(
        model=classifier(3) if model is None else model,
        args=config(folder, **settings),
        train_dataset=tokenize_pairs(pairs() if train is None else train, tokenizer()),
        eval_dataset=tokenize_pairs(pairs(20), tokenizer()),
        processing_class=tokenizer(),
        **options,
    )


def config(folder: Path, **settings: Any) -> RewardConfig:
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": 32,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 20,
        "learning_rate": 1e-2,
        "num_train_epochs": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    return RewardConfig(**{**defaults, **settings})


def test_a_response_of_several_pairs_is_one_row() -> None:
    pairs_of_three = [
        {"prompt_length": 1, "chosen_ids": [1, *first], "rejected_ids": [1, *second]}
        for first, second in (([5, 6], [7]), ([8, 9, 3], [5, 6]), ([8, 9, 3], [7]))
    ]
    batch = PairCollator(0)(pairs_of_three)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 0], [1, 8, 9, 3], [1, 7, 0, 0]]
    assert batch["rows"].tolist() == [0, 1, 1, 2, 0, 2]
    # The same ids are another response where the prompt is longer.
    other = {"prompt_length": 2, "chosen_ids": [1, 5, 6], "rejected_ids": [1, 5, 7]}
    assert len(PairCollator(0)([*pairs_of_three, other])["input_ids"]) == 5


def test_loss_is_the_formula_of_each_head_on_its_bootstrap(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    batch = PairCollator(0)([run.train_dataset[row] for row in range(8)])
    weights = batch["head_weights"]
    assert weights.shape == (8, 3)
    rewards = SequenceValue.from_classifier(run.model, "mean").from_ids(
        batch["input_ids"], batch["attention_mask"], batch["response_mask"]
    )[batch["rows"]]
    chosen, rejected = rewards[:8], rewards[8:]
    expected = (weights * -F.logsigmoid(chosen - rejected)).mean()
    loss, outputs = run.compute_loss(run.model, batch, return_outputs=True)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(outputs.logits, rewards)
    assert "response_mask" in batch, "the caller's batch is left as it was"


def test_one_head_and_the_last_token_are_trls_own_trainer(tmp_path: Path) -> None:
    model = classifier(1)
    ours = trainer(tmp_path, model, pooling="last")
    theirs = RewardTrainer(
        model=model,
        args=config(tmp_path),
        train_dataset=ours.train_dataset.remove_columns("prompt_length"),
        processing_class=tokenizer(),
    )
    rows = [ours.train_dataset[row] for row in range(6)]
    assert "head_weights" not in rows[0]
    loss = ours.compute_loss(model, ours.data_collator(rows))
    torch.testing.assert_close(loss, theirs.compute_loss(model, theirs.data_collator(rows)))


def test_bootstrap_samples_have_the_size_of_the_data_and_differ() -> None:
    weights = torch.tensor(add_bootstrap_weights(pairs(200), 4, seed=0)["head_weights"])
    assert weights.sum(0).tolist() == [200.0] * 4
    assert 0.30 < (weights == 0).float().mean() < 0.44, "about 1/e of the pairs are in no sample of a head"
    assert not torch.equal(weights[:, 0], weights[:, 1])


def test_training_learns_saves_and_loads(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    run.save_model()
    assert run.evaluate()["eval_ensemble_accuracy"] > 0.95
    assert any("accuracy" in entry for entry in run.state.log_history)
    names = {path.name for path in tmp_path.iterdir()}
    assert "model.safetensors" in names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) and name != "training_args.bin" for name in names)

    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert (loaded.config.num_labels, loaded.config.reward_pooling) == (3, "mean")
    value, tok = load_reward_value(tmp_path), tokenizer()
    assert (value.num_members, value.pooling, value.training) == (3, "mean", False)
    held_out = pairs(20)
    trained = SequenceValue.from_classifier(run.model.eval(), "mean")
    scores = [score_responses(v, tok, held_out["prompt"], held_out["chosen"]) for v in (value, trained)]
    torch.testing.assert_close(scores[0], scores[1])
    assert pair_accuracy(value, tok, held_out) == pytest.approx(run.evaluate()["eval_ensemble_accuracy"])


def test_adapters_train_with_their_head_and_nothing_else(tmp_path: Path) -> None:
    from peft import LoraConfig

    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["score"])
    run = trainer(tmp_path, peft_config=lora, max_steps=2)
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    run.train()
    moved = {name for name, parameter in run.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved and all("lora_" in name or "score.modules_to_save" in name for name in moved)
    assert any("score" in name for name in moved) and any("lora_B" in name for name in moved)


def test_gradient_accumulation_gives_the_same_step(tmp_path: Path) -> None:
    def trained(size: int, accumulation: int) -> torch.Tensor:
        run = trainer(
            tmp_path,
            classifier(3),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
        )
        run.train()
        return run.model.score.weight.detach().clone()

    torch.testing.assert_close(trained(16, 1), trained(4, 4), atol=2e-5, rtol=1e-4)


def test_scores_do_not_depend_on_the_batch() -> None:
    value, tok, rows = SequenceValue.from_classifier(classifier(2)), tokenizer(), pairs(9)
    together = score_responses(value, tok, rows["prompt"], rows["chosen"], batch_size=9)
    torch.testing.assert_close(together, score_responses(value, tok, rows["prompt"], rows["chosen"], batch_size=2))


class ByLastToken(SequenceValue):
    """Its value is the number of the last token, so accuracies can be counted by hand."""

    def __init__(self) -> None:
        super().__init__(classifier())

    def from_ids(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_mask: torch.Tensor) -> Any:
        # the last token is the end of the sequence
        last = attention_mask.sum(-1, keepdim=True) - 2
        return input_ids.gather(1, last).float()


def test_accuracies_by_hand() -> None:
    value, tok = ByLastToken(), tokenizer()
    rows = {"prompt": ["w1"] * 4, "chosen": ["w3", "w5", "w2", "w9"], "rejected": ["w2", "w6", "w2", "w1"]}
    assert pair_accuracy(value, tok, rows) == (2 + 0.5) / 4
    # of the first prompt two of three pairs are right; the second has one pair with different rewards, a tie of scores
    accuracy = policy_accuracy(
        value, tok, ["w1", "w2"], [["w1", "w2", "w3"], ["w4", "w4", "w9"]], [[0.0, 2.0, 1.0], [1.0, 0.0, 1.0]]
    )
    assert accuracy == pytest.approx((2 + 0.5 + 1) / 5)
    with pytest.raises(ValueError, match=r"same number of samples and of rewards.*\[2, 3\]"):
        policy_accuracy(value, tok, ["w1"], [["w1", "w2"]], [[0.0, 1.0, 2.0]])
    with pytest.raises(ValueError, match="no order to compare with"):
        policy_accuracy(value, tok, ["w1"], [["w1", "w2"]], [[1.0, 1.0]])


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`pooling` must be one of last, mean; got 'max'"):
        trainer(tmp_path, pooling="max")
    with pytest.raises(ValueError, match="`max_length` is 64, and the model's context is 32 tokens"):
        trainer(tmp_path, max_length=64)
    with pytest.raises(ValueError, match="`max_length` is None"):
        trainer(tmp_path, max_length=None)
    bert = BertForSequenceClassification(
        BertConfig(vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    with pytest.raises(ValueError, match=r"linear `score` layer.*BertForSequenceClassification"):
        trainer(tmp_path, bert)
