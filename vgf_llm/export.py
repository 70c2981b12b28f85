# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A budget other than L epsilon = 1 as a plain model: weights between base and value, and distillation from prompts.

The policy transported with budget S samples mu^(1 - S) pi^S on the base's candidates, which no weights represent in
general. Weights a share S of the way from the base to the model behind the value come near it below 1. From there on
TRL's on-policy distillation goes the rest of the way, and reaches budgets beyond 1.
"""

import copy
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DistillationConfig, DistillationTrainer

from vgf_llm.functional.losses import distillation_loss
from vgf_llm.models.config import TransportConfig
from vgf_llm.models.language_model import chosen_logps
from vgf_llm.models.merging import merge_value
from vgf_llm.models.valued_policy import Rows, ValuedPolicy
from vgf_llm.trainer.choose.prompts import check_dataset
from vgf_llm.trainer.fit.objective import transport_candidates
from vgf_llm.trainer.score.rewards import RewardRunner, combine, decode_completions

_MOST_MEASURED = 64  # prompts


@dataclass(frozen=True)
class Distance:
    """How far a plain model is from the transported policy, on the states that its own samples visit."""

    kl: float  # KL(p_S || pi), in nats per token
    reward: float | None = None  # Mean reward of the same samples; `None` without reward functions


class TransportDistillation(DistillationTrainer):
    """TRL's on-policy distillation into a plain student, with a transported policy as the teacher.

    The teacher stays as it is. `reward_funcs` are as for `VGFTrainer`, and score the samples of evaluation.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: ValuedPolicy,
        transport: TransportConfig,
        reward_funcs: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(student, **kwargs)
        self.teacher = teacher.eval()
        self.transport = transport
        self.runner = None if reward_funcs is None else RewardRunner(reward_funcs, device=self.args.device)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """KL of the teacher's next-token distribution to the student's, in nats, a mean over the visited states."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        rows, limits = Rows(ids, mask, inputs["completion_ids"].shape[1]), self.transport
        found = self.teacher.candidate_values(
            ids, mask, rows.num_tokens, top_k=limits.top_k_candidates, min_prob=limits.min_candidate_prob
        )
        target = transport_candidates(found, self.transport).logits
        logps = chosen_logps(model, rows.states(model), found.ids)
        loss = distillation_loss(logps, target, found.mask, inputs["completion_mask"])
        return (loss, None) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, None, None]:
        """The loss on samples of the prompts in `inputs`; their rewards go to the metrics."""
        with torch.no_grad():
            batch = self._prepare_inputs(inputs)
            loss = self.compute_loss(model, batch)
        if self.runner is not None:
            pairs = zip(batch["completion_ids"], batch["completion_mask"].bool(), strict=True)
            ids = [tokens[mask].tolist() for tokens, mask in pairs]
            prompts = [row["prompt"] for row in inputs]
            rewards = self.runner(inputs, prompts, decode_completions(self.processing_class, prompts, ids), ids)
            self._metrics["eval"]["reward"].append(combine(rewards, self.runner.reward_weights).nanmean().item())
        return loss, None, None

    def distance(self) -> Distance:
        """Measures the student on the evaluation prompts."""
        found = self.evaluate()
        return Distance(found["eval_loss"], found.get("eval_reward"))


def load_prompts(source: str, split: str = "train") -> Dataset:
    """Loads prompts from a file of JSON lines, a folder or a dataset of the hub; they need a column `prompt`.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "prompts.jsonl"
        ...     _ = path.write_text('{"prompt": "a"}\\n{"prompt": "b"}\\n')
        ...     load_prompts(str(path))["prompt"][:]
        ['a', 'b']
    """
    if Path(source).is_file():
        return load_dataset("json", data_files=source, split="train")
    return load_dataset(source, split=split)


def distil_budget(
    model: ValuedPolicy,
    tokenizer: PreTrainedTokenizerBase,
    budget: float,
    prompts: Dataset,
    *,
    reward_funcs: Any = None,
    **settings: Any,
) -> tuple[PreTrainedModel, Distance, Distance]:
    """Makes a plain model of the policy transported with a budget, by on-policy distillation.

    The student starts from the weights at min(S, 1) of the way to the model behind the value, samples the prompts, and
    is regressed to the transported next-token distribution at every state that it visits: KL(stop_grad(p_S) || pi) over
    the candidates. A LoRA learns it, which is merged at the end.

    Args:
        model: A model with a `log_ratio` value; it stays as it is.
        tokenizer: Its tokenizer.
        budget: S = L epsilon, above 0.
        prompts: A data set with a column `prompt`, of which up to 64, at most a fifth, are held out to measure.
        reward_funcs: As for `VGFTrainer`; the report then has the held-out samples' mean reward.
        **settings: Fields of TRL's `DistillationConfig`, such as `max_steps` (200; 0 only measures), `learning_rate`
            (1e-4), `per_device_train_batch_size` (16) and `max_completion_length`.

    Returns:
        The model, with the sampling defaults of `merge_value`; its distance to the transported policy before and after.

    Raises:
        TypeError: If `prompts` is no data set.
        ValueError: If `merge_value` refuses the model, `budget` is not above 0, or there are fewer than two prompts.
    """
    if not budget > 0:
        raise ValueError(f"`budget` must be above 0, got {budget}; budget 0 is the base itself.")
    check_dataset(prompts, "prompts")
    if len(prompts) < 2:
        raise ValueError(
            f"`prompts` must hold two prompts at least, one to train on and one to measure; got {len(prompts)}."
        )
    student = merge_value(model, min(budget, 1.0))
    defaults, limits = copy.deepcopy(student.generation_config), model.transport
    held_out = max(1, min(_MOST_MEASURED, len(prompts) // 5))
    parts = prompts.train_test_split(held_out, seed=settings.get("seed", 42))
    device = student.device.type
    with tempfile.TemporaryDirectory() as folder:
        config: dict[str, Any] = {
            "output_dir": folder,
            "max_steps": 200,
            "learning_rate": 1e-4,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": held_out,  # in one batch: its mean is the mean over all
            "top_k": limits.top_k_candidates,
            "generation_kwargs": {"epsilon_cutoff": limits.min_candidate_prob},
            "remove_unused_columns": False,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": device == "cpu",
            "bf16": device != "cpu" and student.dtype == torch.bfloat16,
        }
        trainer = TransportDistillation(
            student,
            model,
            replace(limits, transport_steps=1, step_size=float(budget)),
            reward_funcs,
            args=DistillationConfig(**{**config, **settings}),
            train_dataset=parts["train"],
            eval_dataset=parts["test"],
            processing_class=tokenizer,
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        before = after = trainer.distance()
        if trainer.args.max_steps != 0:
            trainer.train()
            after = trainer.distance()
    plain: PreTrainedModel = cast(PeftModel, trainer.accelerator.unwrap_model(trainer.model)).merge_and_unload()
    plain.generation_config = defaults
    return plain, before, after
