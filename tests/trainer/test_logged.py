# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Training on logged completions: nothing is sampled, every completion is read, and groups may be of any size."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from tests.trainer import tiny
from tests.trainer.test_resume import check_same
from vgf_llm import VGFModel
from vgf_llm.trainer.choose.logged import grouped


def graded(dataset: Dataset) -> Dataset:
    """Rewards that are no outcomes."""
    return dataset.map(lambda row, index: {"reward": row["reward"] + index % 7 / 10}, with_indices=True)


def labelled(dataset: Dataset) -> Dataset:
    """TRL's unpaired preferences."""
    return dataset.map(lambda row: {"label": row["reward"] == 1}, remove_columns="reward")


class Seen(TrainerCallback):
    """Counts the completions of every round, once each."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[Any, ...]] = Counter()
        self.sizes: set[int] = set()
        self.last: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.run.rounds.fresh is not self.last:
            self.last = self.run.rounds.fresh
            for group in self.last:
                self.sizes.add(len(group))
                for ids, reward in zip(group.completion_ids, group.rewards.tolist(), strict=True):
                    self.counts[(*group.prompt_ids.tolist(), -1, *ids.tolist(), reward)] += 1


def expected(dataset: Dataset) -> Counter[tuple[Any, ...]]:
    """What `Seen` counts of a dataset that is read once."""
    tokenize = tiny.tokenizer()
    return Counter(
        (*tokenize(row["prompt"])["input_ids"], -1, *tokenize(row["completion"])["input_ids"], tiny.EOS, row["reward"])
        for row in dataset
    )


@pytest.mark.parametrize(
    ("settings", "change", "loss"),
    [
        ({}, labelled, "likelihood"),
        ({}, graded, "pairwise"),
        ({"value_parametrization": "vocab", "value_backbone": "policy"}, labelled, "bernoulli"),
        ({"value_parametrization": "bilinear", "value_backbone": "policy"}, graded, "regression"),
    ],
)
def test_the_loss_follows_from_value_and_rewards(tmp_path, monkeypatch, settings, change, loss):
    monkeypatch.setattr(VGFModel, "generate", lambda *args, **kwargs: pytest.fail("sampled"))
    dataset = change(tiny.logged())
    run = tiny.trainer(tmp_path, None, train_dataset=dataset, eval_dataset=change(tiny.logged(8)), **settings)
    assert run.objective.kind == loss  # before any round: all rewards are known
    before = tiny.value_state(run)
    run.train()
    assert any(not torch.equal(before[name], value) for name, value in tiny.value_state(run).items())
    assert run.objective.sampling_of(loss)[0].temperature == 1
    metrics = run.evaluate()
    assert 0 <= metrics["eval_value/within_prompt_accuracy"] <= 1 and math.isfinite(metrics["eval_loss"])


def test_a_planted_reward_is_learned(tmp_path):
    run = tiny.trainer(tmp_path, None, train_dataset=tiny.logged(), eval_dataset=tiny.logged(8), max_steps=30)
    run.train()
    assert run.gate.pairs > 30
    assert run.gate.accuracy > 0.8 and run.evaluate()["eval_value/within_prompt_accuracy"] > 0.9


@pytest.mark.parametrize("streamed", [False, True])
def test_every_completion_is_read_once_and_none_counts_twice(tmp_path, streamed):
    dataset = tiny.logged(20, tiny.UNEQUAL)  # 64 completions: 24 groups of up to 4, of which 2 fill a round
    seen = Seen()
    settings = {"value_parametrization": "vocab", "value_holdout_ratio": 0.0, "value_backbone": "policy"}
    given = dataset.to_iterable_dataset() if streamed else dataset
    run = tiny.trainer(tmp_path, None, train_dataset=given, callbacks=[seen], max_steps=12, **settings)
    seen.run = run
    run.train()
    assert seen.counts == expected(dataset)
    assert seen.sizes == {1, 2, 3, 4}
    assert len(run.rounds.buffer) + sum(map(len, run.rounds.fresh)) == len(dataset)
    logs = [entry for entry in run.state.log_history if "reward" in entry]
    assert logs[-1]["num_tokens"] == sum(len(key) - 2 for key in seen.counts)
    assert all(entry["completions/mean_length"] <= 5 and entry["completions/clipped_ratio"] == 0 for entry in logs)


def test_the_last_round_of_an_epoch_is_filled_up(tmp_path):
    dataset, seen = tiny.logged(7), Seen()
    run = tiny.trainer(
        tmp_path, None, train_dataset=dataset, callbacks=[seen], max_steps=-1, num_train_epochs=1, value_holdout_ratio=0
    )
    seen.run = run
    run.train()
    assert run.state.global_step == 4
    assert set(seen.counts) == set(expected(dataset)) and sum(seen.counts.values()) == 32


def test_metrics_are_of_completions_and_not_of_what_fills_their_groups(tmp_path, capsys):
    rows = {"prompt": ["w1", "w1", "w1", "w2"], "completion": ["w20", "w5 w6", "w7 w8 w9", "w21 w22 w23 w24"]}
    dataset = Dataset.from_dict({**rows, "reward": [1.0, 0.0, 0.5, 0.2]})
    run = tiny.trainer(
        tmp_path, None, train_dataset=dataset, max_steps=1, value_holdout_ratio=0, log_completions=True,
        value_parametrization="vocab", eval_dataset=dataset,
    )  # fmt: skip
    run.train()
    log = next(entry for entry in run.state.log_history if "reward" in entry)
    assert log["reward"] == pytest.approx(0.425) and log["completions/mean_length"] == pytest.approx(14 / 4)
    assert log["frac_reward_zero_std"] == 0.5  # one completion has no spread
    assert log["num_tokens"] == 14 + 4
    assert len(run.metrics.logs["completion"]) == 4
    assert run.evaluate()["eval_reward"] == pytest.approx(0.425)


@pytest.mark.parametrize("change", [labelled, graded])
def test_micro_batches_know_nothing_of_unequal_groups(tmp_path, change):
    found = []
    for name, rows, accumulated in (("whole", 8, 1), ("split", 2, 4), ("rows", 1, 8)):
        run = tiny.trainer(
            tmp_path / name, None, train_dataset=change(tiny.logged(20, tiny.UNEQUAL)), optim="sgd", learning_rate=0.3,
            per_device_train_batch_size=rows, gradient_accumulation_steps=accumulated, max_steps=6,
        )  # fmt: skip
        run.train()
        found.append(tiny.value_state(run))
    assert any(bool(value.abs().max() > 0) for name, value in found[0].items() if "lora_B" in name)
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)


def test_completions_of_a_large_prompt_are_dealt_out_by_reward():
    dataset = Dataset.from_dict({"prompt": ["a"] * 5, "completion": list("vwxyz"), "reward": [3, 1, 5, 2, 4]})
    assert [group["rewards"] for group in grouped(dataset, 2)] == [[1.0, 4.0], [5.0, 2.0], [3.0]]
    assert grouped(dataset, 2)[0]["completions"] == ["w", "z"]


def test_outcomes_of_a_prompt_are_known_over_all_its_groups(tmp_path):
    rewards = [1.0] * 4 + [0.0]
    rows = [
        {"prompt": f"w{i}", "completion": f"w{20 + j}", "reward": r} for i in range(4) for j, r in enumerate(rewards)
    ]
    seen = Seen()
    run = tiny.trainer(
        tmp_path, None, train_dataset=Dataset.from_list(rows), num_generations=2, max_steps=1, callbacks=[seen],
        value_holdout_ratio=0, per_device_train_batch_size=2,
    )  # fmt: skip
    seen.run = run
    run.train()
    (group,) = run.rounds.fresh
    assert group.rewards.tolist() == [1.0, 1.0] or 0.0 in group.rewards.tolist()
    assert run.objective.learns(group, run.rounds.outcomes), "its prompt has a failure in another group"


def conversation(dataset: Dataset, messages: bool) -> Dataset:
    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = dataset.to_list()
    answers = [turn("assistant", row["completion"]) if messages else row["completion"] for row in rows]
    prompts = [turn("user", row["prompt"]) for row in rows]
    return Dataset.from_dict({"prompt": prompts, "completion": answers, "reward": [row["reward"] for row in rows]})


CHAT = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] }}{{ ' </s>' if m['role'] == 'assistant' }}{{ '\\n' }}"
    "{% endfor %}{{ 'assistant ' if add_generation_prompt }}"
)


@pytest.mark.parametrize("messages", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_conversations_go_through_the_chat_template(tmp_path, messages, streamed):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CHAT
    plain, dataset = tiny.logged(2), conversation(tiny.logged(2), messages)
    given = dataset.to_iterable_dataset() if streamed else dataset
    run = tiny.trainer(tmp_path, None, train_dataset=given, processing_class=tokenizer, max_steps=1)
    run.train()
    found = Counter(
        (tuple(g.prompt_ids.tolist()), tuple(ids.tolist())) for g in run.rounds.fresh for ids in g.completion_ids
    )
    assert found == Counter(
        (
            tuple(tokenizer(f"user {row['prompt']}\nassistant ")["input_ids"]),
            tuple(tokenizer(f"{row['completion']} </s>")["input_ids"]),  # one end, and no line break behind it
        )
        for row in plain
    )


def test_completions_that_are_too_long_or_unscored_are_left_out_and_counted(tmp_path, caplog):
    rows = tiny.logged(8).sort("prompt").to_list()
    rows[0]["completion"] = " ".join(["w20"] * 6)  # with its end 7 tokens
    rows[1]["completion"] = " ".join(["w20"] * 5)  # 6 tokens fit
    rows[2]["reward"], rows[3]["reward"] = None, math.nan
    for row in rows[4:8]:
        row["prompt"] = " ".join(["w3"] * 59)  # beside 6 tokens 58 fit into the context
    with caplog.at_level("WARNING"):
        run = tiny.trainer(tmp_path, None, train_dataset=Dataset.from_list(rows), max_steps=1)
    assert "2 of 32 completions of `train_dataset` are left out: their `reward` is None or NaN" in caplog.text
    assert "5 of the 30 completions of `train_dataset` are left out" in caplog.text
    assert sorted(map(len, run.train_dataset["rewards"])) == [1, 4, 4, 4, 4, 4, 4]
    caplog.clear()
    with caplog.at_level("WARNING"):
        stream = tiny.trainer(tmp_path, None, train_dataset=Dataset.from_list(rows).to_iterable_dataset(), max_steps=1)
        assert sum(len(row["rewards"]) for row in stream.train_dataset) == 25
    assert caplog.text.count("Completions of the stream `train_dataset` are left out") == 1
    with pytest.raises(ValueError, match=r"All 8 completions.*max_completion_length"):
        tiny.trainer(tmp_path, None, train_dataset=Dataset.from_list(rows[:1] * 8), max_steps=1)


def test_prompts_without_a_contrast_are_counted_and_refused_where_there_are_no_others(tmp_path, caplog):
    dataset = tiny.logged(20, (1, 4))
    with caplog.at_level("WARNING"):
        tiny.trainer(tmp_path, None, train_dataset=dataset)
    assert (
        "10 of the 50 completions of `train_dataset` teach the value nothing (`value_loss` 'likelihood')" in caplog.text
    )
    assert "The other 80 % train it" in caplog.text
    alone = labelled(tiny.logged(20, (1,)))
    with pytest.raises(ValueError, match=r"All of the 20 completions.*value_parametrization='bilinear'"):
        tiny.trainer(tmp_path, None, train_dataset=alone)
    caplog.clear()
    settings = {"value_parametrization": "bilinear", "num_generations": 2}
    run = tiny.trainer(tmp_path, None, train_dataset=alone, **settings)
    run.train()
    assert "teach" not in caplog.text and run.state.global_step == 3
    failures = Dataset.from_list([{**row, "reward": 0.0} for row in dataset])
    with pytest.raises(ValueError, match="teach the value nothing"):
        tiny.trainer(tmp_path, None, train_dataset=failures)


def test_groups_with_room_for_more_than_there_is_are_named(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        tiny.trainer(tmp_path, None, train_dataset=tiny.logged(sizes=(2,)))
    assert "`num_generations=2`" in caplog.text


def test_evaluation_takes_logged_completions_wherever_they_are_given(tmp_path):
    other = tiny.logged(8, tiny.UNEQUAL)
    run = tiny.trainer(
        tmp_path,
        None,
        train_dataset=tiny.logged(),
        eval_dataset={"one": other, "pairs": tiny.pairs(8), "stream": other.to_iterable_dataset()},
        max_steps=1,
    )
    run.train()
    found = run.evaluate()
    name = "value/within_prompt_accuracy"
    assert (
        found[f"eval_one_{name}"] == run.evaluate(other)[f"eval_{name}"] == run.evaluate({"x": other})[f"eval_x_{name}"]
    )
    assert found["eval_pairs_reward"] == 0.5
    assert found[f"eval_stream_{name}"] == found[f"eval_one_{name}"]
    with pytest.raises(ValueError, match="`eval_dataset` must have the columns"):
        run.evaluate(tiny.prompts(4))


@pytest.mark.parametrize("change", [labelled, graded])
def test_resumed_is_uninterrupted(tmp_path, change):
    rounds = {"steps_per_generation": 2, "max_steps": 8, "rollout_fraction": 0.8}
    saves = {"save_strategy": "steps", "save_steps": 3}
    settings = {"train_dataset": change(tiny.logged(18, tiny.UNEQUAL)), **rounds, **saves}
    whole = tiny.trainer(tmp_path / "whole", None, **settings)
    whole.train()
    resumed = tiny.trainer(tmp_path / "resumed", None, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    check_same(resumed, whole)


def rows_of(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict({"prompt": ["w1", "w1"], "completion": ["w2", "w3"], **columns})


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (rows_of(), ValueError, "neither `reward`"),
        (rows_of(reward=[1.0, 0.0], label=[True, False]), ValueError, "both `reward` and `label`"),
        (
            rows_of(reward=["good", "bad"]),
            TypeError,
            r"Row 0 of `train_dataset`: `reward` must be a number, got 'good'",
        ),
        (rows_of(reward=[0.0, math.inf]), ValueError, "Row 1 of `train_dataset`: `reward` must be finite"),
        (rows_of(label=[1, 2]), ValueError, "Row 1 of `train_dataset`: `label` must be true or false"),
        (rows_of(reward=[None, math.nan]), ValueError, "No row of `train_dataset` has a `reward`"),
        (rows_of(reward=[1.0, 0.0], chosen=["w1", "w1"], rejected=["w1", "w1"]), ValueError, "beside 'completion'"),
        (
            Dataset.from_dict({"prompt": ["w1"] * 2, "completion": ["w2", None], "reward": [0.0, 1.0]}),
            TypeError,
            "Row 1 of `train_dataset`: `completion` must be a text",
        ),
        (
            Dataset.from_dict({"prompt": ["w1", None], "completion": ["w2", "w3"], "reward": [0.0, 1.0]}),
            TypeError,
            "Row 1 of `train_dataset`: `prompt`",
        ),
        (Dataset.from_dict({"completion": ["w2"], "reward": [0.0]}), ValueError, "no column `prompt`"),
    ],
)
def test_bad_rows_are_named(tmp_path, dataset, error, message):
    with pytest.raises(error, match=message):
        tiny.trainer(tmp_path, None, train_dataset=dataset)


@pytest.mark.parametrize(
    "settings",
    [
        {"distill_coef": 1.0, "value_backbone": "copy"},
        {"rollout_policy": "value"},
        {"rollout_policy": "transport"},
        {"num_base_generations": 1},
        {"prompt_selection": "unsolved"},
        {"rollout_func": tiny.fixed_rollout},
    ],
)
def test_settings_that_ask_for_samples_are_refused(tmp_path, settings):
    with pytest.raises(ValueError, match="read and not sampled"):
        tiny.trainer(tmp_path, None, train_dataset=tiny.logged(), **settings)


def test_reward_functions_sample_whatever_a_dataset_has_logged(tmp_path):
    run = tiny.trainer(tmp_path, train_dataset=tiny.logged(), max_steps=1)
    assert run.logged is None and run.train_dataset.column_names == ["prompt", "completion", "reward"]
