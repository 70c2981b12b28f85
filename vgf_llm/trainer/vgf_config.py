# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The configuration of `VGFTrainer`."""

import dataclasses
import warnings
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor
from trl import GRPOConfig, RLOOConfig

from vgf_llm.trainer.batch_sizes import check_whole_groups
from vgf_llm.trainer.ranges import Range
from vgf_llm.trainer.rollout_config import RolloutConfig

VALUE_PARAMETRIZATIONS = ("log_ratio", "bilinear", "vocab", "v_head", "sequence")
VALUE_LOSSES = ("auto", "pairwise", "bernoulli", "regression")
VALUE_POOLINGS = ("mean", "last")
TRANSPORT_METRICS = ("fisher", "euclidean")
# Any other text is read as the path or hub id of a model.
VALUE_BACKBONES = ("lora", "copy", "policy")


_RANGES = {
    "value_head_hidden_size": Range(1, integer=True, optional=True, hint="None gives a linear head."),
    "value_ensemble_size": Range(1, integer=True),
    "value_lora_r": Range(1, integer=True),
    "value_lora_alpha": Range(1, integer=True),
    "value_learning_rate": Range(0, open_low=True, optional=True, hint="None takes `learning_rate`."),
    "value_coef": Range(0),
    "winner_coef": Range(0, hint="0 leaves the pairwise loss alone."),
    "td_lambda": Range(0, 1, hint="1 is the Monte-Carlo outcome, 0 the one-step target."),
    "expectile": Range(0, 1, open_low=True, open_high=True, hint="0.5 is the mean."),
    "replay_ratio": Range(0, hint="0 trains on fresh completions alone."),
    "buffer_size": Range(0, integer=True),
    "value_holdout_ratio": Range(0, 1, open_high=True, hint="0 holds no prompts out."),
    "distill_coef": Range(0, hint="0 leaves the policy frozen."),
    "transport_steps": Range(0, integer=True, hint="0 is the base model itself."),
    "step_size": Range(
        0, open_low=True, hint="The budget is `transport_steps * step_size`; 1 is a sensible value of it."
    ),
    "top_k_candidates": Range(1, integer=True),
    "min_candidate_prob": Range(0, 1, open_high=True, hint="0 keeps all `top_k_candidates` tokens."),
    "max_kl": Range(0, open_low=True, optional=True, hint="None sets no cap."),
    "rollout_transport_steps": Range(0, integer=True, hint="0 samples from the base model."),
}


