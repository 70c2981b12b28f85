# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Loading of mathematics problems: every source, every prompt form, every bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from recipes.data import load_math_dataset

ROWS = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(10)]
FIRST = {"prompt": "What is 0 + 1?\n", "answer": "0 + 1 = 1\n#### 1", "question": "What is 0 + 1?"}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    write_jsonl(tmp_path / "test.jsonl", ROWS[:3])
    return tmp_path


def save_jsonl(path: Path) -> None:
    write_jsonl(path / "train.jsonl", ROWS)
    write_jsonl(path / "train_socratic.jsonl", ROWS)


def save_json(path: Path) -> None:
    (path / "train.json").write_text(json.dumps(ROWS), encoding="utf-8")


def save_parquet(path: Path) -> None:
    Dataset.from_list(ROWS).to_parquet(path / "train.parquet")


def save_shards(path: Path) -> None:
    for shard in range(2):
        rows = Dataset.from_list(ROWS[5 * shard : 5 * shard + 5])
        rows.to_parquet(path / f"train-0000{shard}-of-00002.parquet")


def save_dataset(path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(path)


def save_dataset_dict(path: Path) -> None:
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:3])).save_to_disk(path)


@pytest.mark.parametrize("save", [save_jsonl, save_json, save_parquet, save_shards, save_dataset, save_dataset_dict])
def test_each_kind_of_folder_gives_the_same_rows(tmp_path: Path, save: Any) -> None:
    save(tmp_path)
    dataset = load_math_dataset(str(tmp_path), "train")
    assert dataset.column_names == ["prompt", "answer", "question"]
    assert dataset[0] == FIRST
    assert dataset["question"][:] == [row["question"] for row in ROWS]


def test_config_name_is_a_folder_inside(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "main" / "train.jsonl", ROWS)
    assert load_math_dataset(str(tmp_path), "train", config_name="main")[0] == FIRST
    with pytest.raises(FileNotFoundError, match=r"no dataset folder .*socratic"):
        load_math_dataset(str(tmp_path), "train", config_name="socratic")


def test_columns_of_math_and_numbers_as_answers(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [{"problem": "2 + 2?", "solution": "It is \\boxed{4}.", "answer": 4}])
    write_jsonl(tmp_path / "train.jsonl", [{"problem": "2 + 2?", "solution": "It is \\boxed{4}."}])
    assert load_math_dataset(str(tmp_path), "test")[0] == {"prompt": "2 + 2?\n", "answer": "4", "question": "2 + 2?"}
    assert load_math_dataset(str(tmp_path), "train")[0]["answer"] == "It is \\boxed{4}."


def test_prompt_forms(folder: Path) -> None:
    question = ROWS[0]["question"]
    templated = load_math_dataset(str(folder), "test", prompt_template="Q: {question}\nUse \\boxed{}.\nA:")
    assert templated[0]["prompt"] == f"Q: {question}\nUse \\boxed{{}}.\nA:"
    user = {"role": "user", "content": question}
    chat = load_math_dataset(str(folder), "test", conversational=True)
    assert chat[0]["prompt"] == [user]
    chat = load_math_dataset(str(folder), "test", conversational=True, system_prompt="End with #### n.")
    assert chat[0]["prompt"] == [{"role": "system", "content": "End with #### n."}, user]


def test_num_samples_draws_without_replacement_by_seed(folder: Path) -> None:
    def draw(seed: int) -> list[str]:
        return load_math_dataset(str(folder), "train", num_samples=6, seed=seed)["question"][:]

    assert len(set(draw(0))) == 6
    assert draw(0) == draw(0) != draw(1)
    assert sorted(load_math_dataset(str(folder), "train", num_samples=10)["question"]) == [r["question"] for r in ROWS]


