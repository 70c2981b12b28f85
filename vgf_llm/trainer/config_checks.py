# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Checks of `VGFConfig` across its fields. Each names what does not fit and what would."""

from typing import TYPE_CHECKING, cast

from vgf_llm.trainer.batch_sizes import check_whole_groups

if TYPE_CHECKING:
    from vgf_llm.trainer.vgf_config import VGFConfig

VALUE_PARAMETRIZATIONS = ("log_ratio", "bilinear", "vocab", "v_head", "sequence")
VALUE_LOSSES = ("auto", "pairwise", "likelihood", "bernoulli", "regression")
VALUE_POOLINGS = ("mean", "last")
TRANSPORT_METRICS = ("fisher", "euclidean")
ROLLOUT_POLICIES = ("auto", "transport", "value")
PROMPT_SELECTIONS = ("dataset", "unsolved")
# Any other text is read as the path or hub id of a model.
VALUE_BACKBONES = ("lora", "copy", "policy")


def check_backbone(config: "VGFConfig") -> None:
    """Refuses a backbone that does not exist or does not fit the parametrisation."""
    backbone = config.value_backbone
    if not isinstance(backbone, str) or not backbone.strip():
        raise ValueError(
            f"`value_backbone` must be one of {list(VALUE_BACKBONES)} or the path or hub id of a model, "
            f"got {backbone!r}."
        )
    if backbone not in VALUE_BACKBONES and backbone.lower() in VALUE_BACKBONES:
        raise ValueError(f"`value_backbone` is written {backbone.lower()!r}, got {backbone!r}.")
    if config.value_parametrization == "log_ratio":
        if backbone == "policy":
            raise ValueError(
                "`value_backbone='policy'` gives frozen features of the policy, but "
                "`value_parametrization='log_ratio'` is the log-probability under a trained model minus that under "
                "the base, which is zero for the policy itself. Choose `value_backbone='lora'` or 'copy', or a "
                "head: `value_parametrization='bilinear'`, 'vocab' or 'v_head'."
            )
        if config.value_head_hidden_size is not None:
            raise ValueError(
                f"`value_head_hidden_size` ({config.value_head_hidden_size}) is for heads, and "
                "`value_parametrization='log_ratio'` has none. Leave it None, or choose 'bilinear', 'vocab' or "
                "'v_head'."
            )
    check_sequence_value(config)
    modules = config.value_lora_target_modules
    if modules == ["all-linear"]:
        config.value_lora_target_modules = "all-linear"
    elif not modules or not (isinstance(modules, str) or all(isinstance(name, str) for name in modules)):
        raise ValueError(f"`value_lora_target_modules` must be 'all-linear' or names of modules, got {modules!r}.")


def check_sequence_value(config: "VGFConfig") -> None:
    """Refuses settings of sequence values for others, and those of others for sequence values."""
    if config.value_parametrization != "sequence":
        for name, off in (("value_ensemble_size", 1), ("value_pooling", "mean")):
            if getattr(config, name) != off:
                raise ValueError(
                    f"`{name}` ({getattr(config, name)!r}) is for values of whole responses. Leave it {off!r}, or "
                    "set `value_parametrization='sequence'`."
                )
        return
    if config.value_backbone in ("lora", "policy"):
        raise ValueError(
            f"`value_parametrization='sequence'` needs a backbone of its own, whose embeddings are moved; "
            f"`value_backbone` is {config.value_backbone!r}. Set `value_backbone='copy'`, or the path of a model."
        )
    if config.value_loss in ("bernoulli", "likelihood"):
        raise ValueError(
            f"`value_loss` of a sequence value must be 'pairwise' or 'regression', got {config.value_loss!r}."
        )
    if config.value_head_hidden_size is not None:
        raise ValueError("`value_head_hidden_size` is for token-level heads; a sequence value's are linear.")
    if config.distill_coef > 0 and config.rollout_transport_steps == 0:
        raise ValueError(
            f"`distill_coef` ({config.distill_coef}) regresses the policy to transported responses, but "
            "`rollout_transport_steps` is 0, so that none are sampled. Set it to `transport_steps`, for example."
        )


