# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`VGFTrainer`: learns a value from rewards, and on request distils the transported policy into weights."""

import textwrap
import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.utils import gather_object, set_seed
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
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
    unwrap_model_for_generation,
)
from vgf_llm.functional import within_prompt_accuracy
from vgf_llm.models import VGFModel
from vgf_llm.models.language_model import inner_model
from vgf_llm.trainer.buffer import RolloutGroup, collate
from vgf_llm.trainer.checkpoint import CheckpointMixin
from vgf_llm.trainer.metrics import MetricLog, logger
from vgf_llm.trainer.objective import Batch, mean_over_tokens, policy_loss, sequences, transport_batch, value_loss
from vgf_llm.trainer.reward_checks import RewardFunc
from vgf_llm.trainer.rewards import RewardRunner, combine
from vgf_llm.trainer.rollout import Rollout, RolloutEngine, RolloutFunc
from vgf_llm.trainer.rounds import ValueRounds
from vgf_llm.trainer.setup import align_pad_token, build_vgf_model, load_policy, load_tokenizer
from vgf_llm.trainer.validation import check_dataset, check_dataset_prompts, check_output_dir, check_vocabulary
from vgf_llm.trainer.vgf_config import VGFConfig


class EpochRepeatSampler(RepeatSampler):
    """TRL's `RepeatSampler` whose order depends on the epoch alone, so that a resumed run draws the same prompts."""

    def set_epoch(self, epoch: int) -> None:
        """Seeds the order of one epoch."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)


class VGFTrainer(CheckpointMixin):
    """
    Trainer for Value Gradient Flow (VGF), proposed in the paper [Reinforcement Learning via Value Gradient
    Flow](https://huggingface.co/papers/2604.14265).

    It samples completions, scores them with reward functions, and fits a value that transports the policy's next-token
    distributions. The policy itself stays frozen unless `distill_coef > 0`. The arguments are those of
    [`~trl.GRPOTrainer`], in its order.

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
            The policy, by name or as a model, or a policy that has a value already.
        reward_funcs (`RewardFunc | list[RewardFunc]`):
            Reward functions as [`~trl.GRPOTrainer`] takes them: the path or hub id of a sequence classifier, such a
            model, or a synchronous or asynchronous callable `f(prompts=, completions=, completion_ids=, **columns,
            trainer_state=, log_extra=, log_metric=)` that returns a list of numbers or `None`.
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
        peft_config ([`~peft.PeftConfig`], *optional*):
            LoRA of the value's adapter and, with `distill_coef > 0`, of the policy.
        rollout_func (*optional*):
            `f(prompts, trainer)` that returns a dict with `"prompt_ids"` and `"completion_ids"`, one of each per
            prompt; further entries go to the reward functions.
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
    # The loss is a mean over micro-batches of equal size; the base class divides by the accumulation steps.
    loss_is_scaled_for_ga = False

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
        rollout_func: RolloutFunc | None = None,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = VGFConfig(f"{name.split('/')[-1] or 'model'}-VGF")
        self._check_inputs(args, train_dataset, eval_dataset)
        set_seed(args.seed)  # adapters start at random weights
        policy = load_policy(model, args, quantization_config)
        self._tokenizer = load_tokenizer(processing_class, policy, args)
        check_vocabulary(self._tokenizer, inner_model(policy.policy if isinstance(policy, VGFModel) else policy))
        for dataset, name in ((train_dataset, "train_dataset"), (eval_dataset, "eval_dataset")):
            if dataset is not None:
                check_dataset_prompts(
                    dataset,
                    self._tokenizer,
                    policy.config,
                    args.max_completion_length,
                    args.chat_template_kwargs,
                    name,
                )
        self.reward_runner = RewardRunner(
            reward_funcs,
            reward_weights=args.reward_weights,
            reward_processing_classes=reward_processing_classes,
            model_init_kwargs=args.model_init_kwargs,
            trust_remote_code=args.trust_remote_code,
            chat_template_kwargs=args.chat_template_kwargs,
            device=args.device,
            profile=lambda name: profiling_context(self, name),
        )
        if isinstance(train_dataset, Dataset) and rollout_func is None:  # a rollout function may add columns
            self.reward_runner.check_columns(train_dataset.column_names)
        vgf_model = build_vgf_model(policy, args, peft_config)
        align_pad_token(vgf_model, self._tokenizer)
        if args.disable_dropout:
            disable_dropout_in_model(vgf_model)
        self._settings(args, train_dataset, eval_dataset)
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
        self._finish_setup(rollout_func)

    @staticmethod
    def _check_inputs(args: VGFConfig, train_dataset: Any, eval_dataset: Any) -> None:
        """Refuses bad datasets and an unwritable folder before anything is loaded."""
        if not isinstance(args, VGFConfig):
            raise TypeError(
                f"`args` must be a VGFConfig, got {type(args).__name__}; VGFConfig.from_grpo(args) carries one over."
            )
        check_dataset(train_dataset)
        if eval_dataset is not None:
            check_dataset(eval_dataset, "eval_dataset")
        check_output_dir(args.output_dir)

    def _settings(self, args: VGFConfig, train_dataset: Any, eval_dataset: Any) -> None:
        """Sets TRL's attributes, which callbacks and reward functions read."""
        self.num_generations = args.num_generations
        self.num_generations_eval = args.num_generations_eval or args.num_generations
        self.num_iterations = args.num_iterations
        self.max_completion_length = args.max_completion_length
        self.temperature = args.temperature
        self.shuffle_dataset = args.shuffle_dataset
        self._step = 0
        self._current_train_step_time = 0.0
        datasets = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
        if any(isinstance(dataset, IterableDataset) for dataset in (train_dataset, *datasets)):
            if args.accelerator_config.dispatch_batches:
                raise ValueError("A streamed dataset needs `accelerator_config={'dispatch_batches': False}`.")
            args.accelerator_config.dispatch_batches = False
            if args.dataloader_num_workers:
                raise ValueError("A streamed dataset needs `dataloader_num_workers=0`, to keep groups together.")

    def _finish_setup(self, rollout_func: RolloutFunc | None) -> None:
        """Sets up what needs the accelerator."""
        args = self.args
        if self.vgf_model.ref_model is not None:
            self.vgf_model.ref_model.to(self.accelerator.device)
        self.reward_runner.prepare(self.accelerator, deepspeed=self.is_deepspeed_enabled)
        self.metrics = MetricLog(self.accelerator, self.reward_runner.reward_func_names, args.generation_batch_size)
        accelerator = self.accelerator
        pad_token_id = self._tokenizer.pad_token_id
        self.rounds = ValueRounds(args, accelerator.num_processes, accelerator.process_index, pad_token_id)
        set_seed(args.seed, device_specific=True)  # processes must not sample the same completions
        self.rollout = RolloutEngine(self, rollout_func)

    @property
    def vgf_model(self) -> VGFModel:  # type: ignore[override]
        """The model without the wrappers of distributed training."""
        accelerator = getattr(self, "accelerator", None)
        return self.model if accelerator is None else accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def generation_context(self) -> AbstractContextManager[Any]:
        """Gathers sharded weights once for a whole rollout."""
        return unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        )

    # Data

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = ["prompt"]

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

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        return EpochRepeatSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler:
        return RepeatSampler(
            data_source=eval_dataset, mini_repeat_count=self.num_generations_eval, seed=self.args.seed
        )

    # A round: sample, score, group

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Runs one micro-step and times the steps, as `GRPOTrainer` does."""
        start = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step += 1
        self._current_train_step_time += time.perf_counter() - start
        if self._step % self.current_gradient_accumulation_steps == 0:
            self.metrics.add("train", "step_time", self._current_train_step_time)
            self._current_train_step_time = 0.0
        return loss

    @profiling_decorator
    def _prepare_inputs(self, inputs: list[dict[str, Any]]) -> Batch:
        """Turns dataset rows into a collated batch, sampling a new round when the last is used up."""
        if not self.model.training:
            groups = self._sample_groups(inputs, "eval")
            own = groups[self.accelerator.process_index :: self.accelerator.num_processes]
            self._measure_gate(own, "eval")
            batch = collate(own or groups[:1], self._tokenizer.pad_token_id, self.accelerator.device)
            return {**batch, "num_groups": len(own or groups[:1])}
        every = self.args.steps_per_generation * self.num_iterations
        if self._step % every == 0 or not self.rounds.fresh:
            groups = self._sample_groups(inputs, "train")
            if self.rounds.loss_kind is None:
                rewards = torch.cat([group.rewards for group in groups])
                self.rounds.loss_kind = self.args.resolve_value_loss(rewards)
            self.rounds.begin(groups)
            self._measure_gate(self.rounds.held_out_groups(), "train")
        slice_index = self._step % self.args.steps_per_generation
        return self.rounds.micro_batch(slice_index, self._step, self.accelerator.device)

    def _sample_groups(self, inputs: list[dict[str, Any]], mode: str) -> list[RolloutGroup]:
        """Samples and scores completions of all processes; every process returns all groups in the same order."""
        rollout = self.rollout([row["prompt"] for row in inputs])
        if rollout.extra:
            inputs = [
                {**row, **{name: column[i] for name, column in rollout.extra.items()}} for i, row in enumerate(inputs)
            ]
        local = self.reward_runner(
            inputs,
            rollout.prompts,
            rollout.completions,
            rollout.completion_ids,
            self.state,
            self.metrics.log_extra,
            self.metrics.log_metric,
        )
        per_func = self.accelerator.gather(local)
        rewards = combine(per_func, self.reward_runner.reward_weights)
        count = self.num_generations if mode == "train" else self.num_generations_eval
        self._log_rollout(mode, rollout, per_func, rewards, count)
        rows = gather_object(
            list(zip(rollout.prompt_ids, rollout.completion_ids, self._ref_logps(rollout), strict=True))
        )
        if self.args.mask_truncated_completions:
            ended = torch.tensor([bool(c) and c[-1] in self.rollout.eos_token_ids for _, c, _ in rows])
            rewards = rewards.masked_fill(~ended.to(rewards.device), torch.nan)
        groups = []
        for start in range(0, len(rows), count):
            part = rows[start : start + count]
            logps = None if part[0][2] is None else [row[2] for row in part]
            ids = [row[1] for row in part]
            step = self.state.global_step
            groups.append(RolloutGroup(part[0][0], ids, rewards[start : start + count].tolist(), logps, step))
        return groups

    @torch.no_grad()
    def _ref_logps(self, rollout: Rollout) -> list[list[float] | None]:
        """Log-probabilities under the reference of this process's completions, once per round."""
        model = self.vgf_model
        if not model.value.needs_logits:
            return [None] * len(rollout.completion_ids)
        result: list[list[float] | None] = []
        size = max(self.args.per_device_train_batch_size, self.args.per_device_eval_batch_size)
        pairs = list(zip(rollout.prompt_ids, rollout.completion_ids, strict=True))
        with self.generation_context():
            for start in range(0, len(pairs), size):
                groups = [RolloutGroup(prompt, [ids], [0.0]) for prompt, ids in pairs[start : start + size]]
                batch = collate(groups, self._tokenizer.pad_token_id, self.accelerator.device)
                input_ids, attention_mask, mask = sequences(batch)
                logps = model.ref_logps(input_ids, attention_mask, mask.shape[1]).cpu()
                result += [row[: len(g.completion_ids[0])].tolist() for row, g in zip(logps, groups, strict=True)]
        return result

    def _log_rollout(self, mode: str, rollout: Rollout, per_func: Tensor, rewards: Tensor, count: int) -> None:
        accelerator, metrics = self.accelerator, self.metrics
        lengths = torch.tensor([len(ids) for ids in rollout.completion_ids], device=accelerator.device)
        ended = [bool(ids) and ids[-1] in self.rollout.eos_token_ids for ids in rollout.completion_ids]
        truncated = ~torch.tensor(ended, device=accelerator.device)
        lengths, truncated = accelerator.gather(lengths), accelerator.gather(truncated)
        if mode == "train":
            prompt_tokens = torch.tensor(sum(map(len, rollout.prompt_ids)), device=accelerator.device)
            self.state.num_input_tokens_seen += int(accelerator.gather(prompt_tokens).sum() + lengths.sum())
        metrics.set(mode, "num_tokens", self.state.num_input_tokens_seen)
        metrics.add_lengths(mode, lengths, truncated)
        metrics.add_rewards(mode, per_func, rewards, count)
        if rollout.kl is not None:
            metrics.add(mode, "rollout/kl", accelerator.gather(rollout.kl).mean().item())
        metrics.flush_reward_logs(mode, len(rollout.prompts))
        metrics.add_rows(gather_object(rollout.prompts), gather_object(rollout.completions), per_func)

    @torch.no_grad()
    def _measure_gate(self, groups: list[RolloutGroup], mode: str) -> None:
        """Measures the value, and what transport by it would do, on groups that it does not train on."""
        counts = torch.zeros(5, dtype=torch.float64)
        size = max(1, self.args.per_device_train_batch_size // self.num_generations)
        model = self.vgf_model
        with self.generation_context():
            for start in range(0, len(groups), size):
                part = groups[start : start + size]
                batch = collate(part, self._tokenizer.pad_token_id, self.accelerator.device)
                input_ids, attention_mask, mask = sequences(batch)
                values = model.score(input_ids, attention_mask, mask).values
                shape = batch["group_shape"]
                correct, pairs = within_prompt_accuracy(values.view(shape), batch["rewards"].view(shape))
                counts[:2] += torch.stack([correct, pairs]).cpu().double()
                if model.transport.space == "logit" and self.args.transport_steps > 0:
                    moved = transport_batch(model, batch, self.args)
                    moves = torch.stack([mean_over_tokens(x, batch) for x in (moved.kl, moved.distance)])
                    counts[2:] += torch.cat([moves.cpu().double(), torch.ones(1, dtype=torch.float64)])
        counts = self.accelerator.reduce(counts.to(self.accelerator.device, torch.float32), reduction="sum").cpu()
        correct, pairs, kl, distance, batches = counts.tolist()
        if mode == "train":
            self.rounds.gate.add(correct, int(pairs))
            accuracy = self.rounds.gate.accuracy
            self.metrics.set("train", "value/buffer_size", len(self.rounds.buffer))
            self.metrics.set("train", "value/within_prompt_accuracy", accuracy)
        elif pairs:
            self.metrics.add("eval", "value/within_prompt_accuracy", correct / pairs)
        if batches:
            self.metrics.add(mode, "transport/kl", kl / batches)
            self.metrics.add(mode, "transport/distance", distance / batches)

    # Losses

    @profiling_decorator
    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The value's loss plus, with `distill_coef > 0`, the policy's."""
        if return_outputs:
            raise ValueError("VGFTrainer does not return outputs.")
        args, mode = self.args, "train" if self.model.training else "eval"
        input_ids, attention_mask, mask = sequences(inputs)
        moved = transport_batch(self.vgf_model, inputs, args) if args.distill_coef > 0 else None
        output = model(
            input_ids,
            attention_mask,
            mask.shape[1],
            ref_logps=inputs.get("ref_logps"),
            candidate_ids=None if moved is None else moved.candidates.ids,
        )
        loss = torch.zeros((), device=input_ids.device)
        if args.value_coef > 0:
            kind = self.rounds.loss_kind or args.resolve_value_loss(inputs["rewards"])
            value = value_loss(kind, self.vgf_model, output.scores, inputs, args)
            loss = loss + args.value_coef * value
            self.metrics.add(mode, "value/loss", self.accelerator.reduce(value.detach(), reduction="mean").item())
        if moved is not None:
            distilled = policy_loss(output.policy_logps, moved, inputs)
            loss = loss + args.distill_coef * distilled
            for name, x in (("distill/loss", distilled.detach()), ("transport/kl", mean_over_tokens(moved.kl, inputs))):
                self.metrics.add(mode, name, self.accelerator.reduce(x, reduction="mean").item())
        return loss

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """Samples, scores and computes the loss on evaluation prompts."""
        batch = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, batch)
        return loss.mean().detach(), None, None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Creates the optimizer, with `value_learning_rate` for the value's parameters if that is set."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        rate = self.args.value_learning_rate
        if not fresh or rate is None:
            return optimizer
        unwrapped = self.vgf_model
        policy = {id(p) for n, p in unwrapped.policy.named_parameters() if ".value." not in n}
        groups = []
        for group in optimizer.param_groups:
            for is_policy in (True, False):
                members = [p for p in group["params"] if (id(p) in policy) == is_policy]
                if members:
                    groups.append({**group, "params": members, "lr": group["lr"] if is_policy else rate})
        optimizer.param_groups = groups
        return optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the collected metrics to `logs`, and shows completions if asked to."""
        mode = "train" if self.model.training else "eval"
        logs.update(self.metrics.pop(mode))
        super().log(logs, start_time)
        if self.accelerator.is_main_process and self.args.log_completions:
            self.metrics.show_completions(
                self.state.global_step,
                self.args.num_completions_to_print,
                self.args.log_unique_prompts,
                self.args.report_to or [],
            )

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super()._inner_training_loop(*args, **kwargs)
        gate = self.rounds.gate
        if gate.pairs >= 100 and not gate.is_above_chance and self.args.value_coef > 0:
            logger.warning(
                "value/within_prompt_accuracy is %.3f over %d held-out pairs, not above chance: the value cannot tell a "
                "prompt's better responses from its worse ones, and transport by it will not help. Train on more "
                "prompts, raise `value_learning_rate`, or use `value_parametrization='log_ratio'`.",
                gate.accuracy,
                gate.pairs,
            )
        return output
