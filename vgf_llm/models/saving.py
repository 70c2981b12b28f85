# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Saving and loading a `VGFModel`.

A folder holds the policy as transformers (or PEFT) writes it, so that `AutoModelForCausalLM` loads it alone, and beside
it `vgf_config.json`, `value_head.safetensors` (heads), `value/` (the value's LoRA adapter, PEFT format), `value_model/`
(a value model of its own), `ref_model/` (the reference of a trained policy), `sequence_value/` (a value of whole
responses) and `base_model/` (the model under a policy's adapter, where no origin loads the same one).

`vgf_config.json` lists the files that belong to the folder with their checksums. It is written last: a folder without
it is not whole. Files that it does not list are not read.
"""

import dataclasses
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import transformers
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import cached_file

from vgf_llm.models.adapter_rows import adapter_parameters
from vgf_llm.models.backbones import VALUE_ADAPTER, own_adapter
from vgf_llm.models.config import CONFIG_NAME, VGFModelConfig
from vgf_llm.models.language_model import inner_model, output_vocab_size, output_width
from vgf_llm.models.origin import base_tensors, find_origin, fingerprint, record_origin, recorded_origin
from vgf_llm.models.sequence_value import SequenceValue
from vgf_llm.models.tensor_files import (
    check_files,
    file_digest,
    files_below,
    load_tensors,
    load_whole,
    read_json,
    write_json,
    write_tensors,
)
from vgf_llm.models.value import ValueModel, build_saved_value
from vgf_llm.models.valued_policy import ValuedPolicy

Model = TypeVar("Model", bound=ValuedPolicy)

VALUE_HEAD_NAME = "value_head.safetensors"
# Folders of the parts of a model, named after its attributes.
VALUE_MODEL_DIR = "value_model"
REF_MODEL_DIR = "ref_model"
SEQUENCE_VALUE_DIR = "sequence_value"
BASE_MODEL_DIR = "base_model"
ADAPTER_NAME = "adapter_model.safetensors"
# What users may change in a saved folder.
_UNLISTED = {"README.md", "generation_config.json"}


def load_value_head(value: ValueModel, directory: Path) -> None:
    """Loads `value_head.safetensors` of `directory` into `value`, if it has parameters."""
    expected = value.state_dict()
    if expected:
        value.load_state_dict(load_tensors(directory / VALUE_HEAD_NAME, expected))


def save_vgf_model(
    model: ValuedPolicy,
    save_directory: str | Path,
    *,
    save_policy: bool | None = True,
    state_dict: dict[str, Tensor] | None = None,
    policy_fingerprint: str | None = None,
    **kwargs: Any,
) -> None:
    """Writes a `VGFModel` to a folder, whole or not at all.

    Args:
        model: The model.
        save_directory: The folder; created if absent. Files of a model that was saved there before are replaced.
        save_policy: Whether the policy's weights are written. `None` leaves them out where the origin named in
            `vgf_config.json`, loaded again, is the same policy. Without them, and without an origin, loading needs
            `base_model`. Of a PEFT policy its adapter is always written, and the model under it only where no origin
            is the same.
        state_dict: Whole weights under the names of `model.state_dict()`, where the model itself holds shards of them.
        policy_fingerprint: The fingerprint of the policy, where `state_dict` lacks it.
        **kwargs: Handed to `PreTrainedModel.save_pretrained`, such as `max_shard_size`.

    Raises:
        NotADirectoryError: If `save_directory` is a file.
        OSError: If the folder cannot be written; the message names it, and what was there before is still whole.
        TypeError: If a sequence value has no file format.
    """
    directory = Path(save_directory)
    if directory.is_file():
        raise NotADirectoryError(f"`save_directory` {str(directory)!r} is a file; expected a folder.")
    if model.sequence_value is not None and not isinstance(model.sequence_value, SequenceValue):
        raise TypeError(
            f"`sequence_value` is a {type(model.sequence_value).__name__}, which has no file format; only a "
            "SequenceValue is saved with its model. Set it to None first and pass yours to `generate`."
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=directory) as beside:
            config = _write_parts(model, Path(beside), save_policy, state_dict, policy_fingerprint, kwargs)
            _publish(Path(beside), directory, config)
    except (OSError, SafetensorError) as error:
        raise OSError(
            getattr(error, "errno", None), f"the model could not be written ({error})", str(directory)
        ) from error


def _write_parts(
    model: ValuedPolicy,
    directory: Path,
    save_policy: bool | None,
    state_dict: dict[str, Tensor] | None,
    weights: str | None,
    kwargs: dict[str, Any],
) -> VGFModelConfig:
    """Writes every file but `vgf_config.json`, and returns what goes into that."""

    def part(name: str) -> dict[str, Tensor] | None:
        if state_dict is None:
            return None
        return {key.removeprefix(name): tensor for key, tensor in state_dict.items() if key.startswith(name)}

    policy, adapter, origin = part("policy."), model.policy_adapter, None
    own = base_tensors(model.policy, policy)
    if weights is None:
        weights = fingerprint(own)
    if adapter is not None or save_policy is None:
        # Where weights are sharded, only what was recorded tells whether the origin is the same.
        origin = (find_origin if state_dict is None else recorded_origin)(model.policy, weights)
    writes_base = origin is None if save_policy is None else save_policy
    if adapter is None and writes_base:
        inner_model(model.policy).save_pretrained(directory, state_dict=own, **kwargs)
    elif adapter is not None:
        _save_policy_adapter(model.policy, adapter, directory, policy)
        if writes_base and origin is None:
            inner_model(model.policy).save_pretrained(directory / BASE_MODEL_DIR, state_dict=own, **kwargs)
            settings = read_json(directory / "adapter_config.json")  # PEFT alone must not load it over another base
            write_json({**settings, "base_model_name_or_path": None}, directory / "adapter_config.json")
    if model.has_value_adapter:
        model.policy.save_pretrained(directory, selected_adapters=[VALUE_ADAPTER], state_dict=policy)
    for name in (VALUE_MODEL_DIR, REF_MODEL_DIR, SEQUENCE_VALUE_DIR):
        module: Any = getattr(model, name)
        if module is not None:
            module.save_pretrained(directory / name, state_dict=part(f"{name}."), **kwargs)
    config = model.vgf_config
    head = model.value.state_dict() if state_dict is None else part("value.")
    if head:
        metadata = {
            "format": "pt",
            "base_model_name_or_path": str(config.base_model_name_or_path),
            "base_model_revision": str(config.base_model_revision),
        }
        write_tensors(head, directory / VALUE_HEAD_NAME, metadata)
    return dataclasses.replace(
        config,
        base_model_fingerprint=weights,
        base_model_dtype=str(inner_model(model.policy).dtype).removeprefix("torch."),
        transformers_version=transformers.__version__,
    )


def _save_policy_adapter(policy: PeftModel, adapter: str, directory: Path, state: dict[str, Tensor] | None) -> None:
    policy.save_pretrained(directory, selected_adapters=[adapter], state_dict=state)
    if adapter == "default":
        return
    # PEFT puts adapters of other names into a folder of that name, where nothing that loads `directory` finds them.
    for path in (directory / adapter).iterdir():
        os.replace(path, directory / path.name)
    (directory / adapter).rmdir()


def _publish(staged: Path, directory: Path, config: VGFModelConfig) -> None:
    """Moves the files of a model to their place; while they are mixed with older ones, the folder has no config."""
    names = files_below(staged)
    listed = {name: file_digest(staged / name) for name in names if Path(name).name not in _UNLISTED}
    known = directory / CONFIG_NAME
    try:
        before = read_json(known).get("files")
    except (OSError, ValueError):
        before = None
    known.unlink(missing_ok=True)
    for name in set(before if isinstance(before, dict) else ()) - set(names):
        if not Path(name).is_absolute() and ".." not in Path(name).parts:  # a foreign listing may name anything
            (directory / name).unlink(missing_ok=True)
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged / name, directory / name)
    dataclasses.replace(config, files=listed).save(directory)


def _holds(directory: Path, config: VGFModelConfig, part: str) -> bool:
    """Tells whether a file or folder belongs to the model; older files beside it do not."""
    if config.files is None:
        return (directory / part).exists()
    return any(name == part or name.startswith(f"{part}/") for name in config.files)


def _load_policy(
    directory: Path,
    config: VGFModelConfig,
    base_model: "str | nn.Module | None",
    strict_base: bool,
    model_kwargs: dict[str, Any],
) -> nn.Module:
    adapted = _holds(directory, config, "adapter_config.json")
    has_base = _holds(directory, config, BASE_MODEL_DIR)
    if isinstance(base_model, nn.Module):
        policy = base_model
    elif base_model is None and (has_base or (not adapted and _holds(directory, config, "config.json"))):
        source = directory / BASE_MODEL_DIR if has_base else directory
        policy = _load_language_model(str(source), directory, model_kwargs)
        strict_base = False  # its files were checked
    else:
        policy, compared = _load_origin(directory, config, base_model, model_kwargs)
        strict_base = strict_base and compared
    if output_vocab_size(policy) != config.vocab_size:
        raise ValueError(
            f"The base model has {output_vocab_size(policy)} logits; {directory} was saved over {config.vocab_size}. "
            "Pass the base model it was trained on."
        )
    if config.backbone != "model" and output_width(policy) != config.hidden_size:
        raise ValueError(
            f"The base model's hidden states have width {output_width(policy)}; the value in {directory} reads width "
            f"{config.hidden_size}. Pass the base model it was trained on."
        )
    if strict_base:
        _check_base(policy, directory, config)
    return _with_adapter(policy, directory, adapted, strict_base)


def _with_adapter(policy: nn.Module, directory: Path, adapted: bool, strict_base: bool) -> nn.Module:
    """Puts the policy's saved adapter on its base; an adapter that is on it already has to be the same."""
    own = own_adapter(cast(Any, policy))
    if own is None and adapted:
        policy = PeftModel.from_pretrained(cast(Any, policy), str(directory))
        load_adapter(policy, "default", directory / ADAPTER_NAME)
    elif own is not None and strict_base:
        parameters = _by_stored_name(policy, own)
        found = load_tensors(directory / ADAPTER_NAME, parameters) if adapted else {}
        differing = [name for name in parameters if name not in found or not _same(found[name], parameters[name])]
        if differing:
            raise ValueError(
                f"`base_model` has an adapter {own!r} with other weights than the policy that was saved in "
                f"{directory}, such as {differing[0]}. Pass the model without it, or `strict_base=False`."
            )
    return policy


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.to(other.dtype), other.detach().cpu())


def _check_base(policy: nn.Module, directory: Path, config: VGFModelConfig) -> None:
    if config.base_model_fingerprint is None:
        return
    found = fingerprint(base_tensors(policy))
    if found != config.base_model_fingerprint:
        dtype = str(inner_model(policy).dtype).removeprefix("torch.")
        name = inner_model(policy).config._name_or_path or "the model that was passed"
        raise ValueError(
            f"The policy {name!r} has other weights than the one that {directory} was trained over: fingerprint "
            f"{found} in {dtype}, expected {config.base_model_fingerprint} in {config.base_model_dtype} (saved with "
            f"transformers {config.transformers_version}). Pass the same policy as `base_model=`, or "
            "`strict_base=False` to use the value over another one."
        )


def _load_origin(
    directory: Path, config: VGFModelConfig, base_model: str | None, model_kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, bool]:
    """Loads the policy that a folder names, as it was when the folder was saved, and says whether it can be compared.

    What was asked for beyond that, such as another dtype, is applied afterwards.
    """
    origin, revision = base_model or config.base_model_name_or_path, None
    if origin is None and config.files is None and (directory / "adapter_config.json").is_file():
        origin = PeftConfig.from_pretrained(str(directory)).base_model_name_or_path
    if base_model is None and config.base_model_revision:
        revision = config.base_model_revision
    kwargs, dtype = {**model_kwargs, "revision": revision}, model_kwargs.get("dtype")
    if config.base_model_fingerprint is None:
        return _load_language_model(origin, directory, kwargs), False
    if model_kwargs.get("quantization_config") is not None:
        warnings.warn(f"A quantised base of {directory} cannot be compared with the one before.", stacklevel=5)
        return _load_language_model(origin, directory, kwargs), False
    kwargs["dtype"] = getattr(torch, config.base_model_dtype or "float32")
    policy = _load_language_model(origin, directory, kwargs)
    if dtype not in (None, "auto", kwargs["dtype"], config.base_model_dtype):
        _check_base(policy, directory, config)
        return policy.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype), False
    if base_model is None:
        record_origin(policy, kwargs)
    return policy, True


