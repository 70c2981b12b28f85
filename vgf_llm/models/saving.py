# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Saving and loading a `VGFModel`.

A folder holds the policy as transformers (or PEFT) writes it, so that `AutoModelForCausalLM` loads it alone, and beside
it `vgf_config.json`, `value_head.safetensors` (heads), `value/` (the value's LoRA adapter, PEFT format), `value_model/`
(a value model of its own), `ref_model/` (the reference of a trained policy) and `sequence_value/` (a value of whole
responses).
"""

import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from vgf_llm.models.adapter_rows import adapter_parameters
from vgf_llm.models.backbones import VALUE_ADAPTER
from vgf_llm.models.config import VGFModelConfig
from vgf_llm.models.language_model import inner_model, output_vocab_size, output_width
from vgf_llm.models.sequence_value import SequenceValue
from vgf_llm.models.tensor_files import atomic_save_file, load_tensors
from vgf_llm.models.value import ValueModel, build_value
from vgf_llm.models.valued_policy import ValuedPolicy

Model = TypeVar("Model", bound=ValuedPolicy)

VALUE_HEAD_NAME = "value_head.safetensors"
VALUE_MODEL_DIR = "value_model"
REF_MODEL_DIR = "ref_model"
SEQUENCE_VALUE_DIR = "sequence_value"


def load_value_head(value: ValueModel, directory: Path) -> None:
    """Loads `value_head.safetensors` of `directory` into `value`, if it has parameters."""
    expected = value.state_dict()
    if expected:
        value.load_state_dict(load_tensors(directory / VALUE_HEAD_NAME, expected))


def _policy_state_dict(policy: nn.Module, state: dict[str, Tensor] | None) -> dict[str, Tensor]:
    # LoRA layers keep the original weight as `<name>.base_layer.<parameter>` beside their own.
    if state is None:
        state = inner_model(policy).state_dict()
    elif isinstance(policy, PeftModel):
        state = {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}


def _save_policy_adapter(policy: PeftModel, adapter: str, directory: Path, state: dict[str, Tensor] | None) -> None:
    policy.save_pretrained(directory, selected_adapters=[adapter], state_dict=state)
    if adapter == "default":
        return
    # PEFT puts adapters of other names into a folder of that name, where nothing that loads `directory` finds them.
    for path in (directory / adapter).iterdir():
        os.replace(path, directory / path.name)
    (directory / adapter).rmdir()


def save_vgf_model(
    model: ValuedPolicy,
    save_directory: str | Path,
    *,
    save_policy: bool = True,
    state_dict: dict[str, Tensor] | None = None,
    **kwargs: Any,
) -> None:
    """Writes a `VGFModel` to a folder.

    Args:
        model: The model.
        save_directory: The folder; created if absent.
        save_policy: Whether the policy's weights are written; if not, loading needs `base_model` or the origin named
            in `vgf_config.json`. A PEFT policy writes its own adapter only, as PEFT does.
        state_dict: Whole weights under the names of `model.state_dict()`, where the model itself holds shards of them.
        **kwargs: Handed to `PreTrainedModel.save_pretrained`, such as `max_shard_size`.

    Raises:
        NotADirectoryError: If `save_directory` is a file.
    """
    directory = Path(save_directory)
    if directory.is_file():
        raise NotADirectoryError(f"`save_directory` {str(directory)!r} is a file; expected a folder.")
    directory.mkdir(parents=True, exist_ok=True)

    def part(name: str) -> dict[str, Tensor] | None:
        if state_dict is None:
            return None
        return {key.removeprefix(name): tensor for key, tensor in state_dict.items() if key.startswith(name)}

    policy = part("policy.")
    if save_policy:
        if model.policy_adapter is not None:
            _save_policy_adapter(model.policy, model.policy_adapter, directory, policy)
        else:
            weights = _policy_state_dict(model.policy, policy)
            inner_model(model.policy).save_pretrained(directory, state_dict=weights, **kwargs)
    if model.has_value_adapter:
        model.policy.save_pretrained(directory, selected_adapters=[VALUE_ADAPTER], state_dict=policy)
    if model.value_model is not None:
        model.value_model.save_pretrained(directory / VALUE_MODEL_DIR, state_dict=part("value_model."), **kwargs)
    if model.ref_model is not None:
        model.ref_model.save_pretrained(directory / REF_MODEL_DIR, state_dict=part("ref_model."), **kwargs)
    if model.sequence_value is not None:
        if not isinstance(model.sequence_value, SequenceValue):
            raise TypeError(
                f"`sequence_value` is a {type(model.sequence_value).__name__}, which has no file format; only a "
                "SequenceValue is saved with its model. Set it to None first and pass yours to `generate`."
            )
        model.sequence_value.save_pretrained(
            directory / SEQUENCE_VALUE_DIR, state_dict=part("sequence_value."), **kwargs
        )
    config = model.vgf_config
    head = model.value.state_dict() if state_dict is None else part("value.")
    if head:
        metadata = {
            "format": "pt",
            "base_model_name_or_path": str(config.base_model_name_or_path),
            "base_model_revision": str(config.base_model_revision),
        }
        atomic_save_file(head, directory / VALUE_HEAD_NAME, metadata)
    config.save(directory)  # last: a folder with vgf_config.json is whole


def _load_policy(
    directory: Path, config: VGFModelConfig, base_model: "str | nn.Module | None", model_kwargs: dict[str, Any]
) -> nn.Module:
    if isinstance(base_model, PeftModel):
        policy = base_model
    elif (directory / "adapter_config.json").is_file():
        origin = base_model or PeftConfig.from_pretrained(str(directory)).base_model_name_or_path
        if not isinstance(origin, nn.Module):
            origin = _load_language_model(origin, directory, model_kwargs)
        policy = PeftModel.from_pretrained(origin, str(directory))
    elif isinstance(base_model, nn.Module):
        policy = base_model
    elif base_model is None and (directory / "config.json").is_file():
        policy = _load_language_model(str(directory), directory, model_kwargs)
    else:
        policy = _load_language_model(base_model or config.base_model_name_or_path, directory, model_kwargs)
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
    return policy


def _load_language_model(origin: "str | None", directory: Path, model_kwargs: dict[str, Any]) -> PreTrainedModel:
    if not origin:
        raise ValueError(
            f"{directory} holds no policy weights and names no base model; pass `base_model=` (a model or a path)."
        )
    try:
        return AutoModelForCausalLM.from_pretrained(origin, **model_kwargs)
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
    revision: str | None = None,
    trust_remote_code: bool = False,
    **model_kwargs: Any,
) -> Model:
    """Loads a `VGFModel` from a folder or the hub.

    Args:
        cls: The class of the model.
        pretrained_model_name_or_path: A folder that `save_vgf_model` wrote, or a hub id.
        base_model: The policy, for a folder without it: a model, a path or a hub id. A policy adapter in the folder is
            put on it, unless it is a PEFT model already.
        revision: The hub revision.
        trust_remote_code: Whether the policy may run code of its own repository.
        **model_kwargs: Handed to `AutoModelForCausalLM.from_pretrained`, such as `dtype` or `device_map`.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: If the folder or a file in it is missing.
        ValueError: If files are truncated or do not fit each other; the message names the file, what was expected and
            what was found.
    """
    directory = Path(pretrained_model_name_or_path)
    if not directory.is_dir():
        if directory.is_absolute() or str(pretrained_model_name_or_path).count("/") != 1:
            raise FileNotFoundError(f"{str(directory)!r} is neither a folder nor a hub id of the form 'owner/name'.")
        directory = Path(snapshot_download(str(pretrained_model_name_or_path), revision=revision))
    config = VGFModelConfig.load(directory)
    model_kwargs = {**model_kwargs, "trust_remote_code": trust_remote_code}
    policy = _load_policy(directory, config, base_model, model_kwargs)
    value_model = ref_model = None
    if config.backbone == "model":
        value_model = _load_language_model(str(directory / VALUE_MODEL_DIR), directory, model_kwargs)
        if output_width(value_model) != config.hidden_size:
            raise ValueError(
                f"{directory / VALUE_MODEL_DIR} has width {output_width(value_model)}; expected {config.hidden_size}."
            )
    if (directory / REF_MODEL_DIR).is_dir():
        ref_model = _load_language_model(str(directory / REF_MODEL_DIR), directory, model_kwargs)
    sequence_value = None
    if (directory / SEQUENCE_VALUE_DIR).is_dir():
        sequence_value = SequenceValue.from_pretrained(directory / SEQUENCE_VALUE_DIR, **model_kwargs)
    value = build_value(
        config.parametrization,
        width=config.hidden_size,
        vocab_size=config.vocab_size,
        embedding_width=output_width(policy),
        head_hidden_size=config.head_hidden_size,
        reward_kind=config.reward_kind,
    )
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
        load_value_adapter(model, directory)
    return model.eval()


def load_value_adapter(model: ValuedPolicy, directory: Path) -> None:
    """Loads the value's LoRA weights of `directory` into `model`.

    Args:
        model: A model with a value adapter of the same shape.
        directory: The folder that holds `value/`.

    Raises:
        FileNotFoundError: If the adapter's file is missing.
        ValueError: If it is truncated or of another shape.
    """
    own: dict[str, Tensor] = {
        ".".join(name.rsplit(f".{VALUE_ADAPTER}.", 1)): parameter  # a layer may bear the adapter's name as well
        for name, parameter in adapter_parameters(model.policy, VALUE_ADAPTER).items()
    }
    found = load_tensors(directory / VALUE_ADAPTER / "adapter_model.safetensors", own)
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
