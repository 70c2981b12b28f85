# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Which prompts a round samples, where earlier outcomes decide it (`prompt_selection="unsolved"`).

A prompt that has a right completion needs no other one to be imitated, and one without has taught nothing yet. So the
completions of a run go where there is none: every prompt is tried, then those that failed are tried again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vgf_llm.trainer.rounds import counted_generator


class UnsolvedFirst:
    """Chooses prompts without a success first, among them the least tried; then, of all, the least tried.

    Every process holds the same record and chooses the same prompts. What it chooses follows from the record and the
    seed, so that a resumed run goes on with the same ones.

    Args:
        num_prompts: Prompts of the training set.
        seed: Seed of the run; decides among prompts that stand equal.

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

    def choose(self, count: int) -> list[int]:
        """Returns the indices of the next round's prompts, none twice unless `count` is more than there are."""
        order = torch.randperm(len(self._tries), generator=counted_generator(self.seed, self._rounds))
        for key in (self._tries, self._solved.to(torch.int64)):  # the last sort has the last word
            order = order[torch.sort(key[order], stable=True).indices]
        repeats = -(-count // len(order))
        return order.repeat(repeats)[:count].tolist()

    def record(self, indices: Sequence[int], rewards: Tensor) -> None:
        """Notes the outcomes of a round.

        Args:
            indices: What `choose` returned.
            rewards: Reward of each completion, `[len(indices), G]`; 1 is a success, NaN is none.
        """
        self._rounds += 1
        chosen = torch.tensor(indices, dtype=torch.int64)
        self._tries.index_add_(0, chosen, torch.ones_like(chosen))
        self._solved[chosen[(rewards == 1).any(dim=1).cpu()]] = True

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as JSON can hold it."""
        return {"rounds": self._rounds, "tries": self._tries.tolist(), "solved": self._solved.nonzero()[:, 0].tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Puts a record in place.

        Raises:
            ValueError: If it is of another number of prompts.
        """
        if len(state["tries"]) != len(self._tries):
            raise ValueError(
                f"The checkpoint has outcomes of {len(state['tries'])} prompts, but `train_dataset` has "
                f"{len(self._tries)}. Resume with the training set of the interrupted run."
            )
        self._rounds = state["rounds"]
        self._tries = torch.tensor(state["tries"], dtype=torch.int64)
        self._solved = torch.zeros(len(self._tries), dtype=torch.bool)
        self._solved[torch.tensor(state["solved"], dtype=torch.int64)] = True
