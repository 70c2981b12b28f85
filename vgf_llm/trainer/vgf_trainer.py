# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`VGFTrainer`: learns a value from rewards, and on request distils the transported policy into weights."""

import textwrap
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import compress, groupby
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object, set_seed
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from vgf_llm._compat import (
    RepeatSampler,
    disable_dropout_in_model,
    get_config_model_id,
    identity,
    profiling_context,
    profiling_decorator,
    repeat_iterable_dataset,
)
from vgf_llm.models.sampling import Sampling
from vgf_llm.trainer.choose import logged
from vgf_llm.trainer.choose.loaders import EpochRepeatSampler
from vgf_llm.trainer.choose.prompts import (
    check_dataset,
    check_dataset_prompts,
    check_prompt_lengths,
    max_prompt_length,
    tokenize_prompts,
    usable_holdout_ratio,
)
from vgf_llm.trainer.choose.schedule import Schedule, UnsolvedFirst
from vgf_llm.trainer.config import VGFConfig, fit_round, settings_dict
from vgf_llm.trainer.fit.entropy import EntropyControl
from vgf_llm.trainer.fit.micro_batch import MicroBatch, Row, collate
from vgf_llm.trainer.fit.objective import Objective
from vgf_llm.trainer.keep.buffer import RolloutGroup, pack, unpack
from vgf_llm.trainer.keep.outcomes import PromptOutcomes
from vgf_llm.trainer.keep.rounds import PassShare, ValueRounds, is_held_out
from vgf_llm.trainer.measure.gate import ValueGate, measure_gate
from vgf_llm.trainer.measure.metrics import MetricLog
from vgf_llm.trainer.sample import Request, RolloutFunc, Samples, build_sampler
from vgf_llm.trainer.sample.arguments import rollout_samplings
from vgf_llm.trainer.sample.function import FunctionSampler
from vgf_llm.trainer.sample.prefetch import Lookahead, PrefetchingSampler
from vgf_llm.trainer.save.checkpoint import CheckpointedTrainer
from vgf_llm.trainer.save.sharding import is_zero3, whole_parameters, whole_state_dict
from vgf_llm.trainer.score.checks import RewardFunc
from vgf_llm.trainer.score.rewards import RewardRunner, combine, decode_completions
from vgf_llm.trainer.setup import (
    align_pad_token,
    build_vgf_model,
    check_arguments,
    check_inputs,
    end_token_ids,
    load_policy,
    load_tokenizer,
    resolve_streams,
)
from vgf_llm.vgf_model import VGFModel

