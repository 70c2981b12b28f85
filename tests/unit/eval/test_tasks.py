# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Tasks: their problems and scores, and what bad input is answered with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from eval.tasks import TASKS, Task, TaskOptions, load_task, reward_mark
from recipes.embedded_preference import PROXY_DIR
from reward_models.accuracy import score_responses
from tests.trainer.tiny import VOCAB, tokenizer
from vgf_llm.models.sequence_value import SequenceValue


def test_unknown_tasks_and_splits_are_listed() -> None:
    with pytest.raises(ValueError, match=f"`task` must be one of {', '.join(TASKS)}; got 'chess'"):
        load_task("chess")
    with pytest.raises(ValueError, match="'math500' has the splits test; got 'validation'"):
        load_task("math500", TaskOptions(split="validation"))
    with pytest.raises(ValueError, match="`num_problems` must be at least 1, or left out; got 0"):
        TaskOptions(num_problems=0)


def test_switches_of_the_template_are_json_and_reach_the_task() -> None:
    options = TaskOptions(num_problems=2, chat_template_kwargs='{"enable_thinking": false}')
    assert options.chat_template_kwargs == {"enable_thinking": False}
    assert load_task("embedded_math", options).chat_template_kwargs == {"enable_thinking": False}
    assert load_task("embedded_math", TaskOptions(num_problems=2)).chat_template_kwargs is None
    with pytest.raises(ValueError, match="`chat_template_kwargs` 'thinking=no' is not JSON"):
        TaskOptions(chat_template_kwargs="thinking=no")
    with pytest.raises(ValueError, match="`chat_template_kwargs` must be a JSON object"):
        TaskOptions(chat_template_kwargs="[1]")


def test_problems_and_rewards_are_told_apart_by_content(tmp_path: Path) -> None:
    def reward(completions: list[str], **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    def marks(*prompts: str) -> dict[str, Any]:
        return Task("toy", Dataset.from_dict({"prompt": list(prompts)}), reward).marks

    assert marks("a", "b") == marks("a", "b") != marks("a", "c")
    assert "test_problems_and_rewards_are_told_apart" in marks("a")["rewards"]["gold"]
    tiny = LlamaConfig(vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1)
    first, second = (LlamaForSequenceClassification(tiny) for _ in range(2))
    assert reward_mark(first) == reward_mark(first) != reward_mark(second)
    for folder, model in (("first", first), ("again", first), ("second", second)):
        model.save_pretrained(tmp_path / folder)
    saved = [reward_mark(str(tmp_path / name)) for name in ("first", "again", "second")]
    assert saved[0] == saved[1] != saved[2]


def test_embedded_math_scores_answers() -> None:
    task = load_task("embedded_math", TaskOptions(num_problems=3, split="validation"))
    golds = task.problems["answer"]
    assert task.score([0, 1, 2, 0], [*golds, golds[1]], [[1]] * 4)["gold"] == [1.0, 1.0, 1.0, 0.0]
    assert task.answer_of is not None and task.answer_of("#### 7") == "7"
    assert task.score_name == "accuracy"
    assert load_task("embedded_math", TaskOptions(num_problems=2, max_new_tokens=5)).max_new_tokens == 5
    test = load_task("embedded_math", TaskOptions(num_problems=50))
    assert not set(test.problems["prompt"]) & set(
        load_task("embedded_math", TaskOptions("train", 50)).problems["prompt"]
    )


def test_selected_problems_keep_their_scores() -> None:
    task = load_task("embedded_math", TaskOptions(num_problems=3))
    part = task.select([2])
    assert part.problems["prompt"] == [task.problems["prompt"][2]]
    assert part.score([0], [task.problems["answer"][2]], [[1]]) == {"gold": [1.0]}


def test_a_task_needs_problems_columns_and_numbers() -> None:
    with pytest.raises(ValueError, match="'none' has no problems"):
        Task("none", Dataset.from_dict({"prompt": []}), lambda completions, **kwargs: [0.0])

    def needs(completions: list[str], label: list[str], **kwargs: Any) -> list[float]:
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match="needs the column"):
        Task("labelled", Dataset.from_dict({"prompt": ["a"]}), needs)
    empty = Task("empty", Dataset.from_dict({"prompt": ["a", "b"]}), lambda completions, **k: [1.0, None])
    with pytest.raises(ValueError, match="The gold score of 'empty' is None for problem 1"):
        empty.score([0, 1], ["x", "y"], [[1], [1]])


