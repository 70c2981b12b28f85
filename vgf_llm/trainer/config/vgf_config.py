# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The configuration of `VGFTrainer`."""

import dataclasses
import functools
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self, cast

from trl import GRPOConfig, RLOOConfig

from vgf_llm.command_line import did_you_mean
from vgf_llm.functional._checks import shown
from vgf_llm.models.config import TransportConfig
from vgf_llm.trainer.config.batch_sizes import resolve_batch_sizes
from vgf_llm.trainer.config.fields import check_fields
from vgf_llm.trainer.config.resolve import (
    changed,
    drop_ignored,
    refuse_features,
    resolve_padding,
    resolve_recomputation,
    resolve_sampling,
)
from vgf_llm.trainer.config.tables import IGNORED, REMOVED, VALUE_BACKBONES, VALUE_LOSSES
from vgf_llm.trainer.config.transport import TRANSPORT_FIELDS, join_transport, read_transport

# The largest learning rate that public scripts of policy gradients set.
_POLICY_GRADIENT_RATE = 5e-5
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def refuse_removed(name: str) -> None:
    """Raises TypeError if `name` is a setting that is gone, saying what to write instead."""
    if name in REMOVED:
        raise TypeError(f"`{name}` is no longer a setting: {REMOVED[name]}.")


def _takes_transport_settings(cls: type["VGFConfig"]) -> type["VGFConfig"]:
    """Lets the constructor take the fields of `TransportConfig` as keywords, and say what is wrong with others."""
    assign: Callable[..., None] = cls.__init__
    names = [item.name for item in dataclasses.fields(cls) if item.init]

    @functools.wraps(assign)
    def __init__(self: "VGFConfig", *args: Any, **kwargs: Any) -> None:
        flat = {name: kwargs.pop(name) for name in TRANSPORT_FIELDS if name in kwargs}
        if flat:
            kwargs["transport"] = join_transport(read_transport(kwargs.get("transport")), flat)
        # RLOOConfig's own policy-gradient settings are no fields here; `__post_init__` names them with the others.
        self._foreign = {name: kwargs.pop(name) for name in IGNORED if name in kwargs and name not in names}
        for name in kwargs:
            refuse_removed(name)
            if name not in names:
                otherwise = " Its documentation lists all of them."
                raise TypeError(
                    f"{cls.__name__} has no setting `{name}`."
                    + did_you_mean(name, [*names, *TRANSPORT_FIELDS], otherwise, quote="`")
                )
        assign(self, *args, **kwargs)

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


