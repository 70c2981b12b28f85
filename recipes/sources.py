# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Rows of a dataset from the Hub or from a local folder, with errors that list what there is."""

from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

FILE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".jsonl.gz": "json"}
# What `save_to_disk` writes beside the data.
SAVED_FILES = ("dataset_dict.json", "state.json")


def load_rows(
    name_or_path: str, split: str, config_name: str | None = None, *, default_config: str | None = None
) -> Dataset:
    """Loads one split of a dataset.

    Args:
        name_or_path: an id on the Hub, or a local folder: one that `save_to_disk` wrote, or one with a file
            `{split}.jsonl`, `.jsonl.gz`, `.json` or `.parquet` (or parquet shards `{split}-*-of-*.parquet`, as the Hub
            stores them).
        split: name of the split, such as `train`.
        config_name: configuration on the Hub, or a folder inside the local one.
        default_config: configuration on the Hub if none is named.

    Raises:
        FileNotFoundError: there is no such folder, or no such dataset on the Hub.
        ValueError: the split is missing (those found are listed), a file cannot be read, or the split is empty.

    Example:
        >>> import json, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with open(f"{folder}/train.jsonl", "w") as file:
        ...         print(json.dumps({"text": "a"}), file=file)
        ...     load_rows(folder, "train")[0]
        {'text': 'a'}
    """
    source = Path(name_or_path).expanduser()
    if source.exists() or name_or_path.startswith(("/", ".", "~")) or name_or_path.count("/") > 1:
        dataset = _load_folder(source, split, config_name)
    else:
        dataset = _load_from_hub(name_or_path, split, config_name or default_config)
    if len(dataset) == 0:
        raise ValueError(f"The split {split!r} of {name_or_path!r} is empty; it must hold at least one row.")
    return dataset


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
    endings = tuple(FILE_FORMATS)
    found = sorted({file.name.split(".")[0].split("-")[0] for file in folder.iterdir() if file.name.endswith(endings)})
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
    raise ValueError(f"{files[0]} is empty; it must hold at least one row.")


def _load_saved(folder: Path, split: str) -> Dataset:
    """Loads one split of what `save_to_disk` wrote."""
    try:
        saved = load_from_disk(str(folder))
    except IndexError as error:  # without rows there is no table to read
        raise ValueError(f"The saved dataset {folder} is empty; every split must hold at least one row.") from error
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
        return load_dataset(name, config_name, split=split)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"There is no folder {Path(name).absolute()}, and {name!r} could not be loaded from the Hub: {error}."
        ) from error


def _file_names(split: str) -> str:
    return " or ".join(f"{split}{suffix}" for suffix in FILE_FORMATS)
