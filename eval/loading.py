# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Loading what an evaluation runs on: a saved VGF model, or a plain language model as a baseline."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from eval.store import digest, fingerprint
from vgf_llm.loading import dtype_and_device, load_tokenizer
from vgf_llm.models import VGFModel
from vgf_llm.models.config import CONFIG_NAME, VGFModelConfig


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for evaluation.

    Attributes:
        model: The model; a plain language model has a value that was never trained.
        tokenizer: Its tokenizer, padding left.
        has_value: Whether the value was learned.
        name: What the user called it.
        fingerprint: Hash of its files.
        base: What the policy is where the folder does not hold it: its origin and a hash of its files.
    """

    model: VGFModel
    tokenizer: PreTrainedTokenizerBase
    has_value: bool
    name: str
    fingerprint: str
    base: str | None = None

    @property
    def identity(self) -> str:
        """Name and fingerprint, as results folders keep it."""
        return f"{self.name} ({self.fingerprint})"

    @property
    def marks(self) -> dict[str, Any]:
        """What samples of this model depend on, for a results folder: fingerprints of model, base and tokenizer."""
        return {
            "fingerprint": self.fingerprint,
            "base": self.base,
            "dtype": str(next(self.model.policy.parameters()).dtype).removeprefix("torch."),
            "tokenizer": tokenizer_mark(self.tokenizer),
        }


def tokenizer_mark(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a short hash of what a tokenizer does: its vocabulary and rules, its special tokens, its template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    for name in ("truncation", "padding"):  # set by the last call
        rules.pop(name, None)
    return digest([rules, tokenizer.special_tokens_map, tokenizer.chat_template])


def identity(name_or_path: str, revision: str | None = None) -> str:
    """Returns the hash of a model that is named by a folder or a hub id."""
    return fingerprint(local_folder(name_or_path, revision))


def local_folder(name_or_path: str, revision: str | None = None) -> Path:
    """Returns the folder of a model, downloaded if it is a hub id.

    Raises:
        FileNotFoundError: If it is neither.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name_or_path.count("/") != 1:
        raise FileNotFoundError(f"`model` {name_or_path!r} is neither a folder nor a hub id of the form 'owner/name'.")
    return Path(snapshot_download(name_or_path, revision=revision))


def load_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    base_model: str | None = None,
    tokenizer: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
) -> LoadedModel:
    """Loads a saved VGF model, or a causal language model that has no value.

    Args:
        name_or_path: Folder or hub id.
        revision: Revision on the hub.
        base_model: The policy, for a folder without its weights.
        tokenizer: Folder or hub id of the tokenizer, for a folder without one.
        device: Where it runs; CUDA where there is one, by default.
        dtype: Of the weights; as saved by default.

    Returns:
        The model.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: For an unknown dtype or device, or a model without a tokenizer.
    """
    resolved, place = dtype_and_device(dtype, device)
    folder = local_folder(name_or_path, revision)
    mark = fingerprint(folder)
    has_value = (folder / CONFIG_NAME).is_file()
    base, config = None, VGFModelConfig.load(folder) if has_value else None
    if config is not None:
        origin = base_model or config.base_model_name_or_path
        pinned = None if base_model else config.base_model_revision
        model = VGFModel.from_pretrained(folder, base_model=base_model, dtype=resolved)
        if origin and (base_model or not (folder / "config.json").is_file()):  # a checkpoint holds no frozen policy
            base = f"{origin} ({identity(origin, pinned)})"
    else:
        model = VGFModel(AutoModelForCausalLM.from_pretrained(folder, dtype=resolved)).eval()
    loaded = load_tokenizer(str(folder), config, tokenizer=tokenizer, base_model=base_model)
    if loaded.pad_token_id is None:
        loaded.pad_token = loaded.eos_token
    return LoadedModel(model.to(place), loaded, has_value, name_or_path, mark, base)