def _load_language_model(origin: "str | None", directory: Path, model_kwargs: dict[str, Any]) -> PreTrainedModel:
    if not origin:
        raise ValueError(
            f"{directory} holds no policy weights and names no base model; pass `base_model=` (a model or a path)."
        )
    try:
        return load_whole(AutoModelForCausalLM, origin, **model_kwargs)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"The policy of {directory} could not be loaded from {origin!r}: {error}. "
            "Pass `base_model=` with a model or a path that exists."
        ) from error


def load_vgf_model(
    cls: type[Model],
    pretrained_model_name_or_path: str | Path,
    *,
    base_model: "str | PreTrainedModel | PeftModel | None" = None,
    strict_base: bool = True,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **model_kwargs: Any,
) -> Model:
    """Loads a `VGFModel` from a folder or the hub.

    Args:
        cls: `VGFModel`, or a class derived from it.
        pretrained_model_name_or_path: A folder that `save_vgf_model` wrote, a checkpoint, or a hub id.
        base_model: The policy, for a folder without it: a model, a path or a hub id. A policy adapter in the folder is
            put on it, unless it is a PEFT model already.
        strict_base: Whether a policy of other weights than those that the value was trained over is refused.
        revision: The hub revision of the folder; that of the policy is in `vgf_config.json`.
        trust_remote_code: Whether the models may run code of their own repositories.
        **model_kwargs: Handed to `AutoModelForCausalLM.from_pretrained`, such as `dtype` or `device_map`.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: If the folder or a file in it is missing.
        ValueError: If files are truncated, changed or do not fit each other, or the policy is another one; the message
            names the file, what was expected and what was found.
    """
    directory = Path(pretrained_model_name_or_path)
    if not directory.is_dir():
        if directory.is_absolute() or str(pretrained_model_name_or_path).count("/") != 1:
            raise FileNotFoundError(f"{str(directory)!r} is neither a folder nor a hub id of the form 'owner/name'.")
        directory = Path(snapshot_download(str(pretrained_model_name_or_path), revision=revision))
    config = VGFModelConfig.load(directory)
    check_files(directory, config.files or {}, CONFIG_NAME)
    if "torch_dtype" in model_kwargs:
        model_kwargs["dtype"] = model_kwargs.pop("torch_dtype")
    model_kwargs = {**model_kwargs, "trust_remote_code": trust_remote_code}
    policy = _load_policy(directory, config, base_model, strict_base, model_kwargs)
    value_model = ref_model = None
    if config.backbone == "model":
        value_model = _load_language_model(str(directory / VALUE_MODEL_DIR), directory, model_kwargs)
    if _holds(directory, config, REF_MODEL_DIR):
        ref_model = _load_language_model(str(directory / REF_MODEL_DIR), directory, model_kwargs)
    sequence_value = None
    if _holds(directory, config, SEQUENCE_VALUE_DIR):
        sequence_value = SequenceValue.from_pretrained(directory / SEQUENCE_VALUE_DIR, **model_kwargs)
    value = build_saved_value(config, output_width(policy))
    load_value_head(value, directory)
    lora_config = None
    if config.backbone == "lora":
        lora_config = PeftConfig.from_pretrained(str(directory / VALUE_ADAPTER))
        lora_config.inference_mode = False
    model = cls(
        policy,
        value.to(inner_model(policy).device),
        backbone="lora" if config.backbone == "lora" else "policy",
        value_model=value_model,
        ref_model=ref_model,
        lora_config=lora_config,
        sequence_value=sequence_value,
        transport=config.transport,
    )
    if config.backbone == "lora":
        load_adapter(model.policy, VALUE_ADAPTER, directory / VALUE_ADAPTER / ADAPTER_NAME)
    return model.eval()


