# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Where a value reads: checks and constructors of the backbones that `VGFModel` offers."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from vgf_llm.models.adapter_rows import check_plain_lora
from vgf_llm.models.language_model import inner_model
from vgf_llm.models.value import ValueModel

VALUE_ADAPTER = "value"


def is_value_adapter(name: str) -> bool:
    """Tells whether a parameter of the policy, by its name, belongs to the value's adapter."""
    return ".lora_" in name and f".{VALUE_ADAPTER}." in name


def own_adapter(policy: PreTrainedModel | PeftModel) -> str | None:
    """Returns the policy's own adapter, the active one if it has several, or `None` if it has none.

    Args:
        policy: A language model, PEFT-wrapped or not.

    Returns:
        The adapter's name; never the value's.
    """
    if not isinstance(policy, PeftModel):
        return None
    own = [name for name in policy.peft_config if name != VALUE_ADAPTER]
    active = [name for name in policy.active_adapters if name in own]
    return (active or own or [None])[0]


def check_value_fits(value: ValueModel, *, width: int, vocab_size: int, embedding_width: int) -> None:
    """Checks that the head of a value was built for the models around it.

    Args:
        value: The value.
        width: D of the value backbone.
        vocab_size: V of the policy.
        embedding_width: Width of the policy's output embedding.

    Raises:
        ValueError: If a size differs; the message names it.
    """
    head = getattr(value, "head", None)
    for name, size in (("width", width), ("vocab_size", vocab_size), ("embedding_width", embedding_width)):
        found = getattr(head, name, size)
        if found != size:
            raise ValueError(
                f"`value` has a {type(head).__name__} of {name} {found}; these models need {name} {size}. "
                f"Build it with build_value({value.parametrization!r}, {name}={size}, ...)."
            )


def copy_without_adapters(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Returns a trainable copy of a plain model.

    Raises:
        ValueError: If the model carries PEFT adapters.
    """
    if isinstance(model, PeftModel):
        raise ValueError(
            "`backbone='copy'` copies a plain model; the policy carries PEFT adapters. Use `backbone='lora'`, or merge "
            "the adapters first with `merge_and_unload()`."
        )
    return copy.deepcopy(inner_model(model))


def add_value_adapter(policy: PreTrainedModel | PeftModel, lora_config: LoraConfig | None) -> PeftModel:
    """Puts the value's LoRA adapter on the policy, without changing what the policy itself computes.

    Args:
        policy: The policy; modified in place.
        lora_config: Plain LoRA on linear layers; by default rank 16 on all of them.

    Returns:
        The PEFT model that holds policy and adapter.

    Raises:
        ValueError: If the adapter is not plain LoRA.
    """
    config = lora_config or LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    if isinstance(policy, PeftModel):
        if VALUE_ADAPTER not in policy.peft_config:
            policy.add_adapter(VALUE_ADAPTER, config)
    else:
        policy = get_peft_model(policy, config, adapter_name=VALUE_ADAPTER)
        # The adapter belongs to the value: whoever calls the policy gets the bare base model.
        policy.base_model.disable_adapter_layers()
    check_plain_lora(policy, VALUE_ADAPTER)
    return policy


def enable_checkpointing(model: PreTrainedModel, kwargs: dict[str, Any], options: dict[str, Any]) -> None:
    """Turns gradient checkpointing on.

    Args:
        model: A transformers model.
        kwargs: For `torch.utils.checkpoint`.
        options: For transformers' own method.
    """
    # transformers renamed the method in 5.20 and warns about the old name since.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(kwargs, **options)


def disable_checkpointing(model: PreTrainedModel) -> None:
    """Turns gradient checkpointing off.

    Args:
        model: A transformers model.
    """
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    disable()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switches a model to evaluation mode, without dropout, for as long as the context lasts."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def drops(model: nn.Module) -> bool:
    """Tells whether some part of `model` is in training mode and has dropout, as a layer or in its configuration."""
    for module in model.modules():
        if not module.training:
            continue
        if isinstance(module, nn.Dropout) and module.p > 0:
            return True
        if isinstance(module, PreTrainedModel):
            settings = module.config.get_text_config().to_dict()
            if any("drop" in name and isinstance(rate, float) and rate > 0 for name, rate in settings.items()):
                return True
    return False
