# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Mathematics problems from the Hub or from a local folder, in the columns that the trainers and rewards read."""

from typing import Any

from datasets import Dataset

from recipes.sources import load_rows

QUESTION_COLUMNS = ("question", "problem")
ANSWER_COLUMNS = ("answer", "solution")
# Hub datasets that have several configurations and none by default.
DEFAULT_CONFIGS = {"openai/gsm8k": "main", "gsm8k": "main"}


def load_math_dataset(
    name_or_path: str,
    split: str,
    *,
    config_name: str | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    conversational: bool = False,
    system_prompt: str | None = None,
    prompt_template: str = "{question}\n",
) -> Dataset:
    r"""Loads mathematics problems as prompts with their gold answers.

    Args:
        name_or_path: an id on the Hub, such as `openai/gsm8k`, or a local folder: one that `save_to_disk` wrote, or
            one with a file `{split}.jsonl`, `.json` or `.parquet` (or parquet shards `{split}-*-of-*.parquet`, as the
            Hub stores them). The problems are in a column `question` or `problem`, the gold answers in `answer`, else
            in `solution`.
        split: name of the split, such as `train`.
        config_name: configuration on the Hub, or a folder inside the local one.
        num_samples: number of rows to draw at random without replacement; all, in their order, by default.
        seed: seed of that draw.
        conversational: whether prompts are lists of messages, for models with a chat template, and not plain strings.
        system_prompt: first message of a conversation.
        prompt_template: plain prompt around `{question}`; in a conversation the question stands alone.

    Returns:
        A dataset with the columns `prompt`, `answer` (the whole gold text) and `question`.

    Raises:
        FileNotFoundError: there is no such folder, or no such dataset on the Hub.
        ValueError: the split or a column is missing (those found are listed), the dataset is empty, a row lacks its
            question or answer, or an argument is out of range.

    Example:
        >>> import json, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with open(f"{folder}/train.jsonl", "w") as file:
        ...         print(json.dumps({"question": "What is 3 + 4?", "answer": "#### 7"}), file=file)
        ...     load_math_dataset(folder, "train")[0]
        {'prompt': 'What is 3 + 4?\n', 'answer': '#### 7', 'question': 'What is 3 + 4?'}
    """
    _check_arguments(num_samples, conversational, system_prompt, prompt_template)
    dataset = load_rows(name_or_path, split, config_name, default_config=DEFAULT_CONFIGS.get(name_or_path))
    origin = f"split {split!r} of {name_or_path!r}"
    question_column = _find_column(dataset, QUESTION_COLUMNS, origin)
    answer_column = _find_column(dataset, ANSWER_COLUMNS, origin)
    if num_samples is not None:
        if num_samples > len(dataset):
            raise ValueError(f"num_samples must be at most {len(dataset)}, the rows of {origin}; got {num_samples}.")
        dataset = dataset.shuffle(seed=seed).select(range(num_samples))
    questions = _column_of_strings(dataset, question_column, origin)
    if conversational:
        system = [{"role": "system", "content": system_prompt}] if system_prompt is not None else []
        prompts: list[Any] = [[*system, {"role": "user", "content": question}] for question in questions]
    else:
        # Not str.format: a template may hold LaTeX such as \boxed{}.
        prompts = [prompt_template.replace("{question}", question) for question in questions]
    answers = _column_of_strings(dataset, answer_column, origin)
    return Dataset.from_dict({"prompt": prompts, "answer": answers, "question": questions})


def _check_arguments(
    num_samples: int | None, conversational: bool, system_prompt: str | None, prompt_template: str
) -> None:
    """Rejects arguments that would fail late or be ignored."""
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, or None for all rows; got {num_samples}.")
    if system_prompt is not None and not conversational:
        raise ValueError(
            "system_prompt is the first message of a conversation: pass conversational=True, or write the instruction "
            "into prompt_template."
        )
    if "{question}" not in prompt_template:
        raise ValueError(f"prompt_template must contain '{{question}}'; got {prompt_template!r}.")


def _find_column(dataset: Dataset, names: tuple[str, ...], origin: str) -> str:
    """The first of the names that is a column."""
    for name in names:
        if name in dataset.column_names:
            return name
    raise ValueError(
        f"The {origin} has no column {' or '.join(map(repr, names))}. Columns found: {dataset.column_names}. "
        "Rename the column that holds it."
    )


def _column_of_strings(dataset: Dataset, name: str, origin: str) -> list[str]:
    """A column as strings; numbers are written out."""
    values = list(dataset[name])
    for row, value in enumerate(values):
        if value is None or not str(value).strip():
            raise ValueError(f"Row {row} of {origin} has nothing in the column {name!r}.")
    return [str(value) for value in values]
