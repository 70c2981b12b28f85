# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""From a saved VGF model to what a serving engine is given: the policy's own files, and the value beside them."""

from pathlib import Path
from typing import Any

from vgf_llm.models.config import CONFIG_NAME, VGFModelConfig
from vgf_llm.models.merging import merge_backbone
from vgf_llm.models.saving import REF_MODEL_DIR, VALUE_HEAD_NAME, VALUE_MODEL_DIR, load_value_head, load_vgf_model
from vgf_llm.models.tensor_files import check_files
from vgf_llm.models.value import ValueModel, build_saved_value
from vgf_llm.models.valued_policy import ValuedPolicy
from vgf_llm.serving.pair import ARCHITECTURE, LOGITS_KEY, VALUE_MODEL_KEY, check_same_shape
from vgf_llm.serving.transport import check_servable

PROCESSOR = "vgf_llm.serving.engine:VGFLogitsProcessor"
RATIO_PROCESSOR = "vgf_llm.serving.engine:VGFRatioLogitsProcessor"
MODEL_KEY = "vgf_model"  # of vLLM's `additional_config`
_VALUE_FILES = {CONFIG_NAME, VALUE_HEAD_NAME, VALUE_MODEL_DIR, REF_MODEL_DIR, "value"}
_TRAINING_SUFFIXES = (".pt", ".pth", ".bin")


def load_served_value(path: str | Path) -> tuple[ValueModel, VGFModelConfig]:
    """Loads the value of a saved model without its policy, in evaluation mode, and the configuration.

    Raises FileNotFoundError, or ValueError if a file is not whole, or an engine cannot compute the model's transport.
    """
    directory = Path(path)
    config = VGFModelConfig.load(directory)
    check_files(directory, config.files or {}, CONFIG_NAME)
    value = build_saved_value(config, config.hidden_size)
    check_servable(config.transport)
    if value.needs_logits and (directory / REF_MODEL_DIR).exists():
        raise ValueError(
            f"The policy in {str(directory)!r} was trained itself, so that its log_ratio value reads a third "
            "model, the reference. The policy is a plain model, which vLLM serves without transport."
        )
    load_value_head(value, directory)
    return value.eval().requires_grad_(False), config


def policy_view(path: str | Path, view: str | Path) -> str:
    """Makes a folder, `view`, that holds the policy's files alone, as links.

    Engines load every safetensors file of a folder, and would take the value's for weights of the policy. Returns what
    to give the engine as model: the view, or the policy's origin where the saved model has no weights of it. Raises
    ValueError if the policy is a LoRA adapter on a base, or names no origin.
    """
    directory, target = Path(path).resolve(), Path(view)
    if (directory / "adapter_config.json").is_file():
        raise ValueError(
            f"The policy in {str(directory)!r} is a LoRA adapter. Merge it first: load it with "
            "AutoPeftModelForCausalLM, `merge_and_unload()`, and save the VGFModel with the merged policy."
        )
    if not (directory / "config.json").is_file():
        origin = VGFModelConfig.load(directory).base_model_name_or_path
        if not origin:
            raise ValueError(f"{str(directory)!r} holds no policy weights and names no base model to serve.")
        return origin
    for source in sorted(directory.iterdir()):
        of_training = source.name.startswith(("value_buffer", "value_round")) or source.suffix in _TRAINING_SUFFIXES
        if source.is_file() and source.name not in _VALUE_FILES and not of_training:
            (target / source.name).symlink_to(source)
    return str(target)


def value_folder(path: str | Path, view: str | Path, config: VGFModelConfig) -> str:
    """Returns the folder of the model that a value reads; a value's adapter is merged into one below `view`.

    Merging takes the memory of two policies for the time of this call, and the room of one on the disk of `view`.
    """
    if config.backbone == "model":
        return str(Path(path).resolve() / VALUE_MODEL_DIR)
    merged = Path(view) / VALUE_MODEL_DIR
    merge_backbone(load_vgf_model(ValuedPolicy, path)).save_pretrained(merged)
    return str(merged)


def engine_arguments(path: str | Path, view: str | Path) -> dict[str, Any]:
    """Returns the arguments of `vllm.LLM` that serve a saved model with transport.

    Args:
        path: The saved model.
        view: An empty folder that lives as long as the engine; see `policy_view`.

    Returns:
        `model`, `logits_processors`, `additional_config` and `logprobs_mode`; `revision` where the policy is loaded
        from its origin at a known commit; `hf_overrides` for a value that reads a model of its own, see
        `vgf_llm.serving.pair`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the model cannot be served; the message says why and what can.
    """
    value, config = load_served_value(path)  # its errors belong here, not into the engine's process
    model = policy_view(path, view)
    arguments: dict[str, Any] = {"model": model}
    if model != str(view) and config.base_model_revision:
        arguments["revision"] = config.base_model_revision
    arguments |= {
        "logits_processors": [RATIO_PROCESSOR if value.needs_logits else PROCESSOR],
        "additional_config": {MODEL_KEY: str(Path(path).resolve())},
        # Scores travel as log-probabilities of what the processors made.
        "logprobs_mode": "processed_logprobs",
    }
    if config.backbone != "policy":
        folder = value_folder(path, view, config)
        check_same_shape(model, folder, arguments.get("revision"))
        arguments["hf_overrides"] = {"architectures": [ARCHITECTURE]}
        arguments["additional_config"] |= {VALUE_MODEL_KEY: folder, LOGITS_KEY: value.needs_logits}
    return arguments
