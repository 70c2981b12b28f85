# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Which weights a policy has, and whether loading it again from where it came from gives the same ones.

A folder that names its policy instead of holding it is whole only as long as the name stands for the same weights.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from vgf_llm.models.language_model import inner_model

Whole = Callable[[Tensor], AbstractContextManager[Tensor]]

_ATTRIBUTE = "_vgf_origin"
# Arguments of `from_pretrained` that either change no weight or are given again when the origin is loaded.
_HARMLESS = {
    *("dtype", "torch_dtype", "revision", "trust_remote_code", "device_map", "max_memory", "offload_folder"),
    *("attn_implementation", "low_cpu_mem_usage", "token", "cache_dir", "local_files_only", "force_download"),
}
_VOLATILE = {"transformers_version", "dtype", "torch_dtype", "architectures", "auto_map", "use_cache"}
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 2**22


@dataclass(frozen=True)
class Origin:
    """Where a policy was loaded from, and what it was then."""

    name: str  # folder or hub id
    revision: str | None  # commit on the hub
    fingerprint: str  # of the weights
    config: str  # digest of what the configuration says about the computation


def base_tensors(policy: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Returns a policy's own weights by the names of the plain model, without those of its adapters.

    `state` holds whole weights by the names of `policy.state_dict()`, where the model itself holds shards of them. Tied
    tensors are one object.
    """
    # LoRA layers keep the original weight as `<name>.base_layer.<parameter>` beside their own.
    if state is None:
        state = inner_model(policy).state_dict(keep_vars=True)
    elif isinstance(policy, PeftModel):
        state = {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}


def fingerprint(tensors: Mapping[str, Tensor], whole: Whole = nullcontext) -> str:
    """Returns a checksum of weights: names, types, shapes and every bit, the same on every device.

    `whole` is a context that gathers a tensor of which each process holds a shard.
    """
    digest, sums = hashlib.blake2b(digest_size=16), {}
    for name, tensor in tensors.items():
        if id(tensor) not in sums:
            with whole(tensor) as full:
                sums[id(tensor)] = _checksum(full)
        digest.update(f"{name} {sums[id(tensor)]}\n".encode())
    return digest.hexdigest()


@torch.no_grad()
def _checksum(tensor: Tensor) -> str:
    # Sums of integers wrap around and do not depend on the order in which a device adds them.
    flat = tensor.detach().reshape(-1).view(_INTEGERS[tensor.element_size()])
    first = second = 0
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK].long()
        place = torch.arange(start + 1, start + 1 + part.numel(), device=part.device)
        first += int(part.sum())
        second += int((part * place).sum())
    return f"{tensor.dtype} {tuple(tensor.shape)} {first} {second % 2**64}"


def record_origin(model: PreTrainedModel, load_kwargs: Mapping[str, Any], whole: Whole = nullcontext) -> None:
    """Remembers that a model, just loaded from `model.config._name_or_path`, is what its origin loads.

    Nothing is remembered, so that the weights are saved, where `load_kwargs` change weights or configuration, as a
    quantisation does.
    """
    name = model.config._name_or_path
    given = {key for key, value in load_kwargs.items() if value is not None}
    if not name or given - _HARMLESS or any(parameter.is_meta for parameter in model.parameters()):
        return
    weights = fingerprint(base_tensors(model), whole)
    _remember(model, weights)


def _remember(model: PreTrainedModel, weights: str) -> Origin:
    config = model.config
    origin = Origin(config._name_or_path, getattr(config, "_commit_hash", None), weights, _config_digest(config))
    setattr(model, _ATTRIBUTE, origin)
    return origin


def recorded_origin(policy: nn.Module, weights: str) -> Origin | None:
    """Returns the origin that was recorded when the policy was loaded, if its fingerprint is still the same."""
    inner = inner_model(policy)
    origin = getattr(inner, _ATTRIBUTE, None)
    same = origin is not None and (origin.fingerprint, origin.config) == (weights, _config_digest(inner.config))
    return origin if same else None


def find_origin(policy: nn.Module, weights: str) -> Origin | None:
    """Returns the folder or hub id that loads to the same policy: the recorded one, or one whose files hold it.

    `None` where that is not certain, so that the weights have to be saved.
    """
    origin, inner = recorded_origin(policy, weights), inner_model(policy)
    if origin is None and _files_hold(inner):
        origin = _remember(inner, weights)
    return origin


@torch.no_grad()
def _files_hold(model: PreTrainedModel) -> bool:
    """Tells whether the files of the named origin have the weights of a model, tensor by tensor."""
    name, revision = model.config._name_or_path, getattr(model.config, "_commit_hash", None)
    if not name or (Path(name) / "vgf_config.json").is_file():  # a run may replace or remove its own checkpoints
        return False
    try:
        config = type(model.config).from_pretrained(name, revision=revision, local_files_only=True)
        if _config_digest(config) != _config_digest(model.config):
            return False
        names: dict[int, set[str]] = {}
        own = base_tensors(model)
        for key, tensor in own.items():
            names.setdefault(id(tensor), set()).add(key)
        if len({tensor.dtype for tensor in own.values() if tensor.is_floating_point()}) != 1:
            return False  # no `dtype` loads it
        found: set[str] = set()
        folder = Path(name)
        if not folder.is_dir():
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        for path in folder.glob("model*.safetensors"):
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 (no iterator)
                    mine = own.get(key)
                    if mine is None or not torch.equal(file.get_tensor(key).to(mine.dtype), mine.cpu()):
                        return False
                    found.add(key)
    except (OSError, ValueError, KeyError, SafetensorError):
        return False
    return all(keys & found for keys in names.values())


def _config_digest(config: Any) -> str:
    def stable(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kept = {str(key): stable(item) for key, item in value.items()}
        return {
            key: item
            for key, item in kept.items()
            if key not in _VOLATILE and not key.startswith("_") and not key.endswith("_token_id")
        }

    text = json.dumps(stable(config.to_dict()), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
