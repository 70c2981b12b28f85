# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A bounded buffer of scored completions, kept in whole groups: one prompt with all its completions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Numbers = Tensor | Sequence[int] | Sequence[float]

_DTYPES = {
    "prompt_ids": torch.int32,
    "prompt_lengths": torch.int64,
    "group_sizes": torch.int64,
    "completion_ids": torch.int32,
    "completion_lengths": torch.int64,
    "rewards": torch.float64,
    "ref_logps": torch.float32,
    "has_ref_logps": torch.bool,
    "steps": torch.int64,
    "samplers": torch.int64,
}


class RolloutGroup:
    """One prompt with its G scored completions. Numbers are copied into CPU tensors; not to be changed afterwards.

    Attributes:
        prompt_ids: int32 `[T]`, without padding.
        completion_ids: G times int32 `[T]`, without padding.
        rewards: float64 `[G]`; NaN where a completion could not be scored.
        ref_logps: G times float32 `[T]`, log-probabilities under the base model; `None` where no loss needs them.
        step: The optimisation step at which the completions were sampled.
        samplers: int64 `[G]`, which of the run's samplings drew each completion, an index.
        is_mixed: Whether two completions have different rewards, so that the group can teach which is better.

    Raises:
        ValueError: If the prompt is empty or a reward infinite.
    """

    __slots__ = ("completion_ids", "is_mixed", "prompt_ids", "ref_logps", "rewards", "samplers", "step")

    def __init__(
        self,
        prompt_ids: Numbers,
        completion_ids: Sequence[Numbers],
        rewards: Numbers,
        ref_logps: Sequence[Numbers] | None = None,
        step: int = 0,
        samplers: Numbers | None = None,
    ) -> None:
        # int32 ids, because a full buffer holds tens of millions; float64 rewards, because Python's are.
        self.prompt_ids = _to_cpu(prompt_ids, torch.int32)
        self.completion_ids = tuple(_to_cpu(ids, torch.int32) for ids in completion_ids)
        self.rewards = _to_cpu(rewards, torch.float64)
        self.ref_logps = None if ref_logps is None else tuple(_to_cpu(row, torch.float32) for row in ref_logps)
        self.step = step
        self.samplers = _to_cpu([0] * len(self.completion_ids) if samplers is None else samplers, torch.int64)
        if len(self.prompt_ids) == 0:
            raise ValueError("`prompt_ids` is empty: the prompt was tokenized to nothing, so it has no state to value.")
        if bool(self.rewards.isinf().any()):
            raise ValueError(f"`rewards` must be finite or NaN (not scored), got {self.rewards.tolist()}.")
        scored = self.rewards[~self.rewards.isnan()]
        self.is_mixed = len(scored) > 1 and bool(scored.min() < scored.max())

    def __len__(self) -> int:
        return len(self.completion_ids)

    def subset(self, rows: Sequence[int]) -> "RolloutGroup":
        """Returns the completions of some places, at least one, as a group of the same prompt."""
        if len(rows) == len(self):
            return self
        kept = list(rows)
        logps = None if self.ref_logps is None else [self.ref_logps[row] for row in kept]
        ids = [self.completion_ids[row] for row in kept]
        return RolloutGroup(self.prompt_ids, ids, self.rewards[kept], logps, self.step, self.samplers[kept])


class ValueBuffer:
    """Keeps the most recent groups, up to a number of completions.

    Example:
        >>> buffer = ValueBuffer(capacity=4)
        >>> buffer.add([RolloutGroup([1], [[2], [3]], [0.0, 1.0], step=step) for step in range(3)])
        >>> len(buffer), [group.step for group in buffer.groups]
        (4, [1, 2])
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.groups: list[RolloutGroup] = []  # the oldest first
        self._size = 0

    def __len__(self) -> int:
        """Number of completions."""
        return self._size

    def add(self, groups: Sequence[RolloutGroup]) -> None:
        """Appends groups, but none that alone is too large, and drops the oldest until the rest fits."""
        fitting = [group for group in groups if len(group) <= self.capacity]
        self.groups += fitting
        self._size += sum(map(len, fitting))
        while self._size > self.capacity:
            self._size -= len(self.groups.pop(0))

    def sample(
        self,
        num_groups: int,
        generator: torch.Generator | None = None,
        wanted: Callable[[RolloutGroup], bool] = lambda group: True,
    ) -> list[RolloutGroup]:
        """Draws wanted groups uniformly, none twice before all were drawn once; nothing if none is wanted."""
        pool = [group for group in self.groups if wanted(group)]
        if not pool:
            return []
        order: list[int] = []
        while len(order) < num_groups:
            order += torch.randperm(len(pool), generator=generator).tolist()
        return [pool[index] for index in order[:num_groups]]


def pack(groups: Sequence[RolloutGroup]) -> dict[str, Tensor]:
    """Returns groups as flat tensors that a safetensors file can hold."""
    completions = [ids for group in groups for ids in group.completion_ids]
    numbers: dict[str, list[Any]] = {
        "prompt_lengths": [len(group.prompt_ids) for group in groups],
        "group_sizes": [len(group) for group in groups],
        "completion_lengths": [len(ids) for ids in completions],
        "has_ref_logps": [group.ref_logps is not None for group in groups],
        "steps": [group.step for group in groups],
    }
    rows: dict[str, list[Tensor]] = {
        "prompt_ids": [group.prompt_ids for group in groups],
        "completion_ids": completions,
        "rewards": [group.rewards for group in groups],
        "samplers": [group.samplers for group in groups],
        "ref_logps": [row for group in groups for row in group.ref_logps or ()],
    }
    tensors = {name: torch.tensor(values, dtype=_DTYPES[name]) for name, values in numbers.items()}
    return tensors | {name: torch.cat([torch.empty(0, dtype=_DTYPES[name]), *rows[name]]) for name in rows}


def unpack(tensors: dict[str, Tensor]) -> list[RolloutGroup]:
    """Returns the groups that `pack` was given; that the tensors are whole is what the checkpoint's checksums say."""
    sizes = tensors["group_sizes"].tolist()
    lengths = tensors["completion_lengths"]
    has_logps = tensors["has_ref_logps"]
    prompts = tensors["prompt_ids"].split(tensors["prompt_lengths"].tolist())
    completions = iter(tensors["completion_ids"].split(lengths.tolist()))
    rewards, samplers = tensors["rewards"].split(sizes), tensors["samplers"].split(sizes)
    logps = iter(tensors["ref_logps"].split(lengths[has_logps.repeat_interleave(tensors["group_sizes"])].tolist()))
    return [
        RolloutGroup(
            prompts[index],
            [next(completions) for _ in range(size)],
            rewards[index],
            [next(logps) for _ in range(size)] if has_logps[index] else None,
            step,
            samplers[index],
        )
        for index, (size, step) in enumerate(zip(sizes, tensors["steps"].tolist(), strict=True))
    ]


def _to_cpu(values: Any, dtype: torch.dtype) -> Tensor:
    # A copy, so that a row of a large batch does not keep the whole batch in memory.
    if isinstance(values, Tensor):
        return values.detach().to(device="cpu", dtype=dtype, copy=True)
    return torch.tensor(values, dtype=dtype)
