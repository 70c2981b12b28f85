# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Trains what a comparison compares, all from one base with one reward and one number of sampled completions.

Every trainer here is TRL's or `VGFTrainer`; a method is a function from `Job` to the folder of what it trained.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer

from eval.iterated import Rounds, RoundsTrainer, UnsolvedFirstTrainer
from eval.sampling import Draw, Samples, sample
from eval.tasks import Task
from vgf_llm import VGFConfig, VGFTrainer
from vgf_llm._compat import online_dpo_classes
from vgf_llm.models import TransportConfig, VGFModel, build_value
from vgf_llm.models.merging import save_plain
from vgf_llm.trainer.config import fit_round


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        base: Folder of the base model.
        task: Training problems; its gold is the training reward.
        directory: Where the result is saved.
        seed: Seed.
        learning_rate: Of baselines; VGF's is its recipe's.
        vgf_config: The recipe's YAML file.
        num_generations: Completions per prompt.
        batch_size: Completions per optimizer step.
        static_cache: Whether sampling uses a static cache, which is faster for small models on a CPU.
        passes: How often completions are learned from: epochs over samples of the base, or `num_iterations` of TRL.
        samples: What `sample_base` gave for it, where that is known already.
    """

    base: str
    task: Task
    directory: Path
    seed: int = 0
    learning_rate: float | None = None
    vgf_config: Path | None = None
    num_generations: int = 4
    batch_size: int = 64
    static_cache: bool = True
    passes: int = 1
    samples: Samples | None = None

    @property
    def completions(self) -> int:
        """Sampled completions of the run."""
        return len(self.task.problems) * self.num_generations

    @property
    def model_init_kwargs(self) -> dict[str, Any]:
        """How every method loads the base: with the attention of the recipe's YAML file, or with transformers' own."""
        return recipe_init_kwargs(self.vgf_config)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer."""
        return AutoTokenizer.from_pretrained(self.base, padding_side="left")

    def half(self, index: int) -> "Job":
        """Returns the run on the first or second half of the prompts."""
        middle = len(self.task.problems) // 2
        rows = range(middle) if index == 0 else range(middle, len(self.task.problems))
        return replace(self, task=self.task.select(rows))

    def settings(self) -> dict[str, Any]:
        """Returns the arguments that every TRL trainer shares."""
        return {
            "output_dir": str(self.directory),
            "seed": self.seed,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 10,
            "bf16": False,
            "use_cpu": not torch.cuda.is_available(),
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 20,
            "disable_tqdm": True,
        }


def train_grpo(job: Job) -> None:
    """Group-relative policy optimisation, with TRL's defaults but for the learning rate and `num_iterations`."""
    _policy_gradient(GRPOTrainer, GRPOConfig, job)


def train_rloo(job: Job) -> None:
    """REINFORCE with a leave-one-out baseline, likewise."""
    _policy_gradient(RLOOTrainer, RLOOConfig, job)


def _policy_gradient(trainer_class: Any, config_class: Any, job: Job) -> None:
    args = config_class(
        **job.settings(),
        num_generations=job.num_generations,
        per_device_train_batch_size=job.batch_size,
        max_completion_length=job.task.max_new_tokens,
        num_train_epochs=1,
        num_iterations=job.passes,
        cache_implementation="static" if job.static_cache else None,
        model_init_kwargs=job.model_init_kwargs,
    )
    trainer = trainer_class(
        model=job.base,
        reward_funcs=job.task.gold,
        args=args,
        train_dataset=job.task.problems,
        processing_class=job.tokenizer,
    )
    trainer.train()
    _save(trainer, job)


def train_grpo_unsolved_first(job: Job) -> None:
    """GRPO on prompts in the order of VGF's recipe: those without a success first, then the least tried."""
    _policy_gradient(UnsolvedFirstTrainer, GRPOConfig, job)


