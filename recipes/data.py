# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Mathematics problems from the Hub or from a local folder, in the columns that the trainers and rewards read."""

from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

QUESTION_COLUMNS = ("question", "problem")
ANSWER_COLUMNS = ("answer", "solution")
FILE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
# What `save_to_disk` writes beside the data.
SAVED_FILES = ("dataset_dict.json", "state.json")
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
    source = Path(name_or_path).expanduser()
    if source.exists() or name_or_path.startswith(("/", ".", "~")) or name_or_path.count("/") > 1:
        dataset = _load_folder(source, split, config_name)
    else:
        dataset = _load_from_hub(name_or_path, split, config_name)
    origin = f"split {split!r} of {name_or_path!r}"
    if len(dataset) == 0:
        raise ValueError(f"The {origin} is empty; it must hold at least one problem.")
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


def _load_folder(folder: Path, split: str, config_name: str | None) -> Dataset:
    """Loads one split of a local folder."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file; pass its folder, {folder.parent}, and split={folder.stem!r}.")
    if config_name is not None:
        folder = folder / config_name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no dataset folder {folder.absolute()}. A local dataset is a folder with {_file_names(split)}, "
            "or one that save_to_disk wrote."
        )
    if any((folder / name).is_file() for name in SAVED_FILES):
        return _load_saved(folder, split)
    # Names are matched exactly: a file such as train_socratic.jsonl is no part of the split `train`.
    for suffix, loader in FILE_FORMATS.items():
        files = [folder / f"{split}{suffix}"] if (folder / f"{split}{suffix}").is_file() else []
        if suffix == ".parquet":
            files += sorted(folder.glob(f"{split}-*-of-*.parquet"))
        if files:
            return _read_files(files, loader)
    found = sorted({file.stem.split("-")[0] for file in folder.iterdir() if file.suffix in FILE_FORMATS})
    raise ValueError(f"The folder {folder} has no split {split!r} ({_file_names(split)}). Splits found: {found}.")


def _read_files(files: list[Path], loader: str) -> Dataset:
    """Reads files of one format as one dataset."""
    # Left to themselves the loaders end a file of no bytes in StopIteration, and one without rows in "no data".
    written = [str(file) for file in files if file.stat().st_size > 0]
    if written:
        try:
            builder = load_dataset_builder(loader, data_files={"rows": written})
            builder.download_and_prepare()
        except (DatasetGenerationError, pa.ArrowException) as error:
            raise ValueError(f"{files[0]} cannot be read as {loader}: {error.__cause__ or error}.") from error
        if builder.info.splits["rows"].num_examples:
            return builder.as_dataset("rows")
    raise ValueError(f"{files[0]} is empty; it must hold at least one problem.")


def _load_saved(folder: Path, split: str) -> Dataset:
    """Loads one split of what `save_to_disk` wrote."""
    try:
        saved = load_from_disk(str(folder))
    except IndexError as error:  # without rows there is no table to read
        raise ValueError(f"The saved dataset {folder} is empty; every split must hold at least one problem.") from error
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise ValueError(f"The saved dataset {folder} has no split {split!r}. Splits found: {sorted(saved)}.")
        return saved[split]
    if saved.split is not None and str(saved.split) != split:
        raise ValueError(f"The saved dataset {folder} has no split {split!r}. Splits found: {[str(saved.split)]}.")
    return saved


def _load_from_hub(name: str, split: str, config_name: str | None) -> Dataset:
    """Loads one split from the Hub, or from its cache."""
    try:
        # For a split or configuration that is not there it raises a ValueError that lists those that are.
        return load_dataset(name, config_name or DEFAULT_CONFIGS.get(name), split=split)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"There is no folder {Path(name).absolute()}, and {name!r} could not be loaded from the Hub: {error}."
        ) from error


def _file_names(split: str) -> str:
    return " or ".join(f"{split}{suffix}" for suffix in FILE_FORMATS)


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