def check_loss(config: "VGFConfig") -> None:
    """Refuses a loss that the value or the batches cannot have."""
    if config.value_parametrization == "v_head":
        for name, off in (("td_lambda", 1.0), ("distill_coef", 0.0)):
            if getattr(config, name) != off:
                raise ValueError(
                    f"`{name}` ({getattr(config, name)}) needs values of candidate tokens, which "
                    f"`value_parametrization='v_head'`, a value of states, does not have. Leave it {off}, or "
                    "choose 'log_ratio', 'bilinear' or 'vocab'."
                )
    if config.needs_whole_groups:
        check_whole_groups(config.per_device_train_batch_size, cast(int, config.num_generations))
        if config.td_lambda != 1.0:
            raise ValueError(
                f"`td_lambda` ({config.td_lambda}) has no effect on the pairwise value loss or on a log-ratio value, "
                "which use outcomes. Leave it 1.0, or choose a head with `value_loss='bernoulli'` or 'regression'."
            )
    if config.expectile != 0.5 and config.value_loss != "regression":
        raise ValueError(
            f"`expectile` ({config.expectile}) shapes the regression loss alone. Set `value_loss='regression'` "
            f"(now {config.value_loss!r}), or leave it 0.5."
        )
    if config.value_parametrization != "log_ratio" and config.value_loss == "likelihood":
        raise ValueError(
            "`value_loss='likelihood'` is of the model behind a log-ratio value, but `value_parametrization` is "
            f"{config.value_parametrization!r}. Set it to 'log_ratio', or `value_loss='bernoulli'`."
        )
    if config.value_loss == "likelihood" and config.winner_coef is not None:
        raise ValueError(
            f"`winner_coef` ({config.winner_coef}) weighs the likelihood of winners beside pairs, and "
            "`value_loss='likelihood'` is that likelihood alone. Leave one of the two out."
        )
    if config.value_parametrization == "log_ratio" and config.value_loss == "regression":
        raise ValueError(
            "`value_loss='regression'` does not fit `value_parametrization='log_ratio'`: a log-ratio of two "
            "distributions gives differences of values within a state, not their level. Use 'pairwise' or "
            "'bernoulli', or a head: 'bilinear', 'vocab' or 'v_head'."
        )


def check_amounts(config: "VGFConfig") -> None:
    """Refuses amounts that leave nothing to train, to keep or to move."""
    if config.replay_ratio > 0 and config.buffer_size < cast(int, config.num_generations):
        raise ValueError(
            f"`buffer_size` ({config.buffer_size}) must hold at least the `num_generations` ({config.num_generations}) "
            "completions of one prompt. Raise it, or set `replay_ratio=0` to train without a buffer."
        )
    if config.rollout_fraction < 1 and config.replay_ratio == 0:
        raise ValueError(
            f"`rollout_fraction` ({config.rollout_fraction}) ends training on the buffer alone, which "
            "`replay_ratio=0` leaves empty. Raise `replay_ratio`, or leave `rollout_fraction` 1."
        )
    if config.value_coef == 0 and config.distill_coef == 0:
        raise ValueError("`value_coef` and `distill_coef` are both 0: there is nothing to train. Raise one of them.")
    if config.rollout_policy == "value":
        _check_value_rollouts(config)
    _check_base_generations(config)
    if config.prompt_selection == "unsolved" and config.rollout_prefetch > 0:
        raise ValueError(
            f"`rollout_prefetch` ({config.rollout_prefetch}) samples rounds before the outcomes are known that "
            "`prompt_selection='unsolved'` chooses their prompts by. Set it to 0, or `prompt_selection='dataset'`."
        )
    if config.use_vllm and config.rollout_transport_steps > 0:
        raise ValueError(
            f"`use_vllm=True` samples from the policy without transport, but `rollout_transport_steps` is "
            f"{config.rollout_transport_steps}. Set it to 0, or `use_vllm=False`."
        )
    if config.distill_coef > 0 and config.transport_steps == 0:
        raise ValueError(
            f"`distill_coef` ({config.distill_coef}) regresses the policy to the transported distribution, which is "
            "the base model itself with `transport_steps=0`. Set `transport_steps` to at least 1."
        )


