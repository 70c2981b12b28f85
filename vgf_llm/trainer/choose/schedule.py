# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Which prompts a round samples, who samples their completions, and when sampling ends. It never sees the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vgf_llm.trainer.keep.rounds import counted_generator


class UnsolvedFirst:
    """Chooses prompts without a success first, among them the least tried; then, of all, the least tried.

    A prompt that has a right completion needs no other one to be imitated, and one without has taught nothing yet.
    Every process holds the same record and chooses the same prompts. What it chooses follows from the record and the
    run's seed, so that a resumed run goes on with the same ones.

    Example:
        >>> prompts = UnsolvedFirst(3, seed=0)
        >>> first = prompts.choose(2)
        >>> prompts.record(first, torch.tensor([[0.0, 1.0], [0.0, 0.0]]))  # the first is solved, the second is not
        >>> prompts.choose(2) == [({0, 1, 2} - {*first}).pop(), first[1]]
        True
        >>> prompts.solved_fraction
        0.3333333333333333
    """

    def __init__(self, num_prompts: int, seed: int) -> None:
        self.seed = seed
        self._rounds = 0
        self._tries = torch.zeros(num_prompts, dtype=torch.int64)
        self._solved = torch.zeros(num_prompts, dtype=torch.bool)

    @property
    def solved_fraction(self) -> float:
        """Fraction of the prompts that have a completion of reward 1."""
        return self._solved.double().mean().item()

    def choose(self, count: int, waiting: Sequence[Sequence[int]] = ()) -> list[int]:
        """Returns the indices of a round's prompts, none twice unless `count` is more than there are.

        `waiting` are those of rounds before it whose outcomes are still to come: they count as tried.
        """
        rounds, tries = self._rounds + len(waiting), sum(map(self._times, waiting), start=self._tries)
        order = torch.randperm(len(tries), generator=counted_generator(self.seed, rounds))
        for key in (tries, self._solved.to(torch.int64)):  # the last sort has the last word
            order = order[torch.sort(key[order], stable=True).indices]
        repeats = -(-count // len(order))
        return order.repeat(repeats)[:count].tolist()

    def record(self, indices: Sequence[int], rewards: Tensor) -> None:
        """Notes the outcomes of a round: the rewards `[len(indices), G]` of the prompts that `choose` returned.

        1 is a success, NaN is no reward. Raises ValueError if a reward is neither 0 nor 1.
        """
        scored = rewards[~rewards.isnan()]
        if bool(((scored != 0) & (scored != 1)).any()):
            raise ValueError(
                f"`prompt_selection='unsolved'` counts a prompt as solved by a reward of 1, and rewards other than 0 "
                f"and 1 arrived, from {scored.min().item():g} to {scored.max().item():g}. Set "
                "`prompt_selection='dataset'`, or let the reward functions return 0 and 1."
            )
        self._rounds += 1
        chosen = torch.tensor(indices, dtype=torch.int64)
        self._tries = self._tries + self._times(indices)
        self._solved[chosen[(rewards == 1).any(dim=1).cpu()]] = True

    def _times(self, indices: Sequence[int]) -> Tensor:
        """How often each prompt stands among `indices`, which repeat some where a round takes more than there are."""
        return torch.bincount(torch.tensor(indices, dtype=torch.int64), minlength=len(self._tries))

    def restart(self) -> None:
        """Forgets all outcomes."""
        self.__init__(len(self._tries), self.seed)  # type: ignore[misc]

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as JSON can hold it."""
        return {"rounds": self._rounds, "tries": self._tries.tolist(), "solved": self._solved.nonzero()[:, 0].tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Puts a record in place; raises ValueError if it is of another number of prompts."""
        if len(state["tries"]) != len(self._tries):
            raise ValueError(
                f"The checkpoint has outcomes of {len(state['tries'])} prompts, but `train_dataset` has "
                f"{len(self._tries)}. Resume with the training set of the interrupted run."
            )
        self._rounds = state["rounds"]
        self._tries = torch.tensor(state["tries"], dtype=torch.int64)
        self._solved = torch.zeros(len(self._tries), dtype=torch.bool)
        self._solved[torch.tensor(state["solved"], dtype=torch.int64)] = True


@dataclass(kw_only=True)
class Schedule:
    """Who samples each completion of a round, and in which steps rounds are sampled at all.

    Example:
        >>> schedule = Schedule(num_generations=3, samples_from="value", base_generations=1, round_steps=1)
        >>> schedule.who(4, first_row=2, mode="train")
        ['value', 'base', 'value', 'value']
    """

    num_generations: int  # completions of a training prompt
    samples_from: str  # who samples what the base does not, of `vgf_llm.trainer.sample.sampler.WHO`
    round_steps: int  # micro-steps of a round, all passes over it
    base_generations: int = 0  # of the completions of a training prompt, those that the base samples
    rollout_fraction: float = 1.0  # share of the training steps whose rounds are sampled, to the nearest whole round
    prompts: UnsolvedFirst | None = None  # chooses by outcomes; `None` takes the prompts that the loader gives

    def who(self, count: int, *, first_row: int, mode: str) -> list[str]:
        """Returns who samples each of `count` rows, the first of which is `first_row` among those of all processes."""
        if mode == "eval":
            return [self.samples_from] * count
        places = [(first_row + row) % self.num_generations for row in range(count)]
        return ["base" if place < self.base_generations else self.samples_from for place in places]

    def sampled_steps(self, total_steps: int) -> int:
        """Micro-steps, of `total_steps`, in whose rounds completions are sampled; the others train on earlier ones."""
        if self.rollout_fraction == 1:
            return total_steps
        rounds = math.floor(total_steps * self.rollout_fraction / self.round_steps + 0.5)
        return max(1, rounds) * self.round_steps
