# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Baselines in the schedule of a VGF recipe: rounds for TRL's `SFTTrainer`, the order of prompts for its `GRPOTrainer`.

The schedule is VGF's own code (`vgf_llm.trainer.choose`, `vgf_llm.trainer.keep`), which never sees a model. Loss and
optimizer are TRL's.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer, SFTTrainer

from eval.sampling import Samples
from eval.tasks import Task
from vgf_llm import VGFConfig
from vgf_llm.trainer.choose.prompts import tokenize_prompts
from vgf_llm.trainer.choose.schedule import Schedule, UnsolvedFirst
from vgf_llm.trainer.keep.buffer import RolloutGroup
from vgf_llm.trainer.keep.rounds import ValueRounds

# Responses of "base" or "value", the model that trains, to the problems of a task: a number of each, in a round.
Sampler = Callable[[str, Task, int, int], Samples]


class Rounds:
    """The completions of every optimizer step, sampled at the beginning of each round.

    As in VGF's trainer, a round takes prompts without a success first, and a part of their completions from the base.
    It trains on its successes, and on earlier ones drawn at `replay_ratio`; the steps after `rollout_fraction` of them
    train on earlier ones alone. A prompt teaches once it has had a failure and a success or, with the recipe's
    `contrast: run`, once the run has. Unlike VGF's trainer, it holds no prompts out.

    Args:
        args: The recipe.
        task: Training problems, whose gold is 1 for a success.
        tokenizer: The base's.
        sampler: Gives completions.

    Attributes:
        num_steps: Batches of the whole run.
        num_tokens: Sampled tokens so far.

    Raises:
        ValueError: If the recipe does not choose prompts by successes.
    """

    def __init__(self, args: VGFConfig, task: Task, tokenizer: PreTrainedTokenizerBase, sampler: Sampler) -> None:
        if args.prompt_selection != "unsolved":
            raise ValueError(
                f"`prompt_selection` is {args.prompt_selection!r}, and iterated rejection sampling needs rewards of 0 "
                "and 1, for prompts without a success to come first. Set it to 'unsolved'."
            )
        self.args, self.task, self.tokenizer, self.sampler = args, task, tokenizer, sampler
        steps, self.per_round = args.steps_per_generation, args.generation_batch_size // args.num_generations
        self.prompts = UnsolvedFirst(len(task.problems), args.seed)
        self.schedule = Schedule(
            num_generations=args.num_generations,
            samples_from=args.samples_from,
            base_generations=args.base_generations,
            round_steps=steps * args.num_iterations,
            rollout_fraction=args.rollout_fraction,
            prompts=self.prompts,
        )
        self.kept = ValueRounds(
            groups_per_round=self.per_round,
            steps_per_round=steps,
            num_iterations=args.num_iterations,
            buffer_size=args.buffer_size,
            replay_ratio=args.replay_ratio,
            seed=args.seed,
        )
        per_epoch = len(task.problems) // self.per_round * self.schedule.round_steps
        updates = math.ceil(args.num_train_epochs * (per_epoch // args.gradient_accumulation_steps))
        self.num_steps = (args.max_steps if args.max_steps > 0 else updates) * args.gradient_accumulation_steps
        self.num_tokens = 0
        self._shares: list[Any] = []

    def rows(self, step: int) -> list[dict[str, list[int]]]:
        """Returns the batch of a step; every step has to be asked for once, in order.

        Returns:
            `input_ids` and `labels` of each completion, -100 for tokens of the prompt. Where nothing has been learned
            yet, one row without labels, which has no gradient.
        """
        pass_index, place = divmod(step, self.args.steps_per_generation)
        if step % self.schedule.round_steps == 0:
            self.kept.retire(_successes)
            if step < self.schedule.sampled_steps(self.num_steps):
                self.kept.begin(self._sample(step // self.schedule.round_steps))
            elif len(self.kept.buffer) == 0:
                raise ValueError("No response is right, so there is nothing to train on.")
        if place == 0:
            self._shares = self.kept.shares(pass_index, self._teaches, whole_groups=False)
        rows = [_row(group, index) for group, index in self._shares[place][0].rows]
        return rows or [_without_labels(_row(self.kept.any_group(), 0))]

    def _teaches(self, group: RolloutGroup) -> list[int]:
        found = self.kept.outcomes.has_contrast(group.prompt_ids, self.args.contrast)
        return _successes(group) if found else []

    def _sample(self, number: int) -> list[RolloutGroup]:
        chosen = self.prompts.choose(self.per_round)
        task = self.task.select(chosen)
        who = self.schedule.who(self.args.num_generations, first_row=0, mode="train")
        parts = [self.sampler(kind, task, who.count(kind), number) for kind in dict.fromkeys(who)]
        rewards = torch.cat([part.gold for part in parts], dim=1)
        self.prompts.record(chosen, rewards)
        self.num_tokens += sum(int(part.num_tokens.sum()) for part in parts)
        prompt_ids = tokenize_prompts(list(task.problems["prompt"]), self.tokenizer, task.chat_template_kwargs)
        groups = []
        for place, ids in enumerate(prompt_ids):
            texts = [text for part in parts for text in part.responses[place]]
            completions = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
            ended = [[*tokens, self.tokenizer.eos_token_id] for tokens in completions]
            groups.append(RolloutGroup(ids, ended, rewards[place], step=number))
        return groups


class RoundsTrainer(SFTTrainer):
    """TRL's trainer on batches that are sampled while it trains.

    Args:
        rounds: What gives them.
        **kwargs: Of `SFTTrainer`; its data set has a column `step`.
    """

    def __init__(self, rounds: Rounds, **kwargs: Any) -> None:
        self.rounds = rounds
        super().__init__(**kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Loads a batch when its step comes; accelerate's loader would sample rounds a step too early."""
        return DataLoader(
            self.train_dataset,
            batch_size=None,
            collate_fn=lambda row: self.data_collator(self.rounds.rows(row["step"])),
        )


class UnsolvedFirstTrainer(GRPOTrainer):
    """TRL's trainer on prompts that have no success yet, before others; one process."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prompts = UnsolvedFirst(len(self.train_dataset), self.args.seed)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        self._chosen = self.prompts.choose(len(inputs) // self.num_generations)
        rows = [self.train_dataset[index] for index in self._chosen]
        return super()._generate_and_score_completions([row for row in rows for _ in range(self.num_generations)])

    def _calculate_rewards(self, *args: Any) -> Any:
        rewards = super()._calculate_rewards(*args)
        self.prompts.record(self._chosen, rewards.view(-1, self.num_generations))
        return rewards


def _successes(group: RolloutGroup) -> list[int]:
    return (group.rewards == 1).nonzero().flatten().tolist()


def _row(group: RolloutGroup, index: int) -> dict[str, list[int]]:
    prompt, completion = group.prompt_ids.tolist(), group.completion_ids[index].tolist()
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def _without_labels(row: dict[str, list[int]]) -> dict[str, list[int]]:
    return {**row, "labels": [-100] * len(row["labels"])}