@dataclass
class VGFConfig(RolloutConfig):
    r"""
    Configuration class for the [`VGFTrainer`].

    It takes every setting of [`~transformers.TrainingArguments`], the settings that TRL's [`GRPOConfig`] and
    [`RLOOConfig`] share (listed in [`RolloutConfig`]), and those below. Policy-gradient settings (`beta`, `epsilon`,
    `epsilon_high`, the reference-model synchronisation, `router_aux_loss_coef`) do not exist: the transport budget is
    the only regulariser. [`VGFConfig.from_grpo`] carries a TRL configuration over.

    Parameters:
        > Parameters that control the value

        value_parametrization (`str`, *optional*, defaults to `"log_ratio"`):
            How the value of a token in a state is computed. One of:

            - `"log_ratio"`: log-probability under a trained model minus that under the base model.
            - `"bilinear"`: a head on the last hidden state, multiplied with the frozen output embeddings.
            - `"vocab"`: a head on the last hidden state with one output per token.
            - `"v_head"`: the value of the state alone, for transport in the space of hidden states.
            - `"sequence"`: the value of the whole response, differentiable in its embeddings, for transport of whole
              responses. It needs `value_backbone="copy"` or a path.
        value_backbone (`str`, *optional*, defaults to `"lora"`):
            What the value is computed on: `"lora"` (an adapter of its own on the base model), `"copy"` (a trainable
            copy), `"policy"` (frozen features of the policy, for heads alone), or the path or hub id of another model
            with the same tokenizer.
        value_head_hidden_size (`int`, *optional*):
            Width of the hidden layer of a head. If `None`, the head is linear.
        value_ensemble_size (`int`, *optional*, defaults to `1`):
            Members of a sequence value's ensemble, each with its own head and its own bootstrap of the prompts.
        value_pooling (`str`, *optional*, defaults to `"mean"`):
            How a sequence value is made of the scores of the response's tokens: `"mean"` or `"last"`.
        value_lora_r (`int`, *optional*, defaults to `16`):
            Rank of the value's adapter.
        value_lora_alpha (`int`, *optional*, defaults to `32`):
            Scale of the value's adapter.
        value_lora_target_modules (`str` or `list[str]`, *optional*, defaults to `"all-linear"`):
            Modules that the value's adapter is put on, as PEFT reads them.

        > Parameters that control the value learning

        value_loss (`str`, *optional*, defaults to `"auto"`):
            `"pairwise"` (logistic, over pairs of completions of one prompt with different rewards), `"bernoulli"`
            (rewards in [0, 1], at every token), `"regression"` (squared error, at every token), or `"auto"`: pairwise
            for `"log_ratio"` and `"sequence"`, otherwise Bernoulli if the rewards are all 0 or 1, else regression.
        value_learning_rate (`float`, *optional*):
            Learning rate of the value's parameters. If `None`, `learning_rate`.
        value_coef (`float`, *optional*, defaults to `1.0`):
            Weight of the value loss.
        winner_coef (`float`, *optional*, defaults to `1.0`):
            Weight, beside the pairwise loss of a log-ratio value, of the likelihood of each prompt's best completions.
            `0.0` leaves the pairwise loss alone. Other values and losses have no such term.
        td_lambda (`float`, *optional*, defaults to `1.0`):
            Mixture of outcome and bootstrapped value in the targets at each token; `1.0` is the outcome.
        expectile (`float`, *optional*, defaults to `0.5`):
            Expectile that the regression estimates; above `0.5` it leans towards the better outcomes.
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
            `rollout_transport_steps > 0`). `0.0` freezes the policy.

        > Parameters that control the transport

        transport_steps (`int`, *optional*, defaults to `8`):
            Steps L of the flow. The budget is L times `step_size`.
        step_size (`float`, *optional*, defaults to `0.125`):
            Size epsilon of a step.
        transport_metric (`str`, *optional*, defaults to `"fisher"`):
            Metric of the flow on next-token distributions, `"fisher"` or `"euclidean"`.
        top_k_candidates (`int`, *optional*, defaults to `40`):
            Most likely tokens of the base model between which probability may move.
        min_candidate_prob (`float`, *optional*, defaults to `0.02`):
            Least probability, under the base model, of such a token. The value of tokens the base hardly ever samples
            is unknown, and large steps follow its errors there.
        max_kl (`float`, *optional*):
            Cap on the KL divergence to the base model at each token. If `None`, there is none.
        rollout_transport_steps (`int`, *optional*, defaults to `0`):
            Steps used in sampling the training completions. `0` samples from the base model; a positive number samples
            from the transported policy, so that the value is corrected where the flow goes.

    > [!NOTE]
    > These parameters have default values different from [`~transformers.TrainingArguments`]:
    > - `logging_steps`: Defaults to `10` instead of `500`.
    > - `gradient_checkpointing`: Defaults to `True` instead of `False`.
    > - `bf16`: Defaults to `True` if `fp16` is not set, instead of `False`.
    > - `learning_rate`: Defaults to `1e-4` instead of `5e-5` (and of GRPO's `1e-6`): it trains the adapter or the
    >   head of the value by supervised losses, not the policy by a policy gradient.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "The initial learning rate for AdamW."})

    # Parameters that control the value
    value_parametrization: str = field(
        default="log_ratio",
        metadata={
            "help": "How the value of a token in a state is computed: `log_ratio` (of a trained model to the base), "
            "`bilinear` or `vocab` (heads on the last hidden state), or `v_head` (value of the state alone)."
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
        default=1, metadata={"help": "Members of a sequence value's ensemble, each with its own bootstrap of prompts."}
    )
    value_pooling: str = field(
        default="mean", metadata={"help": "How a sequence value pools its tokens' scores, `mean` or `last`."}
    )
    value_lora_r: int = field(default=16, metadata={"help": "Rank of the value's adapter."})
    value_lora_alpha: int = field(default=32, metadata={"help": "Scale of the value's adapter."})
    # A list, because the parser drops a default that is none; `__post_init__` turns this one into the text PEFT reads.
    value_lora_target_modules: list[str] | str = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "Modules that the value's adapter is put on."}
    )

    # Parameters that control the value learning
    value_loss: str = field(
        default="auto",
        metadata={
            "help": "`pairwise`, `bernoulli`, `regression`, or `auto`: pairwise for `log_ratio`, otherwise bernoulli "
            "if the rewards are all 0 or 1, else regression."
        },
    )
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the value's parameters. If `None`, `learning_rate`."}
    )
    value_coef: float = field(default=1.0, metadata={"help": "Weight of the value loss."})
    winner_coef: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the likelihood of each prompt's best completions beside the pairwise loss of a "
            "`log_ratio` value. 0.0 leaves the pairwise loss alone."
        },
    )
    td_lambda: float = field(
        default=1.0, metadata={"help": "Mixture of outcome (1.0) and bootstrapped value (0.0) in the targets."}
    )
    expectile: float = field(
        default=0.5, metadata={"help": "Expectile that the regression estimates; 0.5 is the mean."}
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

    # Parameters that control the transport
    transport_steps: int = field(
        default=8, metadata={"help": "Steps L of the flow. The budget is L times `step_size`."}
    )
    step_size: float = field(default=0.125, metadata={"help": "Size epsilon of a step of the flow."})
    transport_metric: str = field(
        default="fisher", metadata={"help": "Metric of the flow on next-token distributions, `fisher` or `euclidean`."}
    )
    top_k_candidates: int = field(
        default=40, metadata={"help": "Most likely tokens of the base model between which probability may move."}
    )
    min_candidate_prob: float = field(
        default=0.02, metadata={"help": "Least probability, under the base model, of a candidate token."}
    )
    max_kl: float | None = field(
        default=None,
        metadata={"help": "Cap on the KL divergence to the base model at each token. If `None`, there is none."},
    )
    rollout_transport_steps: int = field(
        default=0, metadata={"help": "Steps used in sampling the training completions. 0 samples from the base model."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (
            ("value_parametrization", VALUE_PARAMETRIZATIONS),
            ("value_loss", VALUE_LOSSES),
            ("value_pooling", VALUE_POOLINGS),
            ("transport_metric", TRANSPORT_METRICS),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}.")
        for name, allowed in _RANGES.items():
            allowed.check(name, getattr(self, name))
        self._check_backbone()
        assert self.num_generations is not None  # the base class has refused None
        self._check_loss(self.num_generations)
        self._check_amounts(self.num_generations)

    @property
    def needs_whole_groups(self) -> bool:
        """Whether the value loss looks at all completions of a prompt, which then have to share a batch.

        The pairwise loss compares them; the Bernoulli loss of a log-ratio takes the prompt's own odds from the others.
        """
        return self.value_loss == "pairwise" or self.value_parametrization in ("log_ratio", "sequence")

    def resolve_value_loss(self, rewards: Tensor) -> str:
        """Say which loss `value_loss="auto"` stands for, given rewards of the run.

        Args:
            rewards: Rewards of any shape, gathered over all processes, so that all of them choose alike; NaN where a
                completion could not be scored.

        Returns:
            `"pairwise"`, `"bernoulli"` or `"regression"`.
        """
        if self.value_loss != "auto":
            return self.value_loss
        if self.value_parametrization in ("log_ratio", "sequence"):
            return "pairwise"
        scored = rewards[~rewards.isnan()]
        return "bernoulli" if bool(((scored == 0) | (scored == 1)).all()) else "regression"

    @classmethod
    def from_grpo(cls, config: GRPOConfig | RLOOConfig, **overrides: Any) -> Self:
        """Carry the settings of a TRL configuration over.

        A `learning_rate` that still has TRL's default, meant for policy gradients, takes the default of this class.

        Args:
            config: A [`GRPOConfig`] or [`RLOOConfig`].
            **overrides: Fields of this class, which win over `config`.

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
        settings: dict[str, Any] = {}
        dropped = []
        for item in dataclasses.fields(config):
            value = getattr(config, item.name)
            changed = value != _default(item)
            if item.init and item.name in own and (changed or item.name != "learning_rate"):
                settings[item.name] = value
            elif item.init and item.name not in own and changed:
                dropped.append(f"{item.name}={value!r}")
        # TRL resolves both sizes and accepts one.
        settings.pop("generation_batch_size", None)
        settings["steps_per_generation"] = config.steps_per_generation
        if "generation_batch_size" in overrides:
            del settings["steps_per_generation"]
        if dropped:
            warnings.warn(
                f"{type(config).__name__} settings without a meaning in {cls.__name__} were dropped: "
                f"{', '.join(dropped)}.",
                stacklevel=2,
            )
        return cls(**{**settings, **overrides})

    def _check_backbone(self) -> None:
        backbone = self.value_backbone
        if not isinstance(backbone, str) or not backbone.strip():
            raise ValueError(
                f"`value_backbone` must be one of {list(VALUE_BACKBONES)} or the path or hub id of a model, "
                f"got {backbone!r}."
            )
        if backbone not in VALUE_BACKBONES and backbone.lower() in VALUE_BACKBONES:
            raise ValueError(f"`value_backbone` is written {backbone.lower()!r}, got {backbone!r}.")
        if self.value_parametrization == "log_ratio":
            if backbone == "policy":
                raise ValueError(
                    "`value_backbone='policy'` gives frozen features of the policy, but "
                    "`value_parametrization='log_ratio'` is the log-probability under a trained model minus that under "
                    "the base, which is zero for the policy itself. Choose `value_backbone='lora'` or 'copy', or a "
                    "head: `value_parametrization='bilinear'`, 'vocab' or 'v_head'."
                )
            if self.value_head_hidden_size is not None:
                raise ValueError(
                    f"`value_head_hidden_size` ({self.value_head_hidden_size}) is for heads, and "
                    "`value_parametrization='log_ratio'` has none. Leave it None, or choose 'bilinear', 'vocab' or "
                    "'v_head'."
                )
        self._check_sequence_value()
        modules = self.value_lora_target_modules
        if modules == ["all-linear"]:
            self.value_lora_target_modules = "all-linear"
        elif not modules or not (isinstance(modules, str) or all(isinstance(name, str) for name in modules)):
            raise ValueError(f"`value_lora_target_modules` must be 'all-linear' or names of modules, got {modules!r}.")

    def _check_sequence_value(self) -> None:
        if self.value_parametrization != "sequence":
            for name, off in (("value_ensemble_size", 1), ("value_pooling", "mean")):
                if getattr(self, name) != off:
                    raise ValueError(
                        f"`{name}` ({getattr(self, name)!r}) is for values of whole responses. Leave it {off!r}, or "
                        "set `value_parametrization='sequence'`."
                    )
            return
        if self.value_backbone in ("lora", "policy"):
            raise ValueError(
                f"`value_parametrization='sequence'` needs a backbone of its own, whose embeddings are moved; "
                f"`value_backbone` is {self.value_backbone!r}. Set `value_backbone='copy'`, or the path of a model."
            )
        if self.value_loss == "bernoulli":
            raise ValueError("`value_loss` of a sequence value must be 'pairwise' or 'regression', got 'bernoulli'.")
        if self.value_head_hidden_size is not None:
            raise ValueError("`value_head_hidden_size` is for token-level heads; a sequence value's are linear.")
        if self.distill_coef > 0 and self.rollout_transport_steps == 0:
            raise ValueError(
                f"`distill_coef` ({self.distill_coef}) regresses the policy to transported responses, but "
                "`rollout_transport_steps` is 0, so that none are sampled. Set it to `transport_steps`, for example."
            )

    def _check_loss(self, num_generations: int) -> None:
        if self.value_parametrization == "v_head":
            for name, off in (("td_lambda", 1.0), ("distill_coef", 0.0)):
                if getattr(self, name) != off:
                    raise ValueError(
                        f"`{name}` ({getattr(self, name)}) needs values of candidate tokens, which "
                        f"`value_parametrization='v_head'`, a value of states, does not have. Leave it {off}, or "
                        "choose 'log_ratio', 'bilinear' or 'vocab'."
                    )
        if self.needs_whole_groups:
            check_whole_groups(self.per_device_train_batch_size, num_generations)
            if self.td_lambda != 1.0:
                raise ValueError(
                    f"`td_lambda` ({self.td_lambda}) has no effect on the pairwise value loss or on a log-ratio value, "
                    "which use outcomes. Leave it 1.0, or choose a head with `value_loss='bernoulli'` or 'regression'."
                )
        if self.expectile != 0.5 and self.value_loss != "regression":
            raise ValueError(
                f"`expectile` ({self.expectile}) shapes the regression loss alone. Set `value_loss='regression'` "
                f"(now {self.value_loss!r}), or leave it 0.5."
            )
        if self.value_parametrization == "log_ratio" and self.value_loss == "regression":
            raise ValueError(
                "`value_loss='regression'` does not fit `value_parametrization='log_ratio'`: a log-ratio of two "
                "distributions gives differences of values within a state, not their level. Use 'pairwise' or "
                "'bernoulli', or a head: 'bilinear', 'vocab' or 'v_head'."
            )

    def _check_amounts(self, num_generations: int) -> None:
        if self.replay_ratio > 0 and self.buffer_size < num_generations:
            raise ValueError(
                f"`buffer_size` ({self.buffer_size}) must hold at least the `num_generations` ({num_generations}) "
                "completions of one prompt. Raise it, or set `replay_ratio=0` to train without a buffer."
            )
        if self.value_coef == 0 and self.distill_coef == 0:
            raise ValueError(
                "`value_coef` and `distill_coef` are both 0: there is nothing to train. Raise one of them."
            )
        if self.use_vllm and self.rollout_transport_steps > 0:
            raise ValueError(
                f"`use_vllm=True` samples from the policy without transport, but `rollout_transport_steps` is "
                f"{self.rollout_transport_steps}. Set it to 0, or `use_vllm=False`."
            )
        if self.distill_coef > 0 and self.transport_steps == 0:
            raise ValueError(
                f"`distill_coef` ({self.distill_coef}) regresses the policy to the transported distribution, which is "
                "the base model itself with `transport_steps=0`. Set `transport_steps` to at least 1."
            )


def _default(item: dataclasses.Field) -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