def load_policy_or_vgf(path: str, cls: type[Model], **kwargs: Any) -> Model | None:
    """Loads a `VGFModel` where `path` is a folder, checkpoint or hub id of one, with arguments as for `load_vgf_model`.

    Returns `None` where `path` names a plain language model, or nothing that is known. Raises ValueError if it holds
    parts of a VGF model but not a whole one, or a run with checkpoints only.
    """
    directory = Path(path)
    if not directory.is_dir():
        if directory.is_absolute() or path.count("/") != 1:
            return None
        found = cached_file(
            path,
            CONFIG_NAME,
            revision=kwargs.get("revision"),
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if found is None else load_vgf_model(cls, path, **kwargs)
    if (directory / CONFIG_NAME).is_file():
        kwargs.pop("revision", None)
        return load_vgf_model(cls, directory, **kwargs)
    parts = [name for name in (VALUE_HEAD_NAME, VALUE_ADAPTER, VALUE_MODEL_DIR) if (directory / name).exists()]
    if parts:
        raise ValueError(
            f"{path!r} holds {' and '.join(parts)} but no {CONFIG_NAME}, so it is no whole VGF model: saving was "
            "interrupted, or not all was copied. Save or copy it again."
        )
    if not any((directory / name).is_file() for name in ("config.json", "adapter_config.json")):
        checkpoints = sorted(item.name for item in directory.glob("checkpoint-*"))
        if checkpoints:
            raise ValueError(f"{path!r} holds no model but {', '.join(checkpoints)}; pass one of these.")
    return None


def _by_stored_name(policy: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """The parameters of an adapter by the names that PEFT stores them under, which lack the adapter's."""
    # A layer may bear the adapter's name as well.
    own = adapter_parameters(policy, adapter).items()
    return {".".join(name.rsplit(f".{adapter}.", 1)): parameter for name, parameter in own}


def load_adapter(policy: nn.Module, adapter: str, path: Path) -> None:
    """Loads LoRA weights from a safetensors file into an adapter; raises as `load_tensors` if they do not fit."""
    own = _by_stored_name(policy, adapter)
    with torch.no_grad():
        for name, tensor in load_tensors(path, own).items():
            own[name].copy_(tensor)