def classifier(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, num_labels=1, pad_token_id=0)  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_prompts_file_with_reward_models(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"w{i} w1"}) + "\n" for i in range(4)), encoding="utf-8")
    proxy, gold = classifier(tmp_path / "proxy", 0), classifier(tmp_path / "gold", 1)
    task = load_task("prompts", TaskOptions(prompts_file=str(path), reward_model=proxy))
    assert (task.proxy, task.score_name, len(task.problems)) == (None, "gold", 4)
    alone = task.score([0, 3], [" w5", " w6 w7"], [[9], [10, 11]])
    both = load_task(
        "prompts", TaskOptions(prompts_file=str(path), reward_model=proxy, gold_model=gold, num_problems=4)
    )
    rows = [both.problems["prompt"].index(task.problems["prompt"][i]) for i in (0, 3)]
    found = both.score(rows, [" w5", " w6 w7"], [[9], [10, 11]])
    assert found["proxy"] == pytest.approx(alone["gold"])
    assert found["gold"] != found["proxy"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ValueError, "holds no prompts"),
        ("{", ValueError, "line 1 is not JSON"),
        ('{"text": "a"}', ValueError, r"line 1 needs a 'prompt', .* found \['text'\]"),
        (None, FileNotFoundError, "does not exist"),
    ],
)
def test_bad_prompts_files_are_named(tmp_path: Path, text: str | None, error: type[Exception], message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=message):
        load_task("prompts", TaskOptions(prompts_file=str(path), reward_model="x"))
    with pytest.raises(ValueError, match="needs `--prompts_file`"):
        load_task("prompts", TaskOptions(reward_model="x"))


@pytest.mark.data
def test_real_problems_are_read_and_scored(data_dir: Path) -> None:
    gsm8k = load_task("gsm8k", TaskOptions(dataset=str(data_dir / "gsm8k"), num_problems=5))
    validation = load_task("gsm8k", TaskOptions("validation", dataset=str(data_dir / "gsm8k"), num_problems=5))
    assert not set(gsm8k.problems["prompt"]) & set(validation.problems["prompt"])
    assert gsm8k.score(range(5), gsm8k.problems["answer"], [[1]] * 5)["gold"] == [1.0] * 5
    math500 = load_task("math500", TaskOptions(dataset=str(data_dir / "math500"), num_problems=3))
    golds = [f"So \\boxed{{{answer}}}." for answer in math500.problems["answer"]]
    assert math500.score(range(3), golds, [[1]] * 3)["gold"] == [1.0] * 3
    assert math500.score(range(3), ["I do not know."] * 3, [[1]] * 3)["gold"] == [0.0] * 3


def test_the_preference_task_has_a_gold_score_and_the_lower_bound_of_a_proxy(tmp_path: Path) -> None:
    task = load_task("embedded_preference", TaskOptions(num_problems=2))
    reviews = [" the soup felt lovely .", " the soup felt not lovely ."]
    scores = task.score([0, 0], reviews, [[5], [5]])
    assert scores["gold"][0] > scores["gold"][1] and scores["proxy"][0] > scores["proxy"][1]
    model = AutoModelForSequenceClassification.from_pretrained(PROXY_DIR).eval()
    assert model.config.num_labels == 4
    members = score_responses(
        SequenceValue.from_classifier(model, "mean"),
        AutoTokenizer.from_pretrained(PROXY_DIR),
        [task.problems["prompt"][0]] * 2,
        reviews,
    )
    assert scores["proxy"] == pytest.approx(SequenceValue.lower_bound(members).tolist(), abs=1e-4)
    with pytest.raises(OSError, match="nowhere"):
        load_task("embedded_preference", TaskOptions(num_problems=2, reward_model=str(tmp_path / "nowhere")))