def train_online_dpo(job: Job) -> None:
    """Online DPO: two completions per prompt and epoch, so that the epochs make up the number of completions."""
    config_class, trainer_class = online_dpo_classes()
    if job.num_generations % 2:
        raise ValueError(f"`num_generations` must be even for online_dpo, got {job.num_generations}.")
    args = config_class(
        **job.settings(),
        per_device_train_batch_size=max(1, job.batch_size // 2),
        max_new_tokens=job.task.max_new_tokens,
        temperature=1.0,
        num_train_epochs=job.num_generations // 2,
        cache_implementation="static" if job.static_cache else None,
    )
    trainer = trainer_class(
        model=_load_base(job),
        ref_model=_load_base(job),
        reward_funcs=job.task.gold,
        args=args,
        train_dataset=job.task.problems,
        processing_class=job.tokenizer,
    )
    trainer.train()
    _save(trainer, job)


def train_dpo(job: Job) -> None:
    """DPO on pairs among the base's own samples, better against worse."""
    _offline(DPOTrainer, DPOConfig, job, preference_pairs(job.task, job.samples or sample_base(job)))


def train_iterated_dpo(job: Job, rounds: int = 4, epochs: int = 2) -> None:
    """DPO in rounds: pairs among samples of the policy so far, on prompts of their own; the reference is the base."""
    job, reference, current = replace(job, passes=epochs), _load_base(job), job.base
    size = len(job.task.problems) // rounds
    with tempfile.TemporaryDirectory() as folder:
        for index in range(rounds):
            last = index == rounds - 1
            end = len(job.task.problems) if last else (index + 1) * size
            part = replace(job, base=current, task=job.task.select(range(index * size, end)), seed=job.seed + index)
            part = replace(part, directory=job.directory if last else Path(folder) / str(index))
            pairs = preference_pairs(part.task, sample_base(part))
            _offline(DPOTrainer, DPOConfig, part, pairs, ref_model=reference)
            current = str(part.directory)


def train_rft(job: Job) -> None:
    """Rejection-sampling fine-tuning: supervised training on the best of the base's own samples."""
    _offline(SFTTrainer, SFTConfig, job, best_samples(job.task, job.samples or sample_base(job)))


def _offline(trainer_class: Any, config_class: Any, job: Job, dataset: Dataset, **arguments: Any) -> None:
    args = config_class(
        **job.settings(),
        per_device_train_batch_size=max(1, job.batch_size // 2),
        num_train_epochs=job.passes,
        max_length=None,
        model_init_kwargs=job.model_init_kwargs,
    )
    trainer = trainer_class(
        model=job.base, args=args, train_dataset=dataset, processing_class=job.tokenizer, **arguments
    )
    trainer.train()
    _save(trainer, job)


def train_iterated_rft(job: Job, **overrides: Any) -> None:
    """Rejection-sampling fine-tuning in the rounds of VGF's recipe (expert iteration); `overrides` win over it.

    Prompts, replay, steps and the optimizer's settings are the recipe's, all but the learning rate. What differs from
    VGF is what an SFT trainer does: the trained model samples from all tokens, the loss is TRL's mean over tokens, and
    no prompt is held out.
    """
    args = vgf_settings(job, **overrides)
    fit_round(args, job.task.problems)
    base, tuned = (VGFModel(_load_base(job)).eval() for _ in range(2))

    def sampler(who: str, task: Task, num_samples: int, number: int) -> Samples:
        if who != "base":
            tuned.policy.load_state_dict(trainer.model.state_dict())
        model = base if who == "base" else tuned
        draw = Draw(f"{who}, round {number}", {"do_sample": True})
        return _sample(model, replace(job, task=task), draw, num_samples)

    rounds = Rounds(args, job.task, job.tokenizer, sampler)
    taken = ("lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2",
             "gradient_accumulation_steps")  # fmt: skip
    trainer = RoundsTrainer(
        rounds,
        model=job.base,
        args=SFTConfig(
            **{**job.settings(), **{name: getattr(args, name) for name in taken}},
            # VGF's loss is a sum over tokens, which is clipped in every step; TRL's, a mean, would be in none.
            max_grad_norm=args.max_grad_norm / job.task.max_new_tokens,
            num_train_epochs=1,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            model_init_kwargs=job.model_init_kwargs,
        ),
        train_dataset=Dataset.from_dict({"step": range(rounds.num_steps)}),
        processing_class=job.tokenizer,
    )
    trainer.train()
    print(f"{rounds.num_tokens} sampled tokens, {rounds.prompts.solved_fraction:.3f} of the prompts solved", flush=True)
    _save(trainer, job)


def train_iterated_rft_no_base(job: Job) -> None:
    """The same, every completion by the model that trains."""
    train_iterated_rft(job, num_base_generations=0)


def train_vgf(job: Job, **overrides: Any) -> None:
    """VGF with the recipe's settings; `overrides` win over them."""
    _train_vgf(job, job.task.problems, job.task.gold, vgf_settings(job, **overrides))


def train_guided_features(job: Job) -> None:
    """A scorer of prefixes on the base's frozen features, which tilts its next tokens (FUDGE, Controlled Decoding).

    It learns the log-odds of success after every token from samples of the base, each prompt taken once.
    """
    _train_guided(job, value_backbone="policy")


def train_guided_lora(job: Job) -> None:
    """The same scorer on features under a LoRA adapter."""
    _train_guided(job, value_backbone="lora")


def _train_guided(job: Job, **overrides: Any) -> None:
    args = _once_from_base(job, value_parametrization="vocab", learning_rate=job.learning_rate, **overrides)
    _train_vgf(job, job.task.problems, job.task.gold, args)


def train_vgf_logged(job: Job) -> None:
    """VGF offline on the base's own samples: one pass over all of them, then the recipe's share of replayed steps."""
    _train_vgf(job, logged_samples(job.task, job.samples or sample_base(job)), None, _once_from_base(job))


def _once_from_base(job: Job, **overrides: Any) -> VGFConfig:
    """The recipe's settings, but for every prompt taken once, all its completions from the base."""
    reads = {"num_generations": job.num_generations, "prompt_selection": "dataset", "rollout_policy": "base"}
    args = vgf_settings(job, **reads, **overrides)
    args.num_train_epochs = 1 / args.rollout_fraction
    return args


def _train_vgf(job: Job, dataset: Dataset, reward_funcs: Any, args: VGFConfig) -> None:
    trainer = VGFTrainer(
        model=job.base, reward_funcs=reward_funcs, args=args, train_dataset=dataset, processing_class=job.tokenizer
    )
    trainer.train()
    _save(trainer, job)


def train_vgf_distilled(job: Job) -> None:
    """VGF whose transport is regressed into the policy's weights while the value learns."""
    train_vgf(job, distill_coef=1.0)


def train_vgf_distilled_twice(job: Job) -> None:
    """Two such iterations with half of the prompts each; the second starts from the first one's policy."""
    with tempfile.TemporaryDirectory() as first:
        train_vgf_distilled(replace(job.half(0), directory=Path(first)))
        train_vgf_distilled(replace(job.half(1), base=first))


def train_vgf_on_grpo(job: Job) -> None:
    """GRPO with half of the prompts, then a VGF value over that policy with the other half."""
    with tempfile.TemporaryDirectory() as policy:
        train_grpo(replace(job.half(0), directory=Path(policy)))
        train_vgf(replace(job.half(1), base=policy))


def train_vgf_exported_twice(job: Job) -> None:
    """Two iterations without distilling: the model behind the first half's value is the base of the second half's."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as policy:
        train_vgf(replace(job.half(0), directory=Path(first)))
        save_plain(VGFModel.from_pretrained(first).merge_value(), job.tokenizer, policy)
        train_vgf(replace(job.half(1), base=policy))


def train_vgf_on_rft(job: Job) -> None:
    """Rejection-sampling fine-tuning whose result is the model behind a log-ratio value over the base, not the policy.

    It trains nothing of its own: budgets beyond L epsilon = 1 extrapolate what fine-tuning changed.
    """
    with tempfile.TemporaryDirectory() as folder:
        train_rft(replace(job, directory=Path(folder)))
        tuned = AutoModelForCausalLM.from_pretrained(folder)
    if job.vgf_config is None:
        raise ValueError("`vgf_config` is missing: VGF's settings come from its recipe's YAML file.")
    transport = recipe_transport(job.vgf_config, job.num_generations)
    base = AutoModelForCausalLM.from_pretrained(job.base)
    value = build_value("log_ratio", width=base.config.hidden_size, vocab_size=base.config.vocab_size)
    model = VGFModel(base, value, value_model=tuned, transport=transport)
    model.save_pretrained(job.directory)
    job.tokenizer.save_pretrained(job.directory)


def vgf_settings(job: Job, **overrides: Any) -> VGFConfig:
    """Returns the recipe's `VGFConfig`: its YAML file, without what belongs to the recipe's script.

    Its epochs are as many as the job's completions allow: a recipe that samples fewer completions of a prompt at a time
    takes each prompt more often.

    Raises:
        ValueError: If the job names no file, or if its completions are no whole number of epochs.
    """
    if job.vgf_config is None:
        raise ValueError("`vgf_config` is missing: VGF's settings come from its recipe's YAML file.")
    settings = recipe_settings(job.vgf_config, job.num_generations)
    at_a_time = settings["num_generations"]
    settings |= {"output_dir": str(job.directory), "seed": job.seed}
    settings |= {"num_train_epochs": job.num_generations // at_a_time / settings.get("rollout_fraction", 1)}
    settings |= {"max_completion_length": job.task.max_new_tokens, "disable_tqdm": True, "save_strategy": "no"}
    settings["use_cpu"] = not torch.cuda.is_available()
    settings["model_init_kwargs"] = {**(settings.get("model_init_kwargs") or {}), **job.model_init_kwargs}
    return VGFConfig(**{**settings, **overrides})


def recipe_init_kwargs(path: Path | None) -> dict[str, Any]:
    """Reads how a recipe's YAML file loads models: its `attn_implementation`, flat or inside `model_init_kwargs`."""
    given = {} if path is None else yaml.safe_load(path.read_text(encoding="utf-8"))
    attention = {**given, **(given.get("model_init_kwargs") or {})}.get("attn_implementation")
    return {} if attention is None else {"attn_implementation": attention}


def recipe_settings(path: Path, num_generations: int) -> dict[str, Any]:
    """Reads what of a recipe's YAML file is `VGFConfig`'s, transport settings by their own names included.

    Args:
        path: The file.
        num_generations: Completions per prompt of the whole run, and at a time where the file says nothing.

    Raises:
        ValueError: If the file's own `num_generations` does not divide them.
    """
    known = {item.name for item in fields(VGFConfig) if item.init}
    known |= {item.name for item in fields(TransportConfig)} - {"num_particles"}  # which is the recipe script's
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings = {name: value for name, value in given.items() if name in known}
    at_a_time = settings.setdefault("num_generations", num_generations)
    if num_generations % at_a_time:
        raise ValueError(
            f"`num_generations` is {at_a_time} in {path}, which does not divide the {num_generations} completions per "
            "prompt of the comparison."
        )
    return settings


def recipe_transport(path: Path, num_generations: int) -> TransportConfig:
    """Reads the transport of a recipe's YAML file, as `recipe_settings` does."""
    known = {item.name for item in fields(TransportConfig)}
    settings = recipe_settings(path, num_generations)
    return TransportConfig(**{name: value for name, value in settings.items() if name in known})


def sample_base(job: Job) -> Samples:
    """Samples the completions of the offline methods from the base."""
    return _sample(VGFModel(_load_base(job)).eval(), job, Draw("base", {"do_sample": True}), job.num_generations)


def _load_base(job: Job) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(job.base, **job.model_init_kwargs)


def _sample(model: VGFModel, job: Job, draw: Draw, num_samples: int) -> Samples:
    cache = {"cache_implementation": "static", "disable_compile": True} if job.static_cache else {}
    return sample(
        model,
        job.tokenizer,
        job.task,
        draw,
        num_samples=num_samples,
        seed=job.seed,
        with_likelihood=False,  # nothing that trains on them reads it, and what it takes would count as training
        **cache,
    )


def logged_samples(task: Task, samples: Samples) -> Dataset:
    """Returns every response with its reward, in the columns `prompt`, `completion` and `reward`.

    Args:
        task: The problems.
        samples: N responses to each, scored by the training reward.
    """
    scored = zip(task.problems["prompt"], samples.responses, samples.gold.tolist(), strict=True)
    return Dataset.from_list(
        [
            {"prompt": prompt, "completion": text, "reward": reward}
            for prompt, texts, rewards in scored
            for text, reward in zip(texts, rewards, strict=True)
        ]
    )


def preference_pairs(task: Task, samples: Samples) -> Dataset:
    """Pairs the best response of each prompt with its worst, the second best with the second worst, and so on.

    Args:
        task: The problems.
        samples: N responses to each, scored by the training reward.

    Returns:
        Columns `prompt`, `chosen`, `rejected`; equal rewards make no pair.

    Raises:
        ValueError: If there is no pair at all.
    """
    rows = []
    for prompt, texts, rewards in zip(task.problems["prompt"], samples.responses, samples.gold.tolist(), strict=True):
        order = sorted(range(len(texts)), key=lambda i: -rewards[i])
        for better, worse in zip(order, reversed(order), strict=True):
            if rewards[better] > rewards[worse]:
                rows.append({"prompt": prompt, "chosen": texts[better], "rejected": texts[worse]})
    if not rows:
        raise ValueError("No prompt has responses of different reward, so there is nothing to prefer.")
    return Dataset.from_list(rows)


def best_samples(task: Task, samples: Samples) -> Dataset:
    """Keeps every right response where rewards are 0 or 1, else the best response of each prompt.

    Args:
        task: The problems.
        samples: N responses to each, scored by the training reward.

    Returns:
        Columns `prompt` and `completion`.

    Raises:
        ValueError: If nothing is kept.
    """
    binary = bool(((samples.gold == 0) | (samples.gold == 1)).all())
    rows = []
    for prompt, texts, rewards in zip(task.problems["prompt"], samples.responses, samples.gold.tolist(), strict=True):
        kept = [i for i, reward in enumerate(rewards) if reward == 1] if binary else [rewards.index(max(rewards))]
        rows += [{"prompt": prompt, "completion": texts[i]} for i in kept]
    if not rows:
        raise ValueError("No response is right, so there is nothing to train on.")
    return Dataset.from_list(rows)


def _save(trainer: Any, job: Job) -> None:
    # Trainers may replace the forward of the model that they train: what is measured is loaded from disk.
    trainer.save_model(str(job.directory))
    job.tokenizer.save_pretrained(job.directory)


@dataclass(frozen=True)
class Trainable:
    """A method of a comparison that trains.

    Attributes:
        label: Its name in tables.
        train: Trains and saves.
        learning_rates: The sweep; empty for methods whose settings come from a recipe.
        has_value: Whether the result is a VGF model.
        distilled: Whether its policy is trained, and stands in the table without transport too.
        offline: Whether it trains on the base's own samples, drawn beforehand.
        passes: The option of the command line that lists how many passes over its completions are tried; `None` for
            methods that make one, or as many as their recipe says.
        swept_as: The method whose chosen learning rate it takes, where it contains one.
        scheduled: Whether its rounds are those of VGF's recipe, though it has no value.
    """

    label: str
    train: Callable[[Job], None]
    learning_rates: tuple[float, ...] = ()
    has_value: bool = False
    distilled: bool = False
    offline: bool = False
    passes: str | None = None
    swept_as: str | None = None
    scheduled: bool = False

    @property
    def reads_recipe(self) -> bool:
        """Whether it takes settings from the recipe's YAML file."""
        return self.has_value or self.scheduled

    def settings_text(self, rate: float | None, passes: int | None) -> str:
        """Writes what a sweep varies: the learning rate and, of methods that have them, the passes."""
        if rate is None:
            return ""
        unit = "epoch" if self.offline else "iteration"
        return f"{rate:g}" if passes is None else f"{rate:g}, {passes} {unit}{'' if passes == 1 else 's'}"


TRAINABLE = {
    "vgf": Trainable("VGF", train_vgf, has_value=True),
    "vgf_logged": Trainable("VGF, offline on base samples", train_vgf_logged, has_value=True, offline=True),
    "vgf_distilled_1": Trainable("VGF distilled, 1 iteration", train_vgf_distilled, has_value=True, distilled=True),
    "vgf_distilled_2": Trainable(
        "VGF distilled, 2 iterations", train_vgf_distilled_twice, has_value=True, distilled=True
    ),
    "vgf_exported_2": Trainable("VGF over its own export (half each)", train_vgf_exported_twice, has_value=True),
    "vgf_on_grpo": Trainable("VGF on GRPO (half each)", train_vgf_on_grpo, has_value=True, swept_as="grpo"),
    "vgf_on_rft": Trainable(
        "VGF, SFT's result as its value", train_vgf_on_rft, has_value=True, offline=True, swept_as="rft"
    ),
    "grpo": Trainable("GRPO (TRL)", train_grpo, (1e-4, 3e-4, 1e-3), passes="num_iterations"),
    "rloo": Trainable("RLOO (TRL)", train_rloo, (1e-4, 3e-4, 1e-3), passes="num_iterations"),
    "grpo_unsolved_first": Trainable(
        "GRPO (TRL), unsolved prompts first",
        train_grpo_unsolved_first,
        (1e-4, 3e-4, 1e-3),
        passes="num_iterations",
        scheduled=True,
    ),
    "dpo": Trainable("DPO (TRL)", train_dpo, (1e-5, 3e-5, 1e-4, 3e-4, 1e-3), offline=True, passes="offline_epochs"),
    "online_dpo": Trainable("Online DPO (TRL)", train_online_dpo, (3e-5, 1e-4, 3e-4, 1e-3)),
    "iterated_dpo": Trainable("iterated DPO (TRL), 4 rounds", train_iterated_dpo, (3e-5, 1e-4, 3e-4, 1e-3)),
    "guided_features": Trainable(
        "guided decoding (FUDGE), frozen features", train_guided_features, (1e-3, 3e-3, 1e-2), has_value=True
    ),
    "guided_lora": Trainable("guided decoding (FUDGE), LoRA", train_guided_lora, (3e-4, 1e-3, 3e-3), has_value=True),
    "rft": Trainable(
        "rejection-sampling SFT (TRL)", train_rft, (3e-4, 1e-3, 3e-3), offline=True, passes="offline_epochs"
    ),
    "iterated_rft": Trainable(
        "iterated rejection-sampling SFT, VGF's schedule", train_iterated_rft, (3e-4, 7e-4, 1.5e-3), scheduled=True
    ),
    "iterated_rft_no_base": Trainable(
        "iterated rejection-sampling SFT, no base samples",
        train_iterated_rft_no_base,
        scheduled=True,
        swept_as="iterated_rft",
    ),
}