def _check_value_rollouts(config: "VGFConfig") -> None:
    """Refuses to sample a value that is no model, or in two ways, or with an engine that has not got it."""
    start = "`rollout_policy='value'` samples the model behind a log-ratio value, "
    if config.value_parametrization != "log_ratio":
        raise ValueError(
            f"{start}but `value_parametrization` is {config.value_parametrization!r}. Set it to 'log_ratio', or leave "
            "`rollout_policy='transport'`."
        )
    if config.rollout_transport_steps > 0:
        raise ValueError(
            f"{start}without transport, but `rollout_transport_steps` is {config.rollout_transport_steps}. Leave one "
            "of the two out."
        )
    if config.use_vllm:
        raise ValueError(f"{start}which vLLM's engine does not hold. Set `use_vllm=False`, or 'transport'.")


def _check_base_generations(config: "VGFConfig") -> None:
    """Refuses completions of the base where all are, or where the others would not be told from them."""
    count, total = config.num_base_generations, cast(int, config.num_generations)
    if not count:
        return
    if not config.rolls_out_value:
        raise ValueError(
            f"`num_base_generations` ({count}) leaves the other completions to the value, but all of them are the base "
            "model's. Leave it 0, or set `rollout_policy='value'` or `rollout_transport_steps`."
        )
    if count >= total:
        raise ValueError(
            f"`num_base_generations` ({count}) must be less than `num_generations` ({total}). For completions of the "
            "base model alone set `rollout_policy='transport'` and `rollout_transport_steps=0`."
        )
    rows = config.rows_per_round
    if rows % total:
        raise ValueError(
            f"`num_base_generations` ({count}) needs whole groups in each process, but a round has {rows} completions "
            f"of one (`per_device_train_batch_size` * `steps_per_generation`), no multiple of `num_generations` "
            f"({total}). Set `steps_per_generation` to a multiple of {total}, for example."
        )


def check_vllm(config: "VGFConfig") -> None:
    """Refuses sampling ahead where the samples would be others, or the engine could not give them."""
    kwargs = config.generation_kwargs
    if config.use_vllm and isinstance(kwargs, dict) and "seed" in kwargs:
        raise ValueError(
            f"`generation_kwargs['seed']` ({kwargs['seed']!r}) would give the completions of a prompt the same tokens. "
            "Leave it out; `seed` decides the seeds of all completions."
        )
    if config.rollout_prefetch == 0:
        return
    start = f"`rollout_prefetch` ({config.rollout_prefetch}) samples rounds while the value trains, "
    for name, why in (
        ("distill_coef", "but `distill_coef` ({}) trains the policy meanwhile: the samples would be out of date"),
        (
            "rollout_transport_steps",
            "but `rollout_transport_steps` ({}) samples with the value itself: the samples would be out of date",
        ),
    ):
        if getattr(config, name) > 0:
            raise ValueError(f"{start}{why.format(getattr(config, name))}. Set one of the two to 0.")
    if not config.use_vllm:
        raise ValueError(
            f"{start}which takes an engine of its own, but `use_vllm` is False: `generate` runs on the model that "
            "trains. Set `use_vllm=True`, or `rollout_prefetch=0`."
        )
    if config.vllm_enable_sleep_mode:
        raise ValueError(
            f"{start}when `vllm_enable_sleep_mode=True` has taken the engine's memory away. Set "
            "`vllm_enable_sleep_mode=False`, or `rollout_prefetch=0`."
        )
    if config.vllm_mode == "colocate" and config.vllm_tensor_parallel_size > 1:
        raise ValueError(
            f"{start}but an engine with `vllm_tensor_parallel_size={config.vllm_tensor_parallel_size}` communicates "
            "between the processes that train, which could then wait for each other for ever. Use "
            "`vllm_mode='server'` or `vllm_tensor_parallel_size=1`, or set `rollout_prefetch=0`."
        )


CHECKS = (check_backbone, check_loss, check_amounts, check_vllm)