@_takes_transport_settings
@dataclass
class VGFConfig(GRPOConfig):
    r"""
    Configuration class for the [`VGFTrainer`].

    It takes every setting of TRL's [`GRPOConfig`], with its names, types and defaults, and those below. Settings that
    belong to policy gradients (`beta`, `epsilon`, `loss_type`, ...) are accepted and dropped: one warning names them
    with what takes their place. The fields of [`TransportConfig`] (`transport_steps`, `step_size`,
    `top_k_candidates`, ...) may be given as keywords beside the others; they are kept in `transport`.

    Parameters:
        > Parameters that control the value

        value_parametrization (`str`, *optional*, defaults to `"log_ratio"`):
            How the value of a token in a state is computed. One of:

            - `"log_ratio"`: log-probability under a trained model minus that under the base model.
            - `"bilinear"`: a head on the last hidden state, multiplied with the frozen output embeddings.
            - `"vocab"`: a head on the last hidden state with one output per token.
            - `"sequence"`: the value of the whole response, differentiable in its embeddings, for transport of whole
              responses. It needs `value_backbone="copy"` or a path.
        value_backbone (`str`, *optional*, defaults to `"lora"`):
            What the value is computed on: `"lora"` (an adapter of its own on the base model; `peft_config` of the
            trainer configures it), `"copy"` (a trainable copy), `"policy"` (frozen features of the policy, for heads
            alone), or the path or hub id of another model with the same tokenizer.
        value_head_hidden_size (`int`, *optional*):
            Width of the hidden layer of a head. If `None`, the head is linear.
        value_ensemble_size (`int`, *optional*, defaults to `1`):
            Members of a sequence value's ensemble, each with its own head and its own bootstrap of the prompts.
        value_lora_target_modules (`str` or `list[str]`, *optional*):
            Modules that the value's adapter is put on, as PEFT reads them. If `None`, all linear layers but the output
            embedding. A `peft_config` of the trainer takes its place and decides rank and scale as well.
        value_pooling (`str`, *optional*, defaults to `"mean"`):
            How a sequence value is made of the scores of the response's tokens: `"mean"` or `"last"`.

        > Parameters that control the value learning

        value_loss (`str`, *optional*, defaults to `"auto"`):
            `"likelihood"` (of the completions of reward 1 under the model behind a log-ratio value), `"pairwise"`
            (logistic, over pairs of completions of one prompt with different rewards), `"bernoulli"` (rewards in
            [0, 1], at every token), `"regression"` (squared error, at every token), or `"auto"`, which lets value and
            rewards decide.
        value_learning_rate (`float`, *optional*):
            Learning rate of the value's parameters. If `None`, `learning_rate`.
        replay_ratio (`float`, *optional*, defaults to `1.0`):
            Completions of earlier rounds drawn from the buffer per fresh completion.
        buffer_size (`int`, *optional*, defaults to `65536`):
            Completions kept in the buffer; the oldest leave first.
        value_holdout_ratio (`float`, *optional*, defaults to `0.05`):
            Fraction of the training prompts that the value never trains on. `value/within_prompt_accuracy` is measured
            on their completions.
        distill_coef (`float`, *optional*, defaults to `0.0`):
            Weight of the regression of the policy to the transported distribution, or, with
            `value_parametrization="sequence"`, to each prompt's transported response of highest value (which needs
            `rollout_policy="transport"`). `0.0` freezes the policy.

        > Parameters that control the transport and the rounds

        transport (`dict[str, Any]`, `str` or [`TransportConfig`], *optional*):
            How far and in which space particles move: the defaults of the saved model, the targets of distillation,
            and the rollouts of `rollout_policy="transport"`. A [`TransportConfig`] once the configuration is built.
        rollout_policy (`str`, *optional*):
            Who samples the training completions. `"base"` is the base model. `"value"` is the model behind a log-ratio
            value, within its own candidates, in one forward per token. `"transport"` is the policy transported as
            `transport` says. If `None` (or `"auto"`), `"value"` for a log-ratio value and `"base"` for others.
            Logged completions and preference pairs need no sampling.
        num_base_generations (`int`, *optional*):
            Of the `num_generations` completions of a training prompt, those that the base model samples where
            `rollout_policy` has the value sample: the base keeps trying what the value has wrongly ruled out. If
            `None`, half of them, rounded down, where the model behind a log-ratio value is sampled, else none.
        prompt_selection (`str`, *optional*, defaults to `"dataset"`):
            `"dataset"` takes the prompts in the order of the data set, shuffled. `"unsolved"` lets earlier outcomes
            choose those of each round: prompts without a completion of reward 1 first, the least tried among them. The
            length of training stays what the epochs make it; rewards have to be 0 or 1.
        contrast (`str`, *optional*, defaults to `"prompt"`):
            What has to have had different rewards before a completion teaches a log-ratio value: its `"prompt"`, or the
            `"run"` so far. Samples of a prompt whose rewards never differ teach the sampler and not the reward;
            `"run"` takes them all the same, which is faster where few completions are right and the value samples all.
        rollout_fraction (`float`, *optional*, defaults to `1.0`):
            Share of the training steps whose rounds are sampled, to the nearest whole round. In the steps after, the
            value trains on the buffer alone, so that what was found last is learned as well as what was found first.
        rollout_prefetch (`int`, *optional*, defaults to `0`):
            Rounds that vLLM samples ahead, in a thread, while the value trains; the policy has to be frozen. The base
            samples the same completions ahead; the value samples with weights that are as many rounds old, and
            `prompt_selection="unsolved"` chooses prompts by outcomes that old. `0` samples each round when it is due.
        max_rounds_without_reward (`int`, *optional*, defaults to `100`):
            Rounds in a row that may bring no reward at all before training stops with an error.

    > [!NOTE]
    > These parameters have default values different from [`~transformers.TrainingArguments`]:
    > - `logging_steps`: Defaults to `10` instead of `500`.
    > - `gradient_checkpointing`: Defaults to `True` instead of `False`.
    > - `bf16`: Defaults to `True` if `fp16` is not set, instead of `False`.
    > - `learning_rate`: Defaults to `1e-4` instead of `5e-5` (and of GRPO's `1e-6`): it trains the adapter or the
    >   head of the value by supervised losses, not the policy by a policy gradient.

    Example:
        >>> args = VGFConfig("out", use_cpu=True, bf16=False, transport_steps=4, step_size=0.5)
        >>> args.transport.transport_steps, args.samples_from, args.base_generations
        (4, 'value', 4)
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "The initial learning rate for AdamW."})

    # Parameters that control the value
    value_parametrization: str = field(
        default="log_ratio",
        metadata={
            "help": "How the value of a token in a state is computed: `log_ratio` (of a trained model to the base), "
            "`bilinear` or `vocab` (heads on the last hidden state), or `sequence` (of the whole response)."
        },
    )
    value_backbone: str = field(
        default="lora",
        metadata={
            "help": "What the value is computed on: `lora`, `copy`, `policy` (frozen features of the policy, for "
            "heads), or the path or hub id of a model with the same tokenizer."
        },
    )
    value_head_hidden_size: int | None = field(
        default=None, metadata={"help": "Width of the hidden layer of a head. If `None`, the head is linear."}
    )
    value_ensemble_size: int = field(
        default=1, metadata={"help": "Members of a sequence value's ensemble, each with its own head."}
    )
    value_lora_target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Modules that the value's adapter is put on. If `None`, all linear layers."},
    )
    value_pooling: str = field(
        default="mean",
        metadata={"help": "How a sequence value pools the scores of the response's tokens, `mean` or `last`."},
    )

    # Parameters that control the value learning
    value_loss: str = field(
        default="auto",
        metadata={
            "help": "`auto` (value and rewards decide), `likelihood` (of the completions of reward 1), `pairwise`, "
            "`bernoulli` or `regression`."
        },
    )
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the value's parameters. If `None`, `learning_rate`."}
    )
    replay_ratio: float = field(
        default=1.0, metadata={"help": "Completions of earlier rounds drawn from the buffer per fresh completion."}
    )
    buffer_size: int = field(
        default=65536, metadata={"help": "Completions kept in the buffer; the oldest leave first."}
    )
    value_holdout_ratio: float = field(
        default=0.05,
        metadata={
            "help": "Fraction of the training prompts that the value never trains on and "
            "`value/within_prompt_accuracy` is measured on."
        },
    )
    distill_coef: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the regression of the policy to the transported distribution. 0.0 freezes the policy."
        },
    )

    # Parameters that control the transport and the rounds
    transport: TransportConfig | str | dict[str, Any] | None = field(
        default=None,
        metadata={"help": "How far and in which space particles move: the fields of `TransportConfig`, or their JSON."},
    )
    rollout_policy: str | None = field(
        default=None,
        metadata={
            "help": "Who samples the training completions: `base`, `value` (the model behind a log-ratio value) or "
            "`transport`. If `None`, `value` for a log-ratio value, else `base`."
        },
    )
    num_base_generations: int | None = field(
        default=None,
        metadata={
            "help": "Completions of each training prompt that the base model samples where the value would. If `None`, "
            "half of them with `rollout_policy='value'`, else 0."
        },
    )
    prompt_selection: str = field(
        default="dataset",
        metadata={"help": "`dataset` takes prompts in its (shuffled) order, `unsolved` those without a success first."},
    )
    contrast: str = field(
        default="prompt",
        metadata={"help": "What has to have had different rewards before its completions teach: `prompt`, or `run`."},
    )
    rollout_fraction: float = field(
        default=1.0,
        metadata={"help": "Share of the steps whose rounds are sampled; those after train on the buffer alone."},
    )
    rollout_prefetch: int = field(
        default=0,
        metadata={"help": "Rounds that vLLM samples ahead of time while the value trains. Needs a frozen policy."},
    )
    max_rounds_without_reward: int = field(
        default=100,
        metadata={"help": "Rounds in a row that may bring no reward at all before training stops with an error."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.rollout_policy, str) and self.rollout_policy == "auto":
            self.rollout_policy = None
        notes = drop_ignored(self)
        check_fields(self)
        self.transport = self._resolve_transport()
        # Not GRPOConfig's own: its checks of batch sizes name no sizes that would work, and the rest is below.
        super(GRPOConfig, self).__post_init__()
        refuse_features(self)
        notes += resolve_recomputation(self)
        if 0 < self.learning_rate <= _POLICY_GRADIENT_RATE and self.value_learning_rate is None:
            notes.append(
                f"`learning_rate`={self.learning_rate:g} is kept, but it is a rate for policy gradients; the value's "
                "losses are supervised, and the default here is 1e-4."
            )
        resolve_padding(self)
        resolve_sampling(self)
        resolve_batch_sizes(self)
        self._check_value()
        self._check_rollouts()
        self._check_engine()
        if notes:
            warnings.warn(f"{type(self).__name__}: {' '.join(notes)}", stacklevel=_callers_level())

    @property
    def samples_from(self) -> str:
        """Who samples the training completions: what `rollout_policy` comes to."""
        if self.rollout_policy is not None:
            return self.rollout_policy
        return "value" if self.value_parametrization == "log_ratio" else "base"

    @property
    def base_generations(self) -> int:
        """Completions of each training prompt that the base samples: what `num_base_generations` comes to."""
        if self.num_base_generations is not None:
            return self.num_base_generations
        return cast(int, self.num_generations) // 2 if self.samples_from == "value" else 0

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as JSON knows them, `transport` as a dict; the constructor takes them back."""
        return {**super().to_dict(), "transport": dataclasses.asdict(cast(TransportConfig, self.transport))}

    @classmethod
    def from_grpo(cls, config: GRPOConfig | RLOOConfig, **overrides: Any) -> Self:
        """Carry the settings of a TRL configuration over, as if they were given to the constructor.

        A `learning_rate` that still has TRL's default, meant for policy gradients, takes the default of this class.

        Args:
            config: A [`GRPOConfig`] or [`RLOOConfig`].
            **overrides: Settings of this class, which win over `config`.

        Returns:
            The new configuration. A warning names the settings of `config` that had been changed from their defaults
            and have no meaning here.

        Raises:
            TypeError: If `config` is of another type.

        Example:
            >>> config = GRPOConfig("out", num_generations=4, use_cpu=True, bf16=False)
            >>> VGFConfig.from_grpo(config, transport_steps=4).num_generations
            4
        """
        if not isinstance(config, (GRPOConfig, RLOOConfig)):
            raise TypeError(f"`config` must be a GRPOConfig or an RLOOConfig, got {type(config).__name__}.")
        own = {item.name for item in dataclasses.fields(cls) if item.init}
        settings = {}
        for item in dataclasses.fields(config):
            value = getattr(config, item.name)
            # Defaults of policy gradients are not settings.
            default = item.name in IGNORED or item.name == "learning_rate"
            if item.name in own | IGNORED.keys() and not (default and not changed(value, item.default)):
                settings[item.name] = value
        # TRL resolves both sizes and accepts one.
        settings.pop("generation_batch_size", None)
        settings["steps_per_generation"] = config.steps_per_generation
        if "generation_batch_size" in overrides:
            del settings["steps_per_generation"]
        return cls(**{**settings, **overrides})

    def _resolve_transport(self) -> TransportConfig:
        settings = read_transport(self.transport)
        whole = self.value_parametrization == "sequence"
        if whole:
            settings.setdefault("space", "sequence_embedding")
        try:
            transport = TransportConfig(**settings)
        except (TypeError, ValueError) as error:
            raise type(error)(f"`transport`: {error}") from error
        if transport.space.startswith("sequence") != whole:
            raise ValueError(
                f"`transport` has the space {transport.space!r}, but `value_parametrization` is "
                f"{self.value_parametrization!r}: whole responses are moved by a 'sequence' value, single tokens by "
                "the others. Leave `space` out."
            )
        return transport

    def _check_value(self) -> None:
        """Refuses a value that does not exist, and settings of another one."""
        kind, backbone = self.value_parametrization, os.fspath(self.value_backbone)
        self.value_backbone = backbone
        if backbone not in VALUE_BACKBONES:
            if backbone.lower() in VALUE_BACKBONES:
                raise ValueError(f"`value_backbone` is written {backbone.lower()!r}, got {backbone!r}.")
            if not _HUB_ID.fullmatch(backbone) and ("\0" in backbone or not os.path.isdir(backbone)):
                raise ValueError(
                    f"`value_backbone` must be one of {list(VALUE_BACKBONES)}, a hub id or the folder of a model; "
                    f"{shown(backbone)} is none of them."
                )
        if kind in ("log_ratio", "sequence") and self.value_head_hidden_size is not None:
            raise ValueError(
                f"`value_head_hidden_size` ({self.value_head_hidden_size}) is for heads on hidden states, and "
                f"`value_parametrization={kind!r}` has none. Leave it None, or choose 'bilinear' or 'vocab'."
            )
        if kind == "log_ratio" and backbone == "policy":
            raise ValueError(
                "`value_backbone='policy'` gives frozen features of the policy, but "
                "`value_parametrization='log_ratio'` is the log-probability under a trained model minus that under "
                "the base, which is zero for the policy itself. Choose `value_backbone='lora'` or 'copy', or a head: "
                "`value_parametrization='bilinear'` or 'vocab'."
            )
        if kind == "sequence" and backbone in ("lora", "policy"):
            raise ValueError(
                "`value_parametrization='sequence'` needs a backbone of its own, whose embeddings are moved; "
                f"`value_backbone` is {backbone!r}. Set `value_backbone='copy'`, or the path of a model."
            )
        modules = self.value_lora_target_modules
        if modules is not None:
            names: Any = [modules] if isinstance(modules, str) else modules
            listed = isinstance(names, (list, tuple)) and len(names) > 0
            if not listed or not all(isinstance(name, str) and name.strip() for name in names):
                raise ValueError(
                    f"`value_lora_target_modules` must be None, 'all-linear' or names of modules, got {shown(modules)}."
                )
            if self.value_backbone != "lora":
                raise ValueError(
                    f"`value_lora_target_modules` is of the value's adapter, and `value_backbone` is "
                    f"{self.value_backbone!r}. Leave it None, or set `value_backbone='lora'`."
                )
        for name, off in (("value_ensemble_size", 1), ("value_pooling", "mean")):
            if kind != "sequence" and getattr(self, name) != off:
                raise ValueError(
                    f"`{name}` ({getattr(self, name)!r}) is for values of whole responses. Leave it {off!r}, or set "
                    "`value_parametrization='sequence'`."
                )
        losses = VALUE_LOSSES[kind]
        if self.value_loss not in ("auto", *losses):
            raise ValueError(
                f"`value_loss={self.value_loss!r}` does not fit `value_parametrization={kind!r}`; it takes 'auto' or "
                f"one of {list(losses)}."
            )

    def _check_rollouts(self) -> None:
        """Refuses rollouts that the value cannot give, and amounts that leave nothing to train on."""
        kind, source, total = self.value_parametrization, self.samples_from, cast(int, self.num_generations)
        transport = cast(TransportConfig, self.transport)
        if source == "value" and kind != "log_ratio":
            raise ValueError(
                "`rollout_policy='value'` samples the model behind a log-ratio value, but `value_parametrization` is "
                f"{kind!r}. Set it to 'log_ratio', or `rollout_policy` to 'base' or 'transport'."
            )
        if transport.transport_steps == 0 and (source == "transport" or self.distill_coef > 0):
            what = "`rollout_policy='transport'` samples" if source == "transport" else "`distill_coef` regresses to"
            raise ValueError(
                f"{what} the transported policy, which is the base with `transport_steps=0`. Set `transport_steps` to "
                "at least 1."
            )
        if kind == "sequence" and self.distill_coef > 0 and source != "transport":
            raise ValueError(
                f"`distill_coef` ({self.distill_coef}) regresses the policy to transported responses, but "
                f"`rollout_policy` comes to {source!r}, so that none are sampled. Set `rollout_policy='transport'`."
            )
        count = self.num_base_generations
        if count and source == "base":
            raise ValueError(
                f"`num_base_generations` ({count}) leaves the other completions to the value, but all of them are the "
                "base model's. Leave it out, or set `rollout_policy` to 'value' or 'transport'."
            )
        if count is not None and count >= total:
            raise ValueError(
                f"`num_base_generations` ({count}) must be less than `num_generations` ({total}). For completions of "
                "the base model alone set `rollout_policy='base'`."
            )
        if self.replay_ratio > 0 and self.buffer_size < total:
            raise ValueError(
                f"`buffer_size` ({self.buffer_size}) must hold at least the `num_generations` ({total}) completions "
                "of one prompt. Raise it, or set `replay_ratio=0` to train without a buffer."
            )
        if self.rollout_fraction < 1 and self.replay_ratio == 0:
            raise ValueError(
                f"`rollout_fraction` ({self.rollout_fraction}) ends training on the buffer alone, which "
                "`replay_ratio=0` leaves empty. Raise `replay_ratio`, or leave `rollout_fraction` 1."
            )

    def _check_engine(self) -> None:
        """Refuses what vLLM cannot sample at all, or not ahead."""
        source = self.samples_from
        if self.use_vllm and source == "transport":
            raise ValueError(
                "`use_vllm=True` samples the base and the model behind a log-ratio value, but `rollout_policy` is "
                "'transport'. Set `use_vllm=False`, or `rollout_policy` to 'value' or 'base', which are other "
                "algorithms."
            )
        if self.use_vllm and source == "value":
            self._check_value_engine()
        if self.use_vllm and self.min_p and self.top_p < 1:
            raise ValueError(
                f"`min_p` ({self.min_p}) and `top_p` ({self.top_p}) are applied in this order by vLLM and in the other "
                "one by transformers, which the loss follows. Set one of the two, or `use_vllm=False`."
            )
        ahead = self.rollout_prefetch
        if ahead == 0:
            return
        start = f"`rollout_prefetch` ({ahead}) samples rounds while the value trains, "
        if self.distill_coef > 0:
            raise ValueError(
                f"{start}but `distill_coef` ({self.distill_coef}) trains the policy meanwhile: the samples would be "
                "out of date. Set one of the two to 0."
            )
        if not self.use_vllm:
            raise ValueError(
                f"{start}which takes an engine of its own, but `use_vllm` is False: `generate` runs on the model that "
                "trains. Set `use_vllm=True`, or `rollout_prefetch=0`."
            )
        if self.vllm_enable_sleep_mode:
            raise ValueError(
                f"{start}when `vllm_enable_sleep_mode=True` has taken the engine's memory away. Set "
                "`vllm_enable_sleep_mode=False`, or `rollout_prefetch=0`."
            )
        if self.vllm_mode == "colocate" and self.vllm_tensor_parallel_size > 1:
            raise ValueError(
                f"{start}but an engine with `vllm_tensor_parallel_size={self.vllm_tensor_parallel_size}` communicates "
                "between the processes that train, which could then wait for each other for ever. Use "
                "`vllm_mode='server'` or `vllm_tensor_parallel_size=1`, or set `rollout_prefetch=0`."
            )

    def _check_value_engine(self) -> None:
        """Refuses rounds of the value where vLLM would not sample what transformers does."""
        for name, off, why in (
            ("distill_coef", 0.0, "trains the base that the engine samples both with"),
            ("repetition_penalty", 1.0, "acts after the choice of candidates in vLLM, before it in transformers"),
            ("vllm_tensor_parallel_size", 1, "hands rows of several processes to one call, without who samples them"),
        ):
            value, of_server = getattr(self, name), name.startswith("vllm_") and self.vllm_mode == "server"
            if value != off and not of_server:
                raise ValueError(
                    f"`use_vllm=True` samples rounds of the value (`rollout_policy`), but `{name}` ({value}) {why}. "
                    f"Set `{name}={off}`, `use_vllm=False`, or `rollout_policy='base'`, which is another algorithm."
                )


def _callers_level() -> int:
    """Returns the `stacklevel` at which a warning shows the line that built the configuration."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        level, frame = level + 1, frame.f_back
    return level