# What callbacks and reward functions for `GRPOTrainer` read of a trainer: arguments, under their own names.
_GRPO_ATTRIBUTES = (
    *("num_generations", "num_iterations", "max_completion_length", "temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "pad_to_multiple_of", "use_vllm", "vllm_mode", "shuffle_dataset"),
    *("mask_truncated_completions", "log_completions", "log_unique_prompts", "num_completions_to_print"),
)


class VGFTrainer(CheckpointedTrainer):
    """
    Trainer for Value Gradient Flow (VGF), proposed in the paper [Reinforcement Learning via Value Gradient
    Flow](https://huggingface.co/papers/2604.14265).

    It samples completions, scores them with reward functions, and fits a value that transports the policy's next-token
    distributions. The policy itself stays frozen unless `distill_coef > 0`. The arguments are those of
    [`~trl.GRPOTrainer`], in its order.

    A round is one call of each part: `schedule` says which prompts are sampled and who samples them, `sampler` samples,
    `reward_runner` scores, `rounds` keeps, `objective` fits, `gate` measures.

    Example:

    ```python
    from datasets import load_dataset
    from trl.rewards import accuracy_reward
    from vgf_llm import VGFTrainer

    dataset = load_dataset("trl-lib/DeepMath-103K", split="train")

    trainer = VGFTrainer(
        model="Qwen/Qwen2.5-0.5B-Instruct",
        reward_funcs=accuracy_reward,
        train_dataset=dataset,
    )
    trainer.train()
    ```

    Args:
        model (`str`, [`~transformers.PreTrainedModel`], [`~peft.PeftModel`] or [`VGFModel`]):
            The policy, by name or as a model, or a policy that has a value already: a [`VGFModel`], or the folder or
            checkpoint of one. Such a value is trained as what it is, whatever `args` say of values.
        reward_funcs (`RewardFunc | list[RewardFunc]`):
            Reward functions as [`~trl.GRPOTrainer`] takes them: the path or hub id of a sequence classifier, such a
            model, or a synchronous or asynchronous callable `f(prompts=, completions=, completion_ids=, **columns,
            trainer_state=, log_extra=, log_metric=)` that returns a list of numbers or `None`. Without any, nothing is
            sampled: the completions that the dataset has logged are read, in TRL's formats, with the columns
            `"prompt"`, `"completion"` and `"reward"` (or `"label"`), or with preference pairs, `"chosen"` and
            `"rejected"`.
        args ([`VGFConfig`], *optional*):
            Configuration. If `None`, a default configuration is used.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Dataset with a column `"prompt"`, standard or conversational; further columns go to the reward functions.
        eval_dataset (*optional*):
            Dataset, or dict of datasets, for evaluation.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. If `None`, it is loaded from the model's origin.
        reward_processing_classes (*optional*):
            Tokenizers of reward functions that are models, one or a list.
        callbacks (list of [`~transformers.TrainerCallback`], *optional*):
            Callbacks.
        optimizers (*optional*, defaults to `(None, None)`):
            Optimizer and scheduler. If `None`, AdamW with a linear schedule.
        quantization_config (*optional*):
            Quantisation of a model given by name.
        peft_config ([`~peft.LoraConfig`], *optional*):
            LoRA of the value's adapter and, with `distill_coef > 0`, of the policy.
        tools (*optional*):
            Refused: the value learns from the tokens of one completion. A `rollout_func` may call tools.
        rollout_func (*optional*):
            `f(prompts, trainer)` that returns a dict with `"prompt_ids"` and `"completion_ids"`, one of each per
            prompt. `"finished"` says which completions ended by themselves (those that end in an end-of-sequence token,
            if left out); `"ref_logprobs"`, the log-probability of every completion token under the base at temperature
            1, spares log-ratio values a pass of the base; further entries go to the reward functions.
        environment_factory (*optional*):
            Refused, as `tools` are.
    """

    _tag_names = ["trl", "vgf"]  # noqa: RUF012 (a class attribute of the base)
    _name = "VGF"
    _paper = {  # noqa: RUF012
        "title": "Reinforcement Learning via Value Gradient Flow",
        "id": "2604.14265",
        "citation": textwrap.dedent(
            """\
            @inproceedings{xu2026vgf,
                title        = {{Reinforcement Learning via Value Gradient Flow}},
                author       = {Xu and Hu and Sojoudi and Zhang},
                year         = 2026,
                booktitle    = {International Conference on Learning Representations},
                eprint       = {2604.14265}
            }"""
        ),
    }
    fixed_on_resume = ("prompt_selection",)
    # The loss is a mean over micro-batches of equal size; the base class divides by the accumulation steps.
    loss_is_scaled_for_ga = False
    # The routers of a mixture of experts are frozen, or fitted by the value's loss alone.
    aux_loss_enabled = False

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel | VGFModel,
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: VGFConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        tools: None = None,
        rollout_func: RolloutFunc | None = None,
        environment_factory: None = None,
    ) -> None:
        if args is None:
            origin = model if isinstance(model, str) else get_config_model_id(model.config)
            args = VGFConfig(f"{str(origin).rstrip('/').split('/')[-1] or 'model'}-VGF")
        check_arguments(args, tools, environment_factory)
        # What the dataset has logged in the place of samples: "completions", "pairs", or nothing.
        self.logged = logged.logged_kind(train_dataset) if reward_funcs is None else None
        if self.logged is not None:
            logged.check_logged(args, self.logged, rollout_func)
            train_dataset = logged.grouped(train_dataset, cast(int, args.num_generations))
            eval_dataset = self._grouped_for_evaluation(eval_dataset, args)
        check_inputs(args, train_dataset, eval_dataset)
        set_seed(args.seed)  # adapters start at random weights
        policy = load_policy(model, args, quantization_config)
        self._tokenizer = load_tokenizer(processing_class, policy, args)
        self.eos_token_ids = end_token_ids(policy, self._tokenizer, args)
        train_dataset = self._readable(train_dataset, policy, args, "train_dataset")
        eval_dataset = self._readable(eval_dataset, policy, args, "eval_dataset")
        fit_round(args, train_dataset)  # what was too long is left out
        self.reward_runner = RewardRunner(
            logged.logged_reward if self.logged else reward_funcs,
            reward_weights=args.reward_weights,
            reward_processing_classes=reward_processing_classes,
            model_init_kwargs=settings_dict(args.model_init_kwargs),
            trust_remote_code=args.trust_remote_code,
            chat_template_kwargs=settings_dict(args.chat_template_kwargs),
            device=args.device,
            profile=lambda name: profiling_context(self, name),
        )
        # A rollout function may add columns, and logged completions have their own.
        if isinstance(train_dataset, Dataset) and rollout_func is None and not self.logged:
            self.reward_runner.check_columns(train_dataset.column_names)
        vgf_model = build_vgf_model(policy, args, peft_config)
        align_pad_token(vgf_model, self._tokenizer)
        if args.disable_dropout:
            disable_dropout_in_model(vgf_model)
        self.rollout_func = rollout_func
        resolve_streams(args, train_dataset, eval_dataset)
        self._settings(args, vgf_model, train_dataset)
        super().__init__(
            model=vgf_model,
            args=args,
            data_collator=identity,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=self._tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if args.n_gpu > 1:
            raise ValueError(
                "VGFTrainer does not run under nn.DataParallel, which is used when one process sees several GPUs. "
                "Start it with `accelerate launch` or `torchrun`, or set CUDA_VISIBLE_DEVICES to one GPU."
            )
        self._finish_setup()

    def _grouped_for_evaluation(self, dataset: Any, args: VGFConfig) -> Any:
        return logged.grouped(dataset, cast(int, args.num_generations_eval or args.num_generations), "eval_dataset")

    def _readable(self, dataset: Any, policy: nn.Module, args: VGFConfig, name: str) -> Any:
        """Tokenizes logged completions; of other datasets, checks that prompts fit."""
        longest, template_kwargs = args.max_completion_length, settings_dict(args.chat_template_kwargs)
        if self.logged:
            return logged.tokenized(
                dataset,
                self._tokenizer,
                eos_token_ids=self.eos_token_ids,
                max_completion_length=longest,
                max_prompt_length=max_prompt_length(policy.config, longest),
                chat_template_kwargs=template_kwargs,
                name=name,
            )
        check_dataset_prompts(dataset, self._tokenizer, policy.config, longest, template_kwargs, name)
        return dataset

    def _settings(self, args: VGFConfig, model: VGFModel, train_dataset: Any) -> None:
        """Sets TRL's attributes, which callbacks and reward functions read, and the parts that need no accelerator."""
        for name in _GRPO_ATTRIBUTES:
            setattr(self, name, getattr(args, name))
        self.num_generations_eval = args.num_generations_eval or self.num_generations
        self.chat_template_kwargs = settings_dict(args.chat_template_kwargs)
        self.entropy_coef, self.use_adaptive_entropy = args.entropy_coef, args.use_adaptive_entropy
        self.entropy_control = EntropyControl(args)
        runner = self.reward_runner
        self.reward_funcs, self.reward_func_names = runner.reward_funcs, runner.reward_func_names
        self.reward_weights, self.reward_processing_classes = runner.reward_weights, runner.reward_processing_classes
        self._step = 0
        self._current_train_step_time = 0.0
        self._evaluating: str | None = None  # the prefix of the metrics, while evaluation runs
        self._rounds_without_reward = 0
        self._pass: tuple[int, list[list[PassShare]], dict[int, Tensor] | None] | None = None
        self._lookahead: Lookahead | None = None
        self._chosen: dict[int, list[int]] = {}  # prompts of rounds whose outcomes are still to come
        self.gate = ValueGate()
        self.objective = Objective(
            model,
            value_loss=args.value_loss,
            sequence=args.value_parametrization == "sequence",
            distill_coef=args.distill_coef,
            pairs=self.logged == "pairs",
            samplings=(Sampling(),) if self.logged else rollout_samplings(args, model.transport),
            seed=args.seed,
            contrast=args.contrast,
            entropy_bonus=args.entropy_coef != 0 or args.use_adaptive_entropy,
        )
        known = logged.logged_outcomes(train_dataset, self.objective) if self.logged else PromptOutcomes()
        self._known_outcomes = known.state()
        prompts = None
        if args.prompt_selection == "unsolved":
            if not isinstance(train_dataset, Dataset):
                raise ValueError(
                    "`prompt_selection='unsolved'` chooses among all prompts by the rewards of their completions, but "
                    f"`train_dataset` is {type(train_dataset).__name__}. Give a `Dataset`, or leave it 'dataset'."
                )
            prompts = UnsolvedFirst(len(train_dataset), args.seed)
        self.schedule = Schedule(
            num_generations=self.num_generations,
            samples_from="base" if self.logged else args.samples_from,
            base_generations=0 if self.logged else args.base_generations,
            round_steps=cast(int, args.steps_per_generation) * self.num_iterations,
            rollout_fraction=args.rollout_fraction,
            prompts=prompts,
        )

    def _finish_setup(self) -> None:
        """Sets up the parts that need the accelerator."""
        args, accelerator, rollout_func = self.args, self.accelerator, self.rollout_func
        if self.vgf_model.ref_model is not None:
            self.vgf_model.ref_model.to(accelerator.device)
        self.reward_runner.prepare(accelerator, deepspeed=self.is_deepspeed_enabled)
        self.metrics = MetricLog(accelerator, self.reward_func_names, args.generation_batch_size)
        self._metrics, self._logs = self.metrics.values, self.metrics.logs
        self.rounds = ValueRounds(
            groups_per_round=args.generation_batch_size // self.num_generations,
            steps_per_round=args.steps_per_generation,
            num_iterations=self.num_iterations,
            buffer_size=args.buffer_size,
            replay_ratio=args.replay_ratio,
            holdout_ratio=usable_holdout_ratio(
                self.train_dataset,
                self._tokenizer,
                args.value_holdout_ratio,
                lambda ids: is_held_out(ids, args.value_holdout_ratio, args.seed),
                self.chat_template_kwargs,
            ),
            seed=args.seed,
            num_processes=accelerator.num_processes,
        )
        set_seed(args.seed, device_specific=True)  # processes must not sample the same completions
        self.sampler = build_sampler(
            args,
            logged=self.logged is not None,
            model=lambda: self.vgf_model,
            gathered=self.generation_context,
            accelerator=accelerator,
            tokenizer=self._tokenizer,
            end_token_ids=self.eos_token_ids,
            step=lambda: self.state.global_step,
            function=None if rollout_func is None else (lambda prompts: rollout_func(prompts, self)),
            adapter_state=lambda keep: whole_state_dict(
                self.vgf_model.policy, keep=keep, wanted=self.vgf_model.value_adapter_parameters().__contains__
            ),
        )

    # What others read

    @property
    def vgf_model(self) -> VGFModel:
        """The model without the wrappers of distributed training."""
        if isinstance(self.model, VGFModel):  # nothing to take off, and every step asks
            return self.model
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def vllm_generation(self) -> Any:
        """TRL's vLLM engine with `use_vllm=True`, for rollout functions; else `None`."""
        sampler: Any = self.sampler
        engine = sampler.engine if isinstance(sampler, FunctionSampler) else getattr(sampler, "sampler", None)
        return None if engine is None else engine.engine

    def generation_context(self) -> AbstractContextManager[Any]:
        """Gathers sharded weights once, for as long as completions are sampled or scored."""
        return whole_parameters(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        )

    @contextmanager
    def _scoring(self) -> Iterator[VGFModel]:
        """The bare model, without gradients and dropout, in the precision that the losses see it in."""
        model, was_training = self.vgf_model, self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast(), self.generation_context():
                yield model
        finally:
            self.model.train(was_training)

    # Loading prompts

    _signature_columns: list[str] | None

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = list(logged.GROUP_COLUMNS) if self.logged else ["prompt"]

    def get_train_dataloader(self) -> DataLoader:
        """Loads a whole generation batch at a time, as `GRPOTrainer` does."""
        dataset = self.train_dataset
        if isinstance(dataset, IterableDataset):
            dataset = repeat_iterable_dataset(
                dataset.shuffle(seed=self.args.seed) if self.shuffle_dataset else dataset,
                mini_repeat_count=self.num_generations,
                batch_size=self.args.generation_batch_size // self.num_generations,
                repeat_count=self.num_iterations * self.args.steps_per_generation,
            )
        return self._get_dataloader(
            dataset=dataset,
            description="Training",
            batch_size=self._train_batch_size * self.args.steps_per_generation,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Loads evaluation prompts; a stream, which no sampler can repeat, is repeated itself, by one worker."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        if not isinstance(dataset, IterableDataset):
            return super().get_eval_dataloader(eval_dataset)
        resolve_streams(self.args, None, dataset)  # it may have come with the call of `evaluate`
        self.accelerator.dataloader_config.dispatch_batches = False
        repeated = repeat_iterable_dataset(dataset, mini_repeat_count=self.num_generations_eval)
        workers, self.args.dataloader_num_workers = self.args.dataloader_num_workers, 0
        try:
            return super().get_eval_dataloader(repeated)
        finally:
            self.args.dataloader_num_workers = workers

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        return EpochRepeatSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
            fills=self.logged is not None,
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler:
        return RepeatSampler(data_source=eval_dataset, mini_repeat_count=self.num_generations_eval, seed=self.args.seed)

    # A round: choose, sample, score, keep, measure

    def _prepare_inputs(self, inputs: list[dict[str, Any]] | MicroBatch) -> MicroBatch:
        """Turns dataset rows into a micro-batch, sampling a new round when the last is used up."""
        if isinstance(inputs, MicroBatch):  # `training_step` has prepared it
            return inputs
        with profiling_context(self, "_prepare_inputs"):
            if self._evaluating is not None:
                return self._evaluation_batch(self._sample_groups(inputs, "eval"))
            self._begin_round(inputs)
            return self._training_batch()

    def _begin_round(self, inputs: list[dict[str, Any]]) -> None:
        starts = self._step % self.schedule.round_steps == 0
        if starts:
            self.rounds.retire(self.objective.keeps)
        samples = self._step < self._sampled_steps or len(self.rounds.buffer) == 0
        if samples and (starts or not self.rounds.fresh):
            index, prompts = self._step // self.schedule.round_steps, self.schedule.prompts
            groups = self._sample_groups(self._round_rows(inputs, index), "train")
            if prompts is not None:
                prompts.record(self._chosen.pop(index), torch.stack([group.rewards for group in groups]))
                self.metrics.set("train", "prompts/solved", prompts.solved_fraction)
            self.rounds.begin(groups)
            self._measure_gate(self.rounds.held_out_groups(), "train")

    def _round_rows(self, inputs: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
        """The rows of a round: those that the loader gave, or where outcomes choose, those that they choose now."""
        prompts = self.schedule.prompts
        if prompts is None:
            return inputs
        if index not in self._chosen:
            self._chosen[index] = prompts.choose(self.rounds.groups_per_round, [*self._chosen.values()])
        start = self.accelerator.process_index * len(inputs)
        rows = [row for row in self._chosen[index] for _ in range(self.num_generations)][start : start + len(inputs)]
        return [self.train_dataset[row] for row in rows]

    @property
    def _sampled_steps(self) -> int:
        """Micro-steps of the run after which nothing more is sampled."""
        return self.schedule.sampled_steps(self.state.max_steps * self.args.gradient_accumulation_steps)

    def _request(self, inputs: list[dict[str, Any]], mode: str, step: int) -> Request:
        prompts = [row["prompt"] for row in inputs]
        if self.logged:
            prompt_ids = [row["prompt_ids"] for row in inputs]
        else:
            prompt_ids = tokenize_prompts(prompts, self._tokenizer, self.chat_template_kwargs)
            check_prompt_lengths(prompt_ids, self.vgf_model.config, self.args.max_completion_length, prompts=prompts)
        first_row = self.accelerator.process_index * len(prompts)
        count = self.num_generations if mode == "train" else self.num_generations_eval
        who = self.schedule.who(len(prompts), first_row=first_row, mode=mode)
        rows = inputs if self.logged else []
        return Request(prompts, prompt_ids, who, count, first_row, mode, step, self.args.seed, rows)

    def _sample_groups(self, inputs: list[dict[str, Any]], mode: str) -> list[RolloutGroup]:
        """Samples and scores completions of all processes; every process returns all groups in the same order."""
        step = self._step // self.schedule.round_steps if mode == "train" else self.state.global_step
        request = self._request(inputs, mode, step)
        samples = self.sampler(request)
        if mode == "train":
            self._sample_ahead()
        extra = samples.extra
        rows = [{**row, **{name: column[i] for name, column in extra.items()}} for i, row in enumerate(inputs)]
        with record_function("vgf/score"):
            return self._score_groups(rows, request, samples, mode)

    def _score_groups(
        self, rows: list[dict[str, Any]], request: Request, samples: Samples, mode: str
    ) -> list[RolloutGroup]:
        completions = decode_completions(self._tokenizer, request.prompts, samples.completion_ids)
        of_run = (self.state, self.metrics.log_extra, self.metrics.log_metric)
        local = self.reward_runner(rows, request.prompts, completions, samples.completion_ids, *of_run)
        local[~torch.tensor(samples.present, device=local.device)] = torch.nan
        per_func = self.accelerator.gather(local)
        rewards = combine(per_func, self.reward_weights)
        self._log_rollout(mode, request, samples, completions, per_func, rewards)
        if mode == "train":
            self._count_rewards(rewards)
            if self.objective.observe(rewards):
                self.rounds.forget()
        prompt_ids = request.prompt_ids if samples.prompt_ids is None else samples.prompt_ids
        logps = self._ref_logps(prompt_ids, request, samples)
        columns = (prompt_ids, samples.completion_ids, logps, samples.finished, request.samplers, samples.present)
        everyone = gather_object(list(zip(*columns, strict=True)))
        if self.mask_truncated_completions:
            cut = torch.tensor([not finished for _, _, _, finished, _, _ in everyone], device=rewards.device)
            rewards = rewards.masked_fill(cut, torch.nan)
        groups, count = [], request.num_generations
        for start in range(0, len(everyone), count):
            places = [place for place in range(start, start + count) if everyone[place][-1]]
            prompts, ids, ref_logps, _, samplers, _ = zip(*(everyone[place] for place in places), strict=True)
            known = None if ref_logps[0] is None else list(ref_logps)
            scored = rewards[places].tolist()
            groups.append(RolloutGroup(prompts[0], ids, scored, known, self.state.global_step, samplers))
        return groups

    def _count_rewards(self, rewards: Tensor) -> None:
        """Counts rounds that brought no reward at all, and ends a run that gets none."""
        self._rounds_without_reward = self._rounds_without_reward + 1 if bool(rewards.isnan().all()) else 0
        if self._rounds_without_reward >= self.args.max_rounds_without_reward:
            raise ValueError(
                f"All reward functions returned None for all completions of {self._rounds_without_reward} rounds in a "
                "row, so there is nothing to learn from. Check that the reward functions apply to this dataset "
                "(columns, answer format), or raise `max_rounds_without_reward`."
            )

    def _ref_logps(self, prompt_ids: list[list[int]], request: Request, samples: Samples) -> list[list[float] | None]:
        """Log-probabilities of this process's completions under the reference, as the loss sees them sampled.

        Every process runs as many passes as every other: all its rows, or none.
        """
        objective = self.objective
        if not objective.reads_reference:
            return [None] * len(prompt_ids)
        if samples.ref_logps is not None and self.temperature == 1:
            return list(samples.ref_logps)
        longest = max(gather_object([max(map(len, samples.completion_ids))]))
        result: list[list[float] | None] = []
        with self._scoring() as model:
            for start in range(0, len(prompt_ids), self._rows_without_gradients):
                rows = slice(start, start + self._rows_without_gradients)
                ids = samples.completion_ids[rows]
                group = [
                    Row(RolloutGroup(prompt, [row], [0.0], samplers=[sampler]), 0)
                    for prompt, row, sampler in zip(prompt_ids[rows], ids, request.samplers[rows], strict=True)
                ]
                batch = self._collate(group, num_tokens=longest)
                logps = model.ref_logps(
                    batch.input_ids,
                    batch.attention_mask,
                    batch.num_tokens,
                    group_size=[len(list(run)) for _, run in groupby(prompt_ids[rows])],
                    samplings=objective.sampling_of(objective.kind),
                    sampler=batch.sampler,
                )
                result += [logp[: len(row)].tolist() for logp, row in zip(logps.cpu(), ids, strict=True)]
        return result

    @property
    def _rows_without_gradients(self) -> int:
        """Rows of a pass that keeps nothing for a backward; four times those of a step then take less memory."""
        return max(4 * self.args.per_device_train_batch_size, self.args.per_device_eval_batch_size)

    def _measure_gate(self, groups: list[RolloutGroup], mode: str) -> None:
        """Measures the value, and what transport by it would do, on groups that it does not train on."""
        accelerator = self.accelerator
        with self._scoring() as model:
            counts, scored = measure_gate(
                model,
                groups,
                sequence=self.objective.sequence,
                groups_at_a_time=max(1, self._rows_without_gradients // self.num_generations),
                num_processes=accelerator.num_processes,
                process_index=accelerator.process_index,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        counts = accelerator.reduce(counts.to(accelerator.device), reduction="sum")
        correct, pairs, kl, distance, measured = counts.tolist()
        if mode == "eval":
            self.metrics.held_out += gather_object(scored)
        if mode == "train":
            self.gate.add(correct, int(pairs))
            self.metrics.set("train", "value/buffer_size", len(self.rounds.buffer))
            if self.gate.pairs:
                self.metrics.set("train", "value/within_prompt_accuracy", self.gate.accuracy)
        elif pairs:
            self.metrics.add("eval", "value/within_prompt_accuracy", correct / pairs, weight=pairs)
        if measured:
            self.metrics.add(mode, "transport/kl", kl / measured, weight=measured)
            self.metrics.add(mode, "transport/distance", distance / measured, weight=measured)

    def _log_rollout(
        self, mode: str, request: Request, samples: Samples, completions: list[Any], per_func: Tensor, rewards: Tensor
    ) -> None:
        accelerator, metrics = self.accelerator, self.metrics
        columns: tuple[list[Any], ...] = (request.prompt_ids, samples.completion_ids, samples.finished)
        prompt_ids, ids, finished = ([*compress(column, samples.present)] for column in columns)
        lengths = torch.tensor(gather_object([len(row) for row in ids]))
        truncated = ~torch.tensor(gather_object(finished), dtype=torch.bool)
        if mode == "train":
            prompt_tokens = sum(gather_object([sum(map(len, prompt_ids))]))
            self.state.num_input_tokens_seen += prompt_tokens + int(lengths.sum())
        metrics.set(mode, "num_tokens", self.state.num_input_tokens_seen)
        metrics.add_lengths(mode, lengths, truncated)
        metrics.add_rewards(mode, per_func, rewards, request.num_generations)
        of_base = 0 if self.rollout_func else self.schedule.base_generations
        if mode == "train" and of_base > 0:
            sampled = rewards.view(-1, request.num_generations)[:, of_base:]
            metrics.add("train", "rollout/reward", sampled.nanmean().item())
        if self.schedule.samples_from == "transport" and not self.rollout_func:
            # Every process has such rows, or none has: a sum and a count may be gathered.
            kl = torch.zeros(0) if samples.kl is None else samples.kl.float().cpu()
            both = torch.tensor([float(kl.sum()), float(len(kl))], device=accelerator.device)
            total, count = accelerator.reduce(both, reduction="sum").tolist()
            if count:
                metrics.add(mode, "rollout/kl", total / count)
        if not self.rollout_func and not self.logged:  # which do not ask the schedule who samples
            metrics.log_extra("sampler", request.who)
        metrics.flush_reward_logs(mode, len(request.prompts))
        prompts, texts, present = (gather_object(rows) for rows in (request.prompts, completions, samples.present))
        metrics.add_rows(prompts, texts, per_func, rewards, request.num_generations, present)

    # Micro-batches

    def _collate(self, rows: list[Row], **kwargs: Any) -> MicroBatch:
        pad_token_id, device = self._tokenizer.pad_token_id, self.accelerator.device
        return collate(rows, pad_token_id, device, self.pad_to_multiple_of, **kwargs)

    def _training_batch(self) -> MicroBatch:
        pass_index, slice_index = divmod(self._step, self.args.steps_per_generation)
        if self._pass is None or self._pass[0] != pass_index:
            compares = self.objective.kind is not None and self.objective.compares
            # The configuration decides, so that every process does the same: whole groups in every micro-batch, or the
            # scores of all completions at the beginning of the pass.
            whole = self.args.per_device_train_batch_size % self.num_generations == 0
            reads = partial(self.objective.reads, outcomes=self.rounds.outcomes)
            shares = self.rounds.shares(pass_index, reads, whole_groups=compares and whole)
            self._pass = (pass_index, shares, self._scores(shares) if compares and not whole else None)
        _, shares, scores = self._pass
        return self._batch_of(shares[slice_index], scores)

    def _batch_of(self, shares: list[PassShare], scores: dict[int, Tensor] | None) -> MicroBatch:
        """This process's micro-batch of a step, of the shares of all processes."""
        share = shares[self.accelerator.process_index]
        rows = [Row(group, index) for group, index in share.rows]
        groups = {id(group): group for group, _ in rows}
        learned = {key: set(self.objective.learns(group, self.rounds.outcomes)) for key, group in groups.items()}
        return self._collate(
            rows,
            num_groups=share.num_groups,
            num_rows=share.num_rows,
            num_read_tokens=share.num_read_tokens,
            scores=scores,
            trains=[index in learned[id(group)] for group, index in rows],
            with_reference=self.objective.reads_reference,
            **self._shape([of.rows for of in shares], len(rows)),
        )

    def _shape(self, everyones: list[list[tuple[RolloutGroup, int]]], own: int) -> dict[str, Any]:
        """Rows that stand in, and the length, that give a micro-batch the shape that it has on every process.

        The output embedding runs once per block of states, so that under ZeRO-3 the shape decides how often it is
        gathered. Elsewhere one row is enough, for a forward and a backward.
        """
        if not is_zero3(self.accelerator):
            return {"absent": [] if own else [Row(self.rounds.any_group(), 0)]}
        most = max(1, *map(len, everyones))
        longest = max((len(group.completion_ids[row]) for rows in everyones for group, row in rows), default=1)
        missing = most - own
        return {"absent": [Row(self.rounds.any_group(), 0)] * missing if missing else [], "num_tokens": longest}

    def _scores(self, shares: list[list[PassShare]]) -> dict[int, Tensor]:
        """Scores of all completions of a pass, by the identity of their group: `[G, H]` each.

        Every process scores its own micro-batches, as many as every other.
        """
        own = []
        with self._scoring() as model:
            for step in shares:
                batch = self._batch_of(step, None)
                own.append(self.objective.score(model, batch).cpu())
        everyone = gather_object([own])
        scores: dict[int, Tensor] = {}
        for index, of_process in enumerate(everyone):
            for step, values in zip(shares, of_process, strict=True):
                for (group, row), value in zip(step[index].rows, values, strict=False):
                    scores.setdefault(id(group), values.new_zeros(len(group), values.shape[-1]))[row] = value
        return scores

    def _evaluation_batch(self, groups: list[RolloutGroup]) -> MicroBatch:
        self._measure_gate(groups, "eval")
        count = self.accelerator.num_processes
        everyones = [[Row(g, row) for g in groups[index::count] for row in range(len(g))] for index in range(count)]
        own = everyones[self.accelerator.process_index]
        most = max(map(len, everyones))
        return self._collate(
            own,
            num_groups=len(groups) / count,
            num_rows=sum(map(len, groups)) / count,
            num_read_tokens=sum(len(ids) for group in groups for ids in group.completion_ids) / count,
            with_reference=self.objective.reads_reference,
            absent=[Row(groups[0], 0)] * (most - len(own)),
            num_tokens=max(len(ids) for group in groups for ids in group.completion_ids),
        )

    # Sampling ahead

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Takes the batches of one optimizer step; with `rollout_prefetch`, later ones can be seen."""
        if self.args.rollout_prefetch > 0:
            if self._lookahead is None or not self._lookahead.follows(epoch_iterator):
                self._lookahead = Lookahead(epoch_iterator, self._step)
            self._lookahead.forget(self._step)
            epoch_iterator = self._lookahead
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _sample_ahead(self) -> None:
        """Starts sampling the next `rollout_prefetch` rounds of this epoch."""
        if self._lookahead is None or not isinstance(self.sampler, PrefetchingSampler):
            return
        every = self.schedule.round_steps
        present = self._step // every
        steps_left = self.state.max_steps - self.state.global_step
        end = self._lookahead.first + steps_left * self.args.gradient_accumulation_steps
        end = min(end, self._sampled_steps)
        for index in range(present + 1, present + 1 + self.args.rollout_prefetch):
            inputs = self._lookahead.at(index * every) if index * every < end else None
            if inputs is None:
                return
            rows = self._round_rows(inputs, index)
            self.sampler.submit(index, partial(self._request, rows, "train", index))

    # Fitting

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Runs one micro-step and times the steps, as `GRPOTrainer` does."""
        start = time.perf_counter()
        model.train()
        batch: Any = self._prepare_inputs(inputs)
        with record_function("vgf/fit"):
            loss = super().training_step(model, batch, num_items_in_batch)
        self._step += 1
        self._current_train_step_time += time.perf_counter() - start
        if self._step % self.current_gradient_accumulation_steps == 0:
            self.metrics.add("train", "step_time", self._current_train_step_time)
            self._current_train_step_time = 0.0
        return loss

    @profiling_decorator
    def compute_loss(
        self, model: nn.Module, inputs: MicroBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The value's loss plus, with `distill_coef > 0`, the policy's."""
        if return_outputs:
            raise ValueError("VGFTrainer does not return outputs.")
        mode, objective, weight = "train", self.objective, 1.0
        if self._evaluating is not None:
            mode, objective, weight = "eval", objective.resolved(inputs.group_rewards), inputs.num_rows
        coef = self.entropy_control.applied(self.entropy_coef)
        with self.accelerator.autocast():
            loss, measured = objective(model, self.vgf_model, inputs, coef)
        if "entropy" in measured:
            self._control_entropy(mode, *self.accelerator.reduce(measured.pop("entropy")).tolist())
        if mode == "eval":  # in the place of transformers' mean, which takes prompts for rows and so cuts a batch
            measured["loss"] = loss.detach()
        for name, value in measured.items():
            self.metrics.add(mode, name, self.accelerator.reduce(value, reduction="mean").item(), weight)
        return loss

    def _control_entropy(self, mode: str, total: float, count: float) -> None:
        """Logs the entropy of a micro-batch of all processes; after an optimizer step its coefficient moves."""
        if count:
            self.metrics.add(mode, "entropy", total / count, count)
        if mode == "eval":
            return
        self.entropy_control.add(total, count)
        if self.accelerator.sync_gradients:
            self.entropy_coef = self.entropy_control.step(self.entropy_coef)
            self.metrics.add(mode, "entropy_coef", self.entropy_coef)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Creates the optimizer, with `value_learning_rate` for the value's parameters if that is set."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        rate = self.args.value_learning_rate
        if not fresh or rate is None:
            return optimizer
        of_policy = {id(parameter) for parameter in self.vgf_model.policy_parameters().values()}
        groups = []
        for group in optimizer.param_groups:
            for is_value in (False, True):
                members = [p for p in group["params"] if (id(p) not in of_policy) == is_value]
                if members:
                    groups.append({**group, "params": members, "lr": rate if is_value else group["lr"]})
        optimizer.param_groups = groups
        return optimizer

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("resume_from_checkpoint"):  # what an earlier training left is no part of this one
            self._restart()
        try:
            output = super()._inner_training_loop(*args, **kwargs)
        finally:
            self.sampler.close()
        # Samples of the value itself are what it already acted on: near chance is no alarm there.
        if self.schedule.samples_from == "base" and self.args.distill_coef == 0:
            self.gate.warn_at_chance()
        return output

    def _restart(self) -> None:
        self._step = 0
        self._rounds_without_reward = 0
        self._pass = self._lookahead = None
        self._chosen = {}
        self.gate = ValueGate()
        if self.use_adaptive_entropy:
            self.entropy_coef, self.entropy_control = self.args.entropy_coef, EntropyControl(self.args)
        self.rounds.restart()
        self.rounds.outcomes.load(self._known_outcomes)
        self.metrics.restart("train")
        if self.schedule.prompts is not None:
            self.schedule.prompts.restart()

    # Evaluation

    @contextmanager
    def _evaluation(self, prefix: str) -> Iterator[None]:
        """Everything inside is evaluation, and its metrics carry a prefix; nothing of it is left afterwards."""
        before, self._evaluating = self._evaluating, f"{prefix}_"
        self.metrics.held_out = []
        try:
            yield
        finally:
            self._evaluating = before
            self.metrics.restart("eval")

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Samples, scores and computes the loss on evaluation prompts; see `transformers.Trainer.evaluate`."""
        with self._evaluation(metric_key_prefix):
            return super().evaluate(self._given(eval_dataset), ignore_keys, metric_key_prefix)

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """As `evaluate`, with what was measured in the output's metrics."""
        with self._evaluation(metric_key_prefix):
            output = super().predict(self._given(test_dataset), ignore_keys, metric_key_prefix)
            output.metrics.update(self.metrics.pop("eval", f"{metric_key_prefix}_"))
            return output

    def _given(self, dataset: Any) -> Any:
        """A dataset that comes with the call, checked and prepared as those of the constructor are."""
        if dataset is None or isinstance(dataset, str):
            return dataset
        known = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        if any(dataset is one for one in (self.eval_dataset, *known)):
            return dataset
        if self.logged:
            dataset = self._grouped_for_evaluation(dataset, self.args)
        check_dataset(dataset, "eval_dataset")
        return self._readable(dataset, self.vgf_model.policy, self.args, "eval_dataset")

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """Samples, scores and computes the loss on evaluation prompts."""
        batch = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, batch).detach(), None, None

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Adds the collected metrics to `logs`, and shows completions if asked to."""
        mode = "train" if self._evaluating is None else "eval"
        logs.update(self.metrics.pop(mode, self._evaluating or ""))
        super().log(logs, start_time)
        if self.accelerator.is_main_process and self.log_completions:
            folder = Path(str(self.args.output_dir)) / "completions"
            shown = (self.num_completions_to_print, self.log_unique_prompts, self.args.report_to or [])
            self.metrics.show_completions(self.state.global_step, *shown, folder)

    # Checkpoints

    def round_state(self) -> dict[str, Any]:
        """What a resumed run needs beside weights and the optimizer, as JSON can hold it."""
        prompts = self.schedule.prompts
        return {
            "step": self._step,
            "held_out": self.rounds.held_out,
            "outcomes": self.rounds.outcomes.state(),
            "gate": self.gate.state(),
            "metrics": self.metrics.state(),
            "value_loss": self.objective.kind,
            "prompts": None if prompts is None else prompts.state(),
            "chosen": list(self._chosen.items()),
            "rounds_without_reward": self._rounds_without_reward,
            "entropy": [self.entropy_coef, self.entropy_control.last] if self.use_adaptive_entropy else None,
        }

    def round_tensors(self) -> dict[str, Tensor]:
        """The completions of this round and of earlier ones."""
        parts = {"fresh": self.rounds.fresh, "buffer": self.rounds.buffer.groups}
        return {f"{part}.{name}": x for part, groups in parts.items() for name, x in pack(groups).items()}

    def load_round_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Puts in place what `round_state` and `round_tensors` returned."""
        fresh, earlier = (
            unpack({name.removeprefix(part): x for name, x in tensors.items() if name.startswith(part)})
            for part in ("fresh.", "buffer.")
        )
        self.rounds.forget()
        self.rounds.restore(fresh, state["held_out"])
        self.rounds.buffer.add(earlier)
        self.rounds.outcomes.load(state["outcomes"])
        self.objective.set_kind(state["value_loss"])
        self.gate.load(state["gate"])
        self.metrics.load(state["metrics"])
        if self.schedule.prompts is not None:
            self.schedule.prompts.load(state["prompts"])
        self._chosen = dict(state.get("chosen", ()))
        self._step = state["step"]
        self._rounds_without_reward = state["rounds_without_reward"]
        if self.use_adaptive_entropy:
            self.entropy_coef, self.entropy_control.last = state["entropy"]
        self._pass = None
