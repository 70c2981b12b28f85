# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`VGFTrainer`: learns a value from rewards, and on request distils the transported policy into weights."""

import textwrap
import time
from typing import Any, cast

import torch
from accelerate.utils import set_seed
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.profiler import record_function
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from vgf_llm._compat import (
    disable_dropout_in_model,
    get_config_model_id,
    identity,
    profiling_context,
    profiling_decorator,
)
from vgf_llm.models import VGFModel
from vgf_llm.models.language_model import inner_model
from vgf_llm.trainer.checkpoint import CheckpointMixin
from vgf_llm.trainer.dataloaders import DataLoaderMixin
from vgf_llm.trainer.faults import SIGTERM_STATUS, SaveOnSigterm
from vgf_llm.trainer.metrics import MetricLog, logger
from vgf_llm.trainer.objective import (
    Batch,
    mean_over_rows,
    policy_loss,
    sequences,
    transport_batch,
    transport_candidates,
    value_loss,
)
from vgf_llm.trainer.preferences import check_pairs, has_pairs, preferred, tokenized_pairs, with_prompts
from vgf_llm.trainer.prompt_selection import UnsolvedFirst
from vgf_llm.trainer.reward_checks import RewardFunc
from vgf_llm.trainer.rewards import RewardRunner
from vgf_llm.trainer.rollout import RolloutEngine, RolloutFunc, eos_token_ids
from vgf_llm.trainer.rollout_config import settings_dict
from vgf_llm.trainer.rounds import ValueRounds
from vgf_llm.trainer.sampling import SamplingMixin
from vgf_llm.trainer.sequence_objective import is_sequence, sequence_losses
from vgf_llm.trainer.setup import align_pad_token, build_vgf_model, check_inputs, load_policy, load_tokenizer
from vgf_llm.trainer.validation import (
    check_dataset_prompts,
    check_vocabulary,
    max_prompt_length,
)
from vgf_llm.trainer.vgf_config import VGFConfig


