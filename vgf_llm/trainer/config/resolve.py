# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What the settings of TRL and transformers become in a `VGFConfig`: kept, dropped, moved or refused.

The functions take the configuration that is being built and change it in place.
"""

import dataclasses
from typing import Any, cast

from transformers import GenerationConfig

from vgf_llm.command_line import did_you_mean
from vgf_llm.functional._checks import shown
from vgf_llm.trainer.config.fields import check_field
from vgf_llm.trainer.config.tables import ENTROPY, FIXED_SAMPLING, IGNORED, SAMPLING

# Arguments of `generate` beside those of `GenerationConfig` that `generation_kwargs` may hold.
_GENERATE_ARGUMENTS = {"logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria", "tokenizer"}


def settings_dict(value: dict | str | None) -> dict[str, Any]:
    """Returns a setting that is a dict: from the command line it comes as text, which `__post_init__` has read."""
    return dict(cast(dict[str, Any] | None, value) or {})


def changed(value: Any, default: Any) -> bool:
    """Whether a setting differs from its default; of values of another type (tensors, say) no comparison is asked."""
    plain = isinstance(value, (bool, int, float, str, type(None)))
    return not plain or value != default


def drop_ignored(config: Any) -> list[str]:
    """Sets policy-gradient settings back to TRL's defaults; returns what to say about those that were changed."""
    given: dict[str, Any] = config.__dict__.pop("_foreign", {})
    # The model behind a log-ratio value is a policy, which has an entropy.
    ignored = IGNORED if config.value_parametrization == "log_ratio" else {**IGNORED, **ENTROPY}
    acting: list[str] = []
    if isinstance(config.scale_rewards, bool):  # TRL's names for them
        config.scale_rewards = "group" if config.scale_rewards else "none"
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if item.name in ignored:
            if changed(value, item.default):
                given[item.name] = value
            setattr(config, item.name, item.default)
        elif item.name in ENTROPY and changed(value, item.default):
            acting.append(f"`{item.name}`={shown(value)}")
    notes: list[str] = []
    if given:
        by_reason: dict[str, list[str]] = {}
        for name, value in given.items():
            by_reason.setdefault(ignored[name], []).append(f"`{name}`={shown(value)}")
        reasons = "; ".join(f"{', '.join(names)} ({why})" for why, names in by_reason.items())
        notes.append(f"Settings of policy gradients have no meaning here and were dropped: {reasons}.")
    if acting:
        notes.append(
            f"{', '.join(acting)}: the entropy bonus is of the model behind the value, which trains, not of the frozen "
            "policy; `min_entropy` of `transport` leaves certain tokens alone."
        )
    return notes


def refuse_features(config: Any) -> None:
    """Refuses features of TRL and transformers that the trainer cannot have."""
    if config.use_transformers_continuous_batching or config.use_transformers_paged:
        name = "use_transformers_paged" if config.use_transformers_paged else "use_transformers_continuous_batching"
        raise ValueError(
            f"`{name}=True` is not supported, because the value's adapter shares batches with the policy. Leave "
            "it False."
        )
    if config.use_liger_kernel:
        raise ValueError(
            "`use_liger_kernel=True` replaces layers of the model, whose own logits are what values and "
            "log-probabilities are made of. Leave it False."
        )
    # Halving the batch on out-of-memory would leave groups of completions incomplete.
    if config.auto_find_batch_size:
        raise ValueError(
            "`auto_find_batch_size=True` is not supported: a generation batch must hold all `num_generations` "
            "completions of a prompt, and a reduced batch may not. Set it to False and lower "
            "`per_device_train_batch_size`."
        )
    parallel = config.parallelism_config
    if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled):
        raise ValueError(
            "`parallelism_config` enables sequence parallelism, which cannot be applied: the model inputs are "
            "built inside the trainer, after generation. Set both `cp_size=1` and `sp_size=1`."
        )
    if config.torch_compile and config.gradient_checkpointing:
        raise ValueError(
            "`torch_compile=True` cannot trace the recomputation of `gradient_checkpointing=True`, which has to "
            "know the adapter of every row. Set `gradient_checkpointing=False`, or leave `torch_compile` off."
        )


def resolve_recomputation(config: Any) -> list[str]:
    """Makes gradient checkpointing non-reentrant; returns what to say about it."""
    kwargs = settings_dict(config.gradient_checkpointing_kwargs)
    if not kwargs.get("use_reentrant"):
        return []
    # transformers keeps the setting under both names.
    kwargs["use_reentrant"] = False
    config.gradient_checkpointing_kwargs = config.activation_checkpointing_kwargs = kwargs
    return ["`gradient_checkpointing_kwargs`: `use_reentrant` is False instead of True, as frozen weights need it."]


def resolve_padding(config: Any) -> None:
    value = config.pad_to_multiple_of
    if value == "auto":
        # Neuron compiles once per input shape, so padding bounds the number of compilations.
        value = 128 if config.device.type == "neuron" else None
    elif isinstance(value, str):  # the command line hands numbers over as text
        if value.lower() in ("none", "null"):
            value = None
        elif value.isdecimal() and len(value) < 10:
            value = int(value)
    if value is not None and (isinstance(value, (bool, str)) or value < 1):
        raise ValueError(f"`pad_to_multiple_of` must be a positive integer, 'auto' or None, got {shown(value)}.")
    config.pad_to_multiple_of = value


def resolve_sampling(config: Any) -> None:
    """Moves the keys of `generation_kwargs` that are settings of their own to those settings."""
    kwargs = settings_dict(config.generation_kwargs)
    for key in [key for key in kwargs if key in SAMPLING]:
        name, value = SAMPLING[key], kwargs.pop(key)
        check_field(f"generation_kwargs[{key!r}]", value, like=name)
        setattr(config, name, float(value) if isinstance(getattr(config, name), float) else value)
    for key in [key for key in kwargs if key in FIXED_SAMPLING]:
        (fixed, why), value = FIXED_SAMPLING[key], kwargs.pop(key)
        if changed(value, fixed):
            raise ValueError(f"`generation_kwargs[{key!r}]` must be {fixed!r}, got {shown(value)}: {why}.")
    if config.use_vllm and "seed" in kwargs:
        raise ValueError(
            f"`generation_kwargs['seed']` ({shown(kwargs['seed'])}) would give the completions of a prompt the "
            "same tokens. Leave it out; `seed` decides the seeds of all completions."
        )
    known = vars(GenerationConfig()).keys() | _GENERATE_ARGUMENTS
    unknown = [] if config.use_vllm else [key for key in kwargs if key not in known]
    if unknown:
        raise ValueError(
            f"`generation_kwargs` has {shown(unknown[0])}, which is no argument of `GenerationConfig`."
            + did_you_mean(str(unknown[0]), known, quote="'")
        )
    config.generation_kwargs = kwargs or None
    if (config.cache_implementation or "").startswith("offloaded") and config.device.type == "cpu":
        raise ValueError(
            f"`cache_implementation` ({config.cache_implementation!r}) moves the cache between an accelerator and "
            "the CPU, but training runs on the CPU. Leave it None, or set 'static'."
        )
