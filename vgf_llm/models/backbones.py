# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Where a value reads: checks and constructors of the backbones that `VGFModel` offers."""

import copy
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraModel
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel

from vgf_llm.models.adapter_rows import (
    adapter_rows,
    beyond_plain_lora,
    check_plain_lora,
    is_linear,
    lora_layers,
    not_plain_lora,
)
from vgf_llm.models.language_model import inner_model, probe_logits, same_logits
from vgf_llm.models.value import ValueModel

VALUE_ADAPTER = "value"


def own_adapter(policy: PreTrainedModel | PeftModel) -> str | None:
    """Returns the policy's own adapter, never the value's: the active one if it has several, `None` if it has none."""
    if not isinstance(policy, PeftModel):
        return None
    own = [name for name in policy.peft_config if name != VALUE_ADAPTER]
    active = [name for name in policy.active_adapters if name in own]
    return (active or own or [None])[0]


def check_policy_adapters(policy: PreTrainedModel | PeftModel) -> None:
    """Checks the adapters that a policy arrives with, before the value adds one.

    Raises ValueError if one has the value's name, several are active, or the active one is not plain LoRA.
    """
    if not isinstance(policy, PeftModel):
        return
    if VALUE_ADAPTER in policy.peft_config:
        raise ValueError(
            f"The policy has an adapter called {VALUE_ADAPTER!r}, the name of the value's own. Merge it with "
            "merge_and_unload(), load it under another name (`adapter_name=`), or load a saved VGFModel with "
            "VGFModel.from_pretrained."
        )
    if len(policy.active_adapters) > 1:
        raise ValueError(
            f"The policy has several active adapters, {sorted(policy.active_adapters)}; a row has one. Merge them with "
            "merge_and_unload() or add_weighted_adapter(), or choose one with set_adapter()."
        )
    adapter = own_adapter(policy)
    if adapter is not None:
        check_plain_lora(policy, adapter)


def check_value_fits(value: ValueModel, *, width: int, vocab_size: int, embedding_width: int) -> None:
    """Raises ValueError, which names the size, unless the value's head was built for the models around it."""
    head = getattr(value, "head", None)
    for name, size in (("width", width), ("vocab_size", vocab_size), ("embedding_width", embedding_width)):
        found = getattr(head, name, size)
        if found != size:
            raise ValueError(
                f"`value` has a {type(head).__name__} of {name} {found}; these models need {name} {size}. "
                f"Build it with build_value({value.parametrization!r}, {name}={size}, ...)."
            )


def linear_targets(policy: PreTrainedModel | PeftModel, config: LoraConfig) -> list[str]:
    """The linear layers of a policy that an adapter on "all-linear" goes on; raises ValueError if there are none.

    Those are the linear layers of its text decoder, without the output embedding, routed experts, and what PEFT cannot
    put LoRA on in a layout (projections that a fused Mamba kernel reads by their weight). Their names are last
    components where these say enough, whole names otherwise.
    """
    inner = inner_model(policy)
    output, decoder = inner.get_output_embeddings(), inner.get_decoder()
    inside = None if decoder is None or decoder is inner else {id(module) for module in decoder.modules()}
    layers = {name: module for name, module in inner.named_modules() if is_linear(module)}
    wanted = {
        name
        for name, module in layers.items()
        if module is not output
        and (inside is None or id(module) in inside)
        and "experts" not in name.split(".")
        and not any(name.startswith(f"{parent}.") for parent in layers)  # the inside of an adapted layer
        and _peft_accepts(config, inner, name)
    }
    if not wanted:
        raise ValueError(
            f"{type(inner).__name__} has no linear layer that LoRA can go on. Use `backbone='copy'`, or pass a "
            "`value_model` of its own."
        )
    short = {name.rpartition(".")[2] for name in wanted}
    reached = {name for name, _ in inner.named_modules() if name.rpartition(".")[2] in short}
    return sorted(short if reached == wanted else wanted)


def _peft_accepts(config: LoraConfig, model: PreTrainedModel, name: str) -> bool:
    alone: Any = copy.deepcopy(config)
    alone.target_modules, alone.target_parameters = {name}, None
    try:
        LoraModel._check_target_module_compatiblity(None, config, model, name.rpartition(".")[2])
        # PEFT reads some names of older mixture-of-experts layouts as the expert parameters that took their place.
        convert_peft_config_for_transformers(alone, model=model, conversions=None)
    except ValueError:
        return False
    return not alone.target_parameters


def add_value_adapter(policy: PreTrainedModel | PeftModel, lora_config: LoraConfig | None) -> PeftModel:
    """Puts the value's LoRA adapter on the policy, in place, without changing what the policy itself computes.

    `lora_config` is not modified; by default it is rank 16 on all linear layers. Raises ValueError unless it is plain
    LoRA that starts at zero over an untouched base.
    """
    config: Any = copy.deepcopy(lora_config)
    if config is None:
        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    found = beyond_plain_lora(config)
    if not found and config.init_lora_weights is False:
        found = ["init_lora_weights=False"]
    if found:
        raise not_plain_lora(VALUE_ADAPTER, found)
    if isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear":
        config.target_modules = linear_targets(policy, config)
    before, own = probe_logits(policy), own_adapter(policy)
    if isinstance(policy, PeftModel):
        policy.add_adapter(VALUE_ADAPTER, config)
    else:
        config.base_model_name_or_path = None  # a saved one names another place, and PEFT would warn of it
        policy = get_peft_model(policy, config, adapter_name=VALUE_ADAPTER)
        # The adapter belongs to the value: whoever calls the policy gets the bare base model.
        policy.base_model.disable_adapter_layers()
    check_plain_lora(policy, VALUE_ADAPTER)
    if before is None:
        return policy
    with adapter_rows(policy, own):
        after = probe_logits(policy)
    starts = (layer.lora_B[VALUE_ADAPTER].weight for layer in lora_layers(policy) if VALUE_ADAPTER in layer.lora_B)
    if after is None or not same_logits(after, before, inner_model(policy).dtype) or any(b.any() for b in starts):
        raise not_plain_lora(VALUE_ADAPTER, ["a start that moves the base, or is not zero"])
    return policy


def enable_checkpointing(model: PreTrainedModel, kwargs: dict[str, Any], options: dict[str, Any]) -> None:
    """Turns gradient checkpointing on; `kwargs` are torch's, `options` those of transformers' own method."""
    # transformers renamed the method in 5.20 and warns about the old name since.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(kwargs, **options)


def disable_checkpointing(model: PreTrainedModel) -> None:
    """Turns gradient checkpointing off."""
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    disable()


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