def test_missing_sources_say_what_was_looked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\. .*train\.jsonl or train\.json or train\.parquet"):
        load_math_dataset(str(folder / "absent"), "train")
    with pytest.raises(ValueError, match=r"no split 'validation'.*found: \['test', 'train'\]"):
        load_math_dataset(str(folder), "validation")
    with pytest.raises(ValueError, match=r"is a file; pass its folder, .* and split='train'"):
        load_math_dataset(str(folder / "train.jsonl"), "train")
    # Offline, as tests are, the Hub refuses at once.
    with pytest.raises(FileNotFoundError, match=r"no folder .*nobody/nothing.*from the Hub"):
        load_math_dataset("nobody/nothing", "train")
    monkeypatch.chdir(folder)
    with pytest.raises(FileNotFoundError, match=r"no dataset folder .*a/b/c"):
        load_math_dataset("a/b/c", "train")


def test_hub_id_is_loaded_with_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(*args: Any, **kwargs: Any) -> Dataset:
        calls.append((args, kwargs))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr("recipes.sources.load_dataset", load_dataset)
    assert load_math_dataset("openai/gsm8k", "train")[0] == FIRST
    load_math_dataset("openai/gsm8k", "train", config_name="socratic")
    load_math_dataset("someone/problems", "test")
    assert [args for args, _ in calls] == [
        ("openai/gsm8k", "main"),
        ("openai/gsm8k", "socratic"),
        ("someone/problems", None),
    ]
    assert [kwargs["split"] for _, kwargs in calls] == ["train", "train", "test"]


def test_missing_splits_of_saved_datasets_are_listed(tmp_path: Path) -> None:
    save_dataset_dict(tmp_path / "both")
    with pytest.raises(ValueError, match=r"no split 'dev'. Splits found: \['test', 'train'\]"):
        load_math_dataset(str(tmp_path / "both"), "dev")
    Dataset.from_list(ROWS, split="train").save_to_disk(tmp_path / "one")
    assert len(load_math_dataset(str(tmp_path / "one"), "train")) == 10
    with pytest.raises(ValueError, match=r"no split 'test'. Splits found: \['train'\]"):
        load_math_dataset(str(tmp_path / "one"), "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ('{"question": "a", ', "cannot be read as json"),
        ('{"text": "a"}\n', r"no column 'question' or 'problem'. Columns found: \['text'\]"),
        (
            '{"question": "a", "label": 1}\n',
            r"no column 'answer' or 'solution'. Columns found: \['question', 'label'\]",
        ),
        (
            '{"question": "a", "answer": "1"}\n{"question": "b", "answer": null}\n',
            "Row 1 .* nothing in the .* 'answer'",
        ),
        ('{"question": " ", "answer": "1"}\n', "Row 0 .* nothing in the column 'question'"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "train.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_math_dataset(str(tmp_path), "train")


def test_foreign_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match=r"train\.parquet cannot be read as parquet"):
        load_math_dataset(str(tmp_path), "train")


def test_empty_saved_dataset(tmp_path: Path) -> None:
    Dataset.from_dict({"question": [], "answer": []}).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match="is empty"):
        load_math_dataset(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"num_samples": 11}, "num_samples must be at most 10"),
        ({"system_prompt": "Hello."}, "conversational=True"),
        ({"prompt_template": "question"}, "must contain '{question}'"),
    ],
)
def test_bad_arguments(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_math_dataset(str(folder), "train", **arguments)


@pytest.mark.data
def test_real_folders(data_dir: Path) -> None:
    train = load_math_dataset(str(data_dir / "gsm8k"), "train")
    assert len(train) == 7473
    assert train[0]["prompt"].startswith("Natalia sold clips") and train[0]["answer"].endswith("#### 72")
    assert len(load_math_dataset(str(data_dir / "gsm8k"), "test")) == 1319
    math = load_math_dataset(str(data_dir / "math500"), "test", num_samples=5, conversational=True)
    assert len(math) == 5 and math[0]["prompt"][0]["content"] == math[0]["question"]
