# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The configuration of `VGFTrainer`."""

import dataclasses
import warnings
from dataclasses import dataclass, field
from typing import Any, Self, cast

from torch import Tensor
from trl import GRPOConfig, RLOOConfig

from vgf_llm.trainer.config_checks import (
    CHECKS,
    PROMPT_SELECTIONS,
    ROLLOUT_POLICIES,
    TRANSPORT_METRICS,
    VALUE_LOSSES,
    VALUE_PARAMETRIZATIONS,
    VALUE_POOLINGS,
)
from vgf_llm.functional import Range
from vgf_llm.trainer.rollout_config import RolloutConfig

_RANGES = {
    "value_head_hidden_size": Range(1, integer=True, optional=True, hint="None gives a linear head."),
    "value_ensemble_size": Range(1, integer=True),
    "value_lora_r": Range(1, integer=True),
    "value_lora_alpha": Range(1, integer=True),
    "value_learning_rate": Range(0, open_low=True, optional=True, hint="None takes `learning_rate`."),
    "value_coef": Range(0),
    "winner_coef": Range(0, optional=True, hint="0 leaves the pairwise loss alone, None lets the rewards decide."),
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
    "rollout_fraction": Range(0, 1, open_low=True, hint="1 samples in every round."),
    "num_base_generations": Range(
        0, integer=True, optional=True, hint="0 leaves all to `rollout_policy`, None takes half for `value`."
    ),
    "rollout_prefetch": Range(0, integer=True, hint="0 samples each round when it is due."),
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
            `"pairwise"` (logistic, over pairs of completions of one prompt with different rewards), `"likelihood"` (of
            the completions of reward 1 under the model behind a log-ratio value), `"bernoulli"` (rewards in [0, 1], at
            every token), `"regression"` (squared error, at every token), or `"auto"`. For `"log_ratio"` that is the
            likelihood if the rewards are all 0 or 1, else (with preference pairs or a `winner_coef` always) pairwise;
            for `"sequence"` pairwise; otherwise Bernoulli if the rewards are all 0 or 1, else regression.
        value_learning_rate (`float`, *optional*):
            Learning rate of the value's parameters. If `None`, `learning_rate`.
        value_coef (`float`, *optional*, defaults to `1.0`):
            Weight of the value loss.
        winner_coef (`float`, *optional*):
            Weight, beside the pairwise loss of a log-ratio value, of the likelihood of each prompt's best completions.
            `0.0` leaves the pairwise loss alone. If `None`, `1.0` if the rewards are all 0 or 1, else `0.0`. Other
            values and losses have no such term.
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
        rollout_policy (`str`, *optional*, defaults to `"auto"`):
            `"transport"` samples by `rollout_transport_steps`. `"value"` samples the model behind a log-ratio value, in
            one forward per token instead of two: on the base's candidates that is the transported policy at L times
            `step_size` = 1. It takes its own candidates (`top_k_candidates`, `min_candidate_prob`) instead, so that
            tokens which the base hardly samples can be found. `"auto"` is `"value"` for a log-ratio value, unless
            `rollout_transport_steps`, `use_vllm` or `rollout_prefetch` ask for something else.
        prompt_selection (`str`, *optional*, defaults to `"dataset"`):
            `"dataset"` takes the prompts in the order of the data set, shuffled. `"unsolved"` lets earlier outcomes
            choose those of each round: prompts without a completion of reward 1 first, the least tried among them. The
            length of training stays what the epochs make it; rewards have to be 0 or 1.
        rollout_fraction (`float`, *optional*, defaults to `1.0`):
            Share of the training steps whose rounds are sampled, to the nearest whole round. In the steps after, the
            value trains on the buffer alone, so that what was found last is learned as well as what was found first.
        num_base_generations (`int`, *optional*):
            Of the `num_generations` completions of a training prompt, those that the base model samples where
            `rollout_policy` or `rollout_transport_steps` have the value sample: the base keeps trying what the value
            has wrongly ruled out. If `None`, half of them, rounded down, where the model behind a log-ratio value is
            sampled and each process has whole groups; else none.
        rollout_prefetch (`int`, *optional*, defaults to `0`):
            Rounds that vLLM samples ahead, in a thread, while the value trains. The policy has to be frozen, so that
            the samples are the same ones. `0` samples each round when it is due.

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
            "help": "`pairwise`, `likelihood`, `bernoulli`, `regression`, or `auto`: if the rewards are all 0 or 1 "
            "`likelihood` for `log_ratio` and `bernoulli` for heads, else `pairwise` and `regression`."
        },
    )
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the value's parameters. If `None`, `learning_rate`."}
    )
    value_coef: float = field(default=1.0, metadata={"help": "Weight of the value loss."})
    winner_coef: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the likelihood of each prompt's best completions beside the pairwise loss of a "
            "`log_ratio` value. 0.0 leaves the pairwise loss alone. If `None`, 1.0 if the rewards are all 0 or 1, else "
            "0.0."
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
    rollout_policy: str = field(
        default="auto",
        metadata={"help": "`transport`, `value` to sample the model behind a log-ratio value, or `auto`."},
    )
    prompt_selection: str = field(
        default="dataset",
        metadata={"help": "`dataset` takes prompts in its (shuffled) order, `unsolved` those without a success first."},
    )
    rollout_fraction: float = field(
        default=1.0,
        metadata={"help": "Share of the steps whose rounds are sampled; those after train on the buffer alone."},
    )
    num_base_generations: int | None = field(
        default=None,
        metadata={
            "help": "Completions of each training prompt that the base model samples where the value would. If `None`, "
            "half of them with `rollout_policy='value'`, else 0."
        },
    )
    rollout_prefetch: int = field(
        default=0,
        metadata={"help": "Rounds that vLLM samples ahead of time while the value trains. Needs a frozen policy."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (
            ("value_parametrization", VALUE_PARAMETRIZATIONS),
            ("value_loss", VALUE_LOSSES),
            ("value_pooling", VALUE_POOLINGS),
            ("transport_metric", TRANSPORT_METRICS),
            ("rollout_policy", ROLLOUT_POLICIES),
            ("prompt_selection", PROMPT_SELECTIONS),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}.")
        for name, allowed in _RANGES.items():
            allowed.check(name, getattr(self, name))
        for check in CHECKS:
            check(self)

    @property
    def needs_whole_groups(self) -> bool:
        """Whether the value loss looks at all completions of a prompt, which then have to share a batch.

        The pairwise loss compares them; the Bernoulli loss of a log-ratio takes the prompt's own odds from the others.
        """
        return self.value_loss == "pairwise" or self.value_parametrization in ("log_ratio", "sequence")

    @property
    def samples_value_model(self) -> bool:
        """Whether completions come from the model behind a log-ratio value: what `rollout_policy` comes to."""
        if self.rollout_policy != "auto":
            return self.rollout_policy == "value"
        elsewhere = self.rollout_transport_steps > 0 or self.use_vllm or self.rollout_prefetch > 0
        return self.value_parametrization == "log_ratio" and not elsewhere

    @property
    def rolls_out_value(self) -> bool:
        """Whether the value has a part in sampling, so that samples age as it learns."""
        return self.rollout_transport_steps > 0 or self.samples_value_model

    @property
    def base_generations(self) -> int:
        """Completions of each training prompt that the base samples beside the value: `num_base_generations`."""
        if self.num_base_generations is not None:
            return self.num_base_generations
        total = cast(int, self.num_generations)
        return total // 2 if self.samples_value_model and self.rows_per_round % total == 0 else 0

    @property
    def rows_per_round(self) -> int:
        """Completions of a round in one process."""
        return self.per_device_train_batch_size * cast(int, self.steps_per_generation)

    def resolve_value_loss(self, rewards: Tensor, *, pairs: bool = False) -> str:
        """Say which loss `value_loss="auto"` stands for, given rewards of the run.

        Args:
            rewards: Rewards of any shape, gathered over all processes, so that all of them choose alike; NaN where a
                completion could not be scored.
            pairs: Whether they mark the sides of preference pairs, of which the chosen one need not be a success.

        Returns:
            `"pairwise"`, `"likelihood"`, `"bernoulli"` or `"regression"`.
        """
        if self.value_loss != "auto":
            return self.value_loss
        if self.value_parametrization == "log_ratio" and not pairs and self.winner_coef is None:
            return "likelihood" if are_outcomes(rewards) else "pairwise"
        if self.value_parametrization in ("log_ratio", "sequence"):
            return "pairwise"
        return "bernoulli" if are_outcomes(rewards) else "regression"

    def resolve_winner_coef(self, rewards: Tensor) -> float:
        """Say which weight `winner_coef=None` stands for: of graded rewards the best of a few is no target.

        Args:
            rewards: As for `resolve_value_loss`.

        Returns:
            The weight.
        """
        if self.winner_coef is not None:
            return self.winner_coef
        return 1.0 if are_outcomes(rewards) else 0.0

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


def _default(item: dataclasses.Field) -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


def are_outcomes(rewards: Tensor) -> bool:
    """Tells whether all rewards that are not NaN are 0 or 1."""
    scored = rewards[~rewards.isnan()]
    return bool(((scored == 0) | (scored == 1)).all())
