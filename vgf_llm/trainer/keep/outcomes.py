# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What rewards each prompt has had so far: a prompt whose rewards never differed teaches no log-ratio anything.

The likelihood of samples is learned from samples whatever their reward is. Where all completions of a prompt earn the
same, what it teaches is the sampler alone; GRPO, RLOO and pairs have no gradient there either.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


class PromptOutcomes:
    """The lowest and the highest reward of every prompt."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}
        self._of_run = (float("inf"), -float("inf"))

    def record(self, prompt_ids: Sequence[int] | Tensor, rewards: Tensor) -> None:
        """Notes the rewards `[G]` of completions of a prompt; NaN is none."""
        scored = rewards[~rewards.isnan()]
        if len(scored) == 0:
            return
        key, extremes = _key(prompt_ids), (float(scored.min()), float(scored.max()))
        self._seen[key] = _widened(self._seen.get(key, extremes), extremes)
        self._of_run = _widened(self._of_run, extremes)

    def has_contrast(self, prompt_ids: Sequence[int] | Tensor, scope: str = "prompt") -> bool:
        """Tells whether two completions earned different rewards, in whatever rounds.

        They are of the prompt or, with the scope `"run"`, of any prompts.
        """
        if scope == "run":
            return self.differ
        low, high = self._seen.get(_key(prompt_ids), (0.0, 0.0))
        return low < high

    @property
    def differ(self) -> bool:
        """Whether any two completions of the run earned different rewards, of whatever prompts."""
        return self._of_run[0] < self._of_run[1]

    def state(self) -> dict[str, list[float]]:
        """Returns the record, as JSON can hold it."""
        return {key: list(seen) for key, seen in self._seen.items()}

    def load(self, state: dict[str, list[float]]) -> None:
        """Puts a record in place."""
        self.__init__()  # type: ignore[misc]
        for key, (low, high) in state.items():
            self._seen[key] = low, high
            self._of_run = _widened(self._of_run, (low, high))


def _widened(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return min(one[0], other[0]), max(one[1], other[1])


def _key(prompt_ids: Sequence[int] | Tensor) -> str:
    ids = torch.as_tensor(prompt_ids, dtype=torch.int64)
    return hashlib.blake2b(ids.numpy().tobytes(), digest_size=8).hexdigest()
