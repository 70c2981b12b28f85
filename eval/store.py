# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A results folder: one JSON line per sample, and what they were made of in `meta.json`.

A line is written once and never changed. A killed evaluation leaves whole lines and perhaps a broken last one, which is
cut off when the folder is opened again; what is missing is sampled then, from the same seeds.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

SAMPLES_NAME = "samples.jsonl"
META_NAME = "meta.json"
_WHOLE_FILE = 256 * 2**20  # larger weights are fingerprinted by blocks of them
_BLOCK = 2**16
_NUM_BLOCKS = 64
_VERSIONS = ("torch", "transformers", "trl", "vgf-llm")
_MODEL_FILES = ("*config.json", "*.safetensors", "pytorch_model*.bin", "adapter_model.bin")
# Names, which may be paths that are written in several ways: fingerprints beside them say what they are of.
_NAMES = {"model", "reward_model", "gold_model", "prompts_file", "dataset"}

Record = dict[str, Any]
Key = tuple[str, int, int, int]


def fingerprint(directory: str | Path) -> str:
    """Returns a short hash of a saved model: its configuration and its weights.

    Files above 256 MB enter with their size and 64 blocks spread over them; that is enough to tell two trainings apart.
    Checkpoints inside the folder are no part of the model; a folder that is itself a checkpoint is one.

    Args:
        directory: The model's folder.

    Returns:
        16 hexadecimal digits.

    Raises:
        FileNotFoundError: If there is no such folder, or neither configuration nor weights in it.
    """
    directory = Path(directory)
    files = sorted(path for pattern in _MODEL_FILES for path in directory.rglob(pattern))
    # Results and trainer states may lie in the folder; they are no part of the model.
    files = [p for p in files if not any(part.startswith("checkpoint-") for part in p.relative_to(directory).parts)]
    if not files:
        raise FileNotFoundError(f"{directory} holds no saved model: there is no config.json and no safetensors file.")
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(directory).as_posix()}:{size}\n".encode())
        with path.open("rb") as file:
            if size <= _WHOLE_FILE:
                digest.update(file.read())
                continue
            for block in range(_NUM_BLOCKS):
                file.seek(block * (size - _BLOCK) // (_NUM_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:16]


def digest(data: object) -> str:
    """Returns a short hash of JSON data.

    Example:
        >>> digest({"b": 1, "a": [2]}) == digest({"a": [2], "b": 1})
        True
    """
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(found: dict[str, Any], now: dict[str, Any]) -> str:
    """Names the settings of two runs that differ, with both values; empty where none does."""
    names = [name for name in dict.fromkeys([*now, *found]) if name not in _NAMES]
    differ = [name for name in names if found.get(name) != now.get(name)]
    return "; ".join(f"{name}: {found.get(name)!r} there, {now.get(name)!r} now" for name in differ)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file that is either the old one or the whole new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def write_json(path: Path, data: object) -> None:
    """Writes JSON atomically, indented."""
    write_atomically(path, json.dumps(data, indent=2) + "\n")


class SampleStore:
    """The samples of one model on one task under one set of settings.

    Args:
        directory: The results folder; created if absent.
        settings: What the samples depend on, JSON values: the fingerprints of model, base, tokenizer, problems and
            reward models, the dtype, lengths, batches. Names of models and files may differ.

    Attributes:
        records: Every sample, by draw, seed, problem and number.

    Raises:
        ValueError: If the folder holds results of other settings (both are named), or a broken line that is not the
            last.
        NotADirectoryError: If `directory` is a file.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = SampleStore(folder, {"model": "a", "fingerprint": "01"})
        ...     store.append([{"draw": "greedy", "seed": 0, "prompt": 0, "sample": 0, "gold": 1.0}])
        ...     len(SampleStore(folder, {"model": "a", "fingerprint": "01"}).records)
        1
    """

    def __init__(self, directory: str | Path, settings: dict[str, Any]) -> None:
        self.directory = Path(directory)
        if self.directory.is_file():
            raise NotADirectoryError(f"The results folder {str(directory)!r} is a file; name a folder.")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.path = self.directory / SAMPLES_NAME
        self._claim(json.loads(json.dumps(settings)))
        self.records: dict[Key, Record] = {}
        for record in self._read():
            self.records.setdefault(_key(record), record)

    def append(self, records: Iterable[Record]) -> None:
        """Adds samples with one write, so that a line of another process never lands inside one of theirs.

        Args:
            records: Samples; those that are present already are left out.
        """
        new = [record for record in records if _key(record) not in self.records]
        if not new:
            return
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in new)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            data = memoryview(text.encode())
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        self.records.update({_key(record): record for record in new})

    def find(self, draw: str, seed: int, prompts: Iterable[int], num_samples: int) -> list[Record] | None:
        """Returns the samples of some problems in order, or `None` if one is missing."""
        keys = [(draw, seed, prompt, sample) for prompt in prompts for sample in range(num_samples)]
        if any(key not in self.records for key in keys):
            return None
        return [self.records[key] for key in keys]

    def _claim(self, settings: dict[str, Any]) -> None:
        path = self.directory / META_NAME
        if not path.is_file():
            if self.path.exists():
                raise ValueError(f"{self.path} has no {META_NAME} beside it, so nothing says which model it is of.")
            versions = {name: version(name) for name in _VERSIONS}
            write_json(path, {"settings": settings, "versions": versions})
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["settings"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no metadata of an evaluation ({error!r}); name another folder.") from error
        pairs = differences(found, settings)
        if pairs:
            raise ValueError(
                f"The results folder {str(self.directory)!r} holds samples of {found.get('model')!r}, not of "
                f"{settings.get('model')!r} as set up now ({pairs}). Name another `--output_dir`, or remove it."
            )

    def _read(self) -> list[Record]:
        if not self.path.is_file():
            return []
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # the process died inside a line
            os.truncate(self.path, whole)
        records = []
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                record = json.loads(line)
                _key(record)
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.path}, line {number} is no sample ({error!r}). Remove that line; it is sampled again."
                ) from error
            records.append(record)
        return records


def _key(record: Record) -> Key:
    return record["draw"], record["seed"], record["prompt"], record["sample"]
