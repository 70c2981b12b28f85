# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The value data of training: the fresh round, the buffer of earlier ones, and their split into micro-batches.

Every process holds all groups, so that the data of a step is the same for one process and for many, and a run may be
resumed with another number of them.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, cast

import torch

from vgf_llm.trainer.buffer import RolloutGroup, ValueBuffer, collate
from vgf_llm.trainer.metrics import ValueGate
from vgf_llm.trainer.vgf_config import VGFConfig


def is_held_out(prompt_ids: Sequence[int], ratio: float, seed: int) -> bool:
    """Says whether the value may not train on a prompt: a property of the prompt, the same in every round and process.

    Args:
        prompt_ids: Token ids.
        ratio: Fraction of prompts held out.
        seed: Seed of the run.

    Returns:
        True for about `ratio` of all prompts.

    Example:
        >>> sum(is_held_out([i], 0.25, 0) for i in range(1000)) in range(200, 300)
        True
    """
    text = f"{seed}:{','.join(map(str, prompt_ids))}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) < ratio * 2**64


class ValueRounds:
    """Fresh groups, earlier groups, and the micro-batches made of them.

    Args:
        args: The configuration.
        num_processes: Processes of the run.
        process_index: This process.
        pad_token_id: Fills padding.
    """

    def __init__(self, args: VGFConfig, num_processes: int, process_index: int, pad_token_id: int) -> None:
        self.args = args
        # The configuration has replaced every None among them.
        self.num_generations = cast(int, args.num_generations)
        self.groups_per_round = cast(int, args.generation_batch_size) // self.num_generations
        self.steps_per_generation = cast(int, args.steps_per_generation)
        self.num_processes = num_processes
        self.process_index = process_index
        self.pad_token_id = pad_token_id
        self.buffer = ValueBuffer(args.buffer_size)
        self.gate = ValueGate()
        self.fresh: list[RolloutGroup] = []
        self.held_out: list[bool] = []
        self._training: list[RolloutGroup] = []  # the fresh groups, without the rewards of those held out
        self.loss_kind: str | None = None
        self.winner_coef: float | None = None
        # Losses that compare completions need whole groups; others take any divisor that fits the batch.
        whole = args.needs_whole_groups
        per_device = args.per_device_train_batch_size
        self.unit = self.num_generations if whole else math.gcd(per_device, self.num_generations)

    @property
    def drops_ties(self) -> bool:
        """Whether groups whose outcomes agree go through no loss: the pairwise one has no gradient on them."""
        return self.loss_kind == "pairwise" and self.args.distill_coef == 0

    def begin(self, groups: list[RolloutGroup]) -> None:
        """Starts a round with fresh groups; those of the last one go into the buffer."""
        self.retire()
        # A shuffled round makes micro-batches exchangeable; seeded by the round, so that all processes agree.
        order = torch.randperm(len(groups), generator=counted_generator(self.args.seed, groups[0].step)).tolist()
        groups = [groups[index] for index in order]
        self.restore(
            groups, [is_held_out(g.prompt_ids.tolist(), self.args.value_holdout_ratio, self.args.seed) for g in groups]
        )

    def restore(self, groups: list[RolloutGroup], held_out: list[bool]) -> None:
        """Puts a round in place as it was."""
        self.fresh = groups
        self.held_out = held_out
        self._training = [_silenced(group) if held else group for group, held in zip(groups, held_out, strict=True)]

    def retire(self) -> None:
        """Moves the fresh groups that may train into the buffer."""
        if self.args.replay_ratio > 0:
            keep = zip(self.fresh, self.held_out, strict=True)
            self.buffer.add(self._learned([group for group, held in keep if not held and self._teaches(group)]))
        self.restore([], [])

    def forget(self) -> None:
        """Drops all groups, fresh and earlier ones."""
        self.buffer = ValueBuffer(self.args.buffer_size)
        self.restore([], [])

    def held_out_groups(self) -> list[RolloutGroup]:
        """Returns this process's share of the round's held-out groups."""
        held = [group for group, flag in zip(self.fresh, self.held_out, strict=True) if flag]
        return held[self.process_index :: self.num_processes]

    def micro_batch(self, slice_index: int, step: int, device: torch.device) -> dict[str, Any]:
        """Returns this process's rows of one micro-batch: fresh ones, then replayed ones.

        Args:
            slice_index: Which of the round's `steps_per_generation` slices.
            step: Micro-steps so far.
            device: Where the batch goes.

        Returns:
            What `collate` returns; held-out rows have a NaN reward, which every value loss leaves out. `num_groups` is
            what losses divide their sum over groups by: the round's groups per micro-batch, the same in all of them,
            though replayed groups may not divide evenly and those that no loss looks at are dropped.
        """
        args = self.args
        parts = self.steps_per_generation * self.num_processes
        part = slice_index * self.num_processes + self.process_index
        pass_index = step // self.steps_per_generation
        fresh = self._units(self._fresh(pass_index))
        replayed = self._units(self._replay(pass_index))
        chosen = _share(fresh, part, parts) + _share(replayed, part, parts)
        chosen = self._learned(chosen) or chosen[:1]  # one stays, for a backward in every process
        batch = collate(chosen, self.pad_token_id, device, cast(int | None, args.pad_to_multiple_of))
        return {**batch, "num_groups": (len(fresh) + len(replayed)) / parts}

    def _fresh(self, pass_index: int) -> list[RolloutGroup]:
        """The round in the order of one pass; later passes over it (`num_iterations`) have other batches."""
        if pass_index % self.args.num_iterations == 0:
            return self._training
        order = torch.randperm(len(self._training), generator=counted_generator(self.args.seed, pass_index)).tolist()
        return [self._training[index] for index in order]

    def _learned(self, groups: list[RolloutGroup]) -> list[RolloutGroup]:
        """What of groups goes through a loss: with pairs those that have one, with a likelihood their successes."""
        if self.drops_ties:
            return [group for group in groups if group.is_mixed]
        if self.loss_kind == "likelihood" and self.args.distill_coef == 0:
            return [kept for group in groups if (kept := group.successes()) is not None]
        return groups

    def _teaches(self, group: RolloutGroup) -> bool:
        if self.loss_kind == "pairwise":
            return group.is_mixed
        if self.loss_kind == "likelihood":
            return bool((group.rewards == 1).any())
        # Undecided means that there were no rewards yet, or failures alone.
        return self.loss_kind is not None and not bool(group.rewards.isnan().all())

    def _replay(self, pass_index: int) -> list[RolloutGroup]:
        """The earlier groups of one pass over the round, a draw that all its micro-batches share.

        They stand in for the fresh ones where there are none, so that batches stay as large.
        """
        per_pass = (self.args.replay_ratio + (0 if self.fresh else 1)) * self.groups_per_round
        # Whole groups only: rounding the running total makes their number right on average.
        count = math.floor((pass_index + 1) * per_pass) - math.floor(pass_index * per_pass)
        return self.buffer.sample(count, counted_generator(self.args.seed, pass_index))

    def _units(self, groups: list[RolloutGroup]) -> list[RolloutGroup]:
        return [unit for group in groups for unit in _split(group, self.unit)]


def _share(units: list[RolloutGroup], part: int, parts: int) -> list[RolloutGroup]:
    return units[len(units) * part // parts : len(units) * (part + 1) // parts]


def counted_generator(seed: int, count: int) -> torch.Generator:
    """Randomness derived from a counter instead of kept: a resumed run draws what an uninterrupted one would have."""
    generator = torch.Generator()
    generator.manual_seed((seed + 1) * 1_000_003 + count)
    return generator


def _silenced(group: RolloutGroup) -> RolloutGroup:
    rewards = torch.full_like(group.rewards, torch.nan)
    return RolloutGroup(group.prompt_ids, group.completion_ids, rewards, group.ref_logps, group.step)


def _split(group: RolloutGroup, unit: int) -> list[RolloutGroup]:
    if len(group) <= unit:  # less where only its successes were kept
        return [group]
    parts = []
    for start in range(0, len(group), unit):
        rows = slice(start, start + unit)
        logps = None if group.ref_logps is None else group.ref_logps[rows]
        parts.append(RolloutGroup(group.prompt_ids, group.completion_ids[rows], group.rewards[rows], logps, group.step))
    return parts
