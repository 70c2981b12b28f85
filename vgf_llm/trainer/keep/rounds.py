# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The value data of training: the fresh round, the buffer of earlier ones, and their split into micro-batches.

Every process holds all groups, so that the data of a step is the same for one process and for many, and a run may be
resumed with another number of them.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vgf_llm.trainer.keep.buffer import RolloutGroup, ValueBuffer
from vgf_llm.trainer.keep.outcomes import PromptOutcomes

# Which completions of a group go through a loss, by their places.
Teaches = Callable[[RolloutGroup], Sequence[int]]


def prompt_hash(*salts: Any, prompt_ids: Sequence[int], num_bytes: int) -> int:
    """A number of some bytes, made of the salts and a prompt's tokens: the same in every round, process and run."""
    text = ":".join([*map(str, salts), ",".join(map(str, prompt_ids))])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=num_bytes).digest())


def is_held_out(prompt_ids: Sequence[int], ratio: float, seed: int) -> bool:
    """Says whether the value may not train on a prompt, as it may not on about `ratio` of all.

    Example:
        >>> sum(is_held_out([i], 0.25, 0) for i in range(1000)) in range(200, 300)
        True
    """
    return prompt_hash(seed, prompt_ids=prompt_ids, num_bytes=8) < ratio * 2**64


@dataclass(frozen=True)
class PassShare:
    """One process's part of one micro-step of a pass over a round.

    Attributes:
        rows: Groups with the places of the completions that are read, in order; empty where nothing is left for it.
        num_groups: Groups of the pass per micro-batch, those that teach nothing included.
        num_rows: Completions of the pass per micro-batch, likewise.
        num_read_tokens: Tokens of the pass per micro-batch, those of the completions that are read alone.
    """

    rows: list[tuple[RolloutGroup, int]]
    num_groups: float
    num_rows: float
    num_read_tokens: float


@dataclass(kw_only=True)
class ValueRounds:
    """Fresh groups, earlier groups, and the shares of them that micro-batches are made of.

    Attributes:
        groups_per_round: Prompts of a round.
        steps_per_round: Micro-steps of one pass over a round.
        num_iterations: Passes over a round.
        buffer_size: Completions kept of earlier rounds.
        replay_ratio: Earlier completions per fresh one.
        holdout_ratio: Fraction of prompts that nothing trains on.
        seed: Seed of the run.
        num_processes: Processes of the run.
    """

    groups_per_round: int
    steps_per_round: int
    num_iterations: int = 1
    buffer_size: int = 65536
    replay_ratio: float = 1.0
    holdout_ratio: float = 0.0
    seed: int = 0
    num_processes: int = 1

    def __post_init__(self) -> None:
        self.restart()

    def begin(self, groups: list[RolloutGroup]) -> None:
        """Starts a round with fresh groups; `retire` has moved those of the last one into the buffer."""
        # A shuffled round makes micro-batches exchangeable; seeded by the round, so that all processes agree.
        order = torch.randperm(len(groups), generator=counted_generator(self.seed, groups[0].step)).tolist()
        groups = [groups[index] for index in order]
        for group in groups:
            self.outcomes.record(group.prompt_ids, group.rewards)
        held = [is_held_out(group.prompt_ids.tolist(), self.holdout_ratio, self.seed) for group in groups]
        self.restore(groups, held)

    def restore(self, groups: list[RolloutGroup], held_out: list[bool]) -> None:
        """Puts a round in place as it was."""
        self.fresh: list[RolloutGroup] = groups
        self.held_out: list[bool] = held_out

    def retire(self, keeps: Teaches) -> None:
        """Moves what a loss may still want of the fresh groups into the buffer."""
        if self.replay_ratio > 0:
            kept = [(group, list(keeps(group))) for group in self._training()]
            self.buffer.add([group.subset(rows) for group, rows in kept if rows])
        self.restore([], [])

    def forget(self) -> None:
        """Drops all groups, fresh and earlier ones."""
        self.buffer = ValueBuffer(self.buffer_size)
        self.restore([], [])

    def restart(self) -> None:
        """Drops all that an earlier training left."""
        self.forget()
        self.outcomes = PromptOutcomes()

    def held_out_groups(self) -> list[RolloutGroup]:
        """Returns the round's held-out groups, the same ones in every process."""
        return [group for group, flag in zip(self.fresh, self.held_out, strict=True) if flag]

    def shares(self, pass_index: int, reads: Teaches, *, whole_groups: bool) -> list[list[PassShare]]:
        """Splits a pass, numbered over all rounds, over micro-steps and processes: fresh completions, then replayed.

        Every micro-step has one share of each process, of sizes that differ by one group or, where the completions of
        a group need not stay together, by one completion.
        """
        fresh = self._training(pass_index)
        replayed = self._replay(pass_index, reads)
        parts = self.steps_per_round * self.num_processes
        # What sums are divided by is the same in all micro-batches, whatever teaches nothing.
        num_groups = (len(self.fresh) + len(replayed)) / parts
        num_rows = sum(len(group) for group in (*self.fresh, *replayed)) / parts
        kinds = []
        for groups in (fresh, replayed):
            units = [[(group, row) for row in reads(group)] for group in groups]
            units = [unit for unit in units if unit]
            kinds.append(units if whole_groups else [[row] for unit in units for row in unit])
        lengths = (len(group.completion_ids[row]) for units in kinds for unit in units for group, row in unit)
        num_read_tokens = sum(lengths) / parts

        def share(part: int) -> PassShare:
            rows = [row for units in kinds for unit in _share(units, part, parts) for row in unit]
            return PassShare(rows, num_groups, num_rows, num_read_tokens)

        steps = range(self.steps_per_round)
        return [[share(step * self.num_processes + index) for index in range(self.num_processes)] for step in steps]

    def any_group(self) -> RolloutGroup:
        """Returns some group, to stand in where a process has nothing to read."""
        return self.fresh[0] if self.fresh else self.buffer.groups[0]

    def _training(self, pass_index: int = 0) -> list[RolloutGroup]:
        """The fresh groups that may train, in the order of one pass; later passes have other batches."""
        groups = [group for group, held in zip(self.fresh, self.held_out, strict=True) if not held]
        if pass_index % self.num_iterations == 0:
            return groups
        order = torch.randperm(len(groups), generator=counted_generator(self.seed, pass_index)).tolist()
        return [groups[index] for index in order]

    def _replay(self, pass_index: int, teaches: Teaches) -> list[RolloutGroup]:
        """The earlier groups of one pass over the round, a draw that all its micro-batches share.

        They stand in for the fresh ones where there are none, so that batches stay as large.
        """
        per_pass = (self.replay_ratio + (0 if self.fresh else 1)) * self.groups_per_round
        # Whole groups only: rounding the running total makes their number right on average.
        count = math.floor((pass_index + 1) * per_pass) - math.floor(pass_index * per_pass)
        return self.buffer.sample(count, counted_generator(self.seed, pass_index), lambda group: bool(teaches(group)))


def _share(units: list, part: int, parts: int) -> list:
    return units[len(units) * part // parts : len(units) * (part + 1) // parts]


def counted_generator(seed: int, count: int) -> torch.Generator:
    """Randomness derived from a counter instead of kept: a resumed run draws what an uninterrupted one would have."""
    generator = torch.Generator()
    generator.manual_seed((seed + 1) * 1_000_003 + count)
    return generator