class VGFTrainer(DataLoaderMixin, SamplingMixin, CheckpointMixin):
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
            trainer_state=, log_extra=, log_metric=)` that returns a list of numbers or `None`. Without any, a dataset
            with the columns `"chosen"` and `"rejected"` is read as preference pairs, in TRL's formats, and nothing is
            sampled.
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
            prompt. `"ref_logprobs"`, the log-probability of every completion token under the base at temperature 1,
            spares log-ratio values a pass of the base; further entries go to the reward functions.
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
            origin = model if isinstance(model, str) else get_config_model_id(model.config)
            args = VGFConfig(f"{str(origin).split('/')[-1] or 'model'}-VGF")
        self.reads_pairs = reward_funcs is None and has_pairs(train_dataset)
        if self.reads_pairs:
            train_dataset, eval_dataset = with_prompts(train_dataset), with_prompts(eval_dataset)
        check_inputs(args, train_dataset, eval_dataset)
        set_seed(args.seed)  # adapters start at random weights
        policy = load_policy(model, args, quantization_config)
        self._tokenizer = load_tokenizer(processing_class, policy, args)
        check_vocabulary(self._tokenizer, inner_model(policy.policy if isinstance(policy, VGFModel) else policy))
        if self.reads_pairs:
            check_pairs(args, rollout_func, eval_dataset)
        train_dataset = self._readable(train_dataset, policy, args, "train_dataset")
        eval_dataset = self._readable(eval_dataset, policy, args, "eval_dataset")
        self.reward_runner = RewardRunner(
            preferred if self.reads_pairs else reward_funcs,
            reward_weights=args.reward_weights,
            reward_processing_classes=reward_processing_classes,
            model_init_kwargs=settings_dict(args.model_init_kwargs),
            trust_remote_code=args.trust_remote_code,
            chat_template_kwargs=settings_dict(args.chat_template_kwargs),
            device=args.device,
            profile=lambda name: profiling_context(self, name),
        )
        if (
            isinstance(train_dataset, Dataset) and rollout_func is None and not self.reads_pairs
        ):  # a rollout function may add columns
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

    def _readable(self, dataset: Any, policy: nn.Module, args: VGFConfig, name: str) -> Any:
        """Tokenizes preference pairs; of other datasets, checks that prompts fit."""
        if dataset is None:
            return None
        if isinstance(dataset, dict):
            return {key: self._readable(part, policy, args, f"{name}[{key!r}]") for key, part in dataset.items()}
        longest, template_kwargs = args.max_completion_length, settings_dict(args.chat_template_kwargs)
        if not self.reads_pairs:
            check_dataset_prompts(dataset, self._tokenizer, policy.config, longest, template_kwargs, name)
            return dataset
        return tokenized_pairs(
            dataset,
            self._tokenizer,
            eos_token_ids=eos_token_ids(policy, self._tokenizer),
            max_completion_length=longest,
            max_prompt_length=max_prompt_length(policy.config, longest),
            chat_template_kwargs=template_kwargs,
            name=name,
        )

    def _settings(self, args: VGFConfig, train_dataset: Any, eval_dataset: Any) -> None:
        """Sets TRL's attributes, which callbacks and reward functions read."""
        self.num_generations = cast(int, args.num_generations)
        self.num_generations_eval = args.num_generations_eval or self.num_generations
        self.num_iterations = args.num_iterations
        self.max_completion_length = args.max_completion_length
        self.temperature = args.temperature
        self.shuffle_dataset = bool(args.shuffle_dataset)
        self.prompts = None
        if args.prompt_selection == "unsolved":
            if self.reads_pairs or not isinstance(train_dataset, Dataset):
                found = "preference pairs" if self.reads_pairs else type(train_dataset).__name__
                raise ValueError(
                    "`prompt_selection='unsolved'` chooses among all prompts by the rewards of their completions, but "
                    f"`train_dataset` is {found}. Give a `Dataset` and reward functions, or leave it 'dataset'."
                )
            self.prompts = UnsolvedFirst(len(train_dataset), args.seed)
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
        self.sigterm = SaveOnSigterm(accelerator)
        self.add_callback(self.sigterm)

    @property
    def vgf_model(self) -> VGFModel:  # type: ignore[override]
        """The model without the wrappers of distributed training."""
        accelerator = getattr(self, "accelerator", None)
        if isinstance(self.model, VGFModel):  # nothing to take off, and every step asks
            return self.model
        return self.model if accelerator is None else accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def vllm_generation(self) -> Any:
        """TRL's vLLM engine with `use_vllm=True`, for rollout functions; else `None`."""
        return self.rollout.vllm

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Runs one micro-step and times the steps, as `GRPOTrainer` does."""
        start = time.perf_counter()
        model.train()
        batch = self._prepare_inputs(inputs)
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
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The value's loss plus, with `distill_coef > 0`, the policy's."""
        if return_outputs:
            raise ValueError("VGFTrainer does not return outputs.")
        mode = "train" if self.model.training else "eval"
        with self.accelerator.autocast():
            loss, measured = self._losses(model, inputs)
        for name, value in measured.items():
            self.metrics.add(mode, name, self.accelerator.reduce(value, reduction="mean").item())
        return loss

    def _losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        args = self.args
        kind = self.rounds.loss_kind or args.resolve_value_loss(batch["rewards"], pairs=self.reads_pairs)
        if is_sequence(args):
            return sequence_losses(model, self.vgf_model, batch, kind, args)
        input_ids, attention_mask, mask = sequences(batch)
        distil, targets = args.distill_coef > 0, None
        if not distil and args.value_coef > 0 and args.td_lambda < 1:
            with self.generation_context():  # before the forward whose graph a gathering would disturb
                targets = transport_batch(self.vgf_model, batch, args)
        output = model(
            input_ids,
            attention_mask,
            mask.shape[1],
            # A likelihood has no use for the reference: scores are log-probabilities then.
            ref_logps=torch.zeros_like(mask, dtype=torch.float32) if kind == "likelihood" else batch.get("ref_logps"),
            candidates=(args.top_k_candidates, args.min_candidate_prob) if distil else None,
            group_size=batch["group_sizes"],
        )
        moved = transport_candidates(output.candidates, args) if distil else None
        targets = targets if moved is None else moved
        loss = torch.zeros((), device=input_ids.device)
        measured = {}
        if args.value_coef > 0:
            weight = self.rounds.winner_coef
            value = value_loss(kind, self.vgf_model, output.scores, batch, args, targets, winner_coef=weight)
            loss = loss + args.value_coef * value
            measured["value/loss"] = value.detach()
        if moved is not None:
            distilled = policy_loss(output.policy_logps, moved, batch)
            loss = loss + args.distill_coef * distilled
            measured["distill/loss"] = distilled.detach()
            measured["distill/kl"] = mean_over_rows(moved.kl, batch)
        return loss, measured

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """Samples, scores and computes the loss on evaluation prompts."""
        batch = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, batch)
        # The mean over all processes, because transformers weighs the processes of a last, smaller batch unequally.
        return self.accelerator.reduce(loss.detach(), reduction="mean"), None, None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Creates the optimizer, with `value_learning_rate` for the value's parameters if that is set."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        rate = self.args.value_learning_rate
        if not fresh or rate is None:
            return optimizer
        unwrapped = self.vgf_model
        policy = {id(p) for p in unwrapped.policy_parameters().values()}
        groups = []
        for group in optimizer.param_groups:
            for is_policy in (True, False):
                members = [p for p in group["params"] if (id(p) in policy) == is_policy]
                if members:
                    groups.append({**group, "params": members, "lr": group["lr"] if is_policy else rate})
        optimizer.param_groups = groups
        return optimizer

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
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
        try:
            output = super()._inner_training_loop(*args, **kwargs)
        finally:
            self.rollout.close()
            self.sigterm.restore()
        if self.sigterm.received:
            logger.warning(
                "SIGTERM ended training after step %d, with a checkpoint in %s; `resume_from_checkpoint=True` goes on.",
                self.state.global_step,
                self.args.output_dir,
            )
            raise SystemExit(SIGTERM_STATUS)
        # Samples of the transported policy are what the value already acted on: near chance is no alarm there.
        if (self.reads_pairs or not self.args.rolls_out_value) and self.args.distill_coef == 0:
            self.rounds.gate.warn_at_chance()
        return output
