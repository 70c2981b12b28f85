# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A bounded buffer of scored completions, kept in whole groups: one prompt with all its completions."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Numbers = Tensor | Sequence[int] | Sequence[float]

_TENSORS = {
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

    Args:
        prompt_ids: Token ids of the prompt, without padding.
        completion_ids: Token ids of each completion, without padding.
        rewards: Reward of each completion; NaN where it could not be scored.
        ref_logps: Log-probability of each completion token under the base model; `None` where no loss needs it.
        step: Version of the sampling policy: the optimisation step at which the completions were sampled.
        samplers: Which of the run's samplings drew each completion, an index; 0 for all when left out.

    Attributes:
        prompt_ids: int32 `[T]`.
        completion_ids: G times int32 `[T]`.
        rewards: float64 `[G]`.
        ref_logps: G times float32 `[T]`, or `None`.
        step: As given.
        samplers: int64 `[G]`.
        is_mixed: Whether two completions have different rewards, so that the group can teach which is better.

    Raises:
        ValueError: If a prompt or the group is empty, if lengths disagree, or if a reward is infinite.

    Example:
        >>> group = RolloutGroup([5, 6], [[7], [8, 9]], [0.0, 1.0])
        >>> len(group), group.is_mixed
        (2, True)
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
        self._check_lengths()
        if bool(self.rewards.isinf().any()):
            raise ValueError(f"`rewards` must be finite or NaN (not scored), got {self.rewards.tolist()}.")
        scored = self.rewards[~self.rewards.isnan()]
        self.is_mixed = len(scored) > 1 and bool(scored.min() < scored.max())

    def __len__(self) -> int:
        return len(self.completion_ids)

    def subset(self, rows: Sequence[int]) -> "RolloutGroup":
        """Returns some of the completions as a group of the same prompt.

        Args:
            rows: Their places, in order; at least one.
        """
        if len(rows) == len(self):
            return self
        kept = list(rows)
        logps = None if self.ref_logps is None else [self.ref_logps[row] for row in kept]
        ids = [self.completion_ids[row] for row in kept]
        return RolloutGroup(self.prompt_ids, ids, self.rewards[kept], logps, self.step, self.samplers[kept])

    def _check_lengths(self) -> None:
        if len(self.prompt_ids) == 0:
            raise ValueError("`prompt_ids` is empty: the prompt was tokenized to nothing, so it has no state to value.")
        if len(self.completion_ids) == 0:
            raise ValueError("`completion_ids` is empty; a group has at least one completion.")
        if len(self.rewards) != len(self.completion_ids):
            raise ValueError(
                f"`rewards` has {len(self.rewards)} entries for {len(self.completion_ids)} completions; give one each."
            )
        if len(self.samplers) != len(self.completion_ids):
            raise ValueError(f"`samplers` has {len(self.samplers)} entries for {len(self.completion_ids)} completions.")
        if self.ref_logps is not None:
            lengths = [len(ids) for ids in self.completion_ids]
            found = [len(row) for row in self.ref_logps]
            if found != lengths:
                raise ValueError(f"`ref_logps` has lengths {found}, the completions {lengths}; give one per token.")


class ValueBuffer:
    """Keeps the most recent groups, up to a number of completions.

    Args:
        capacity: Largest number of completions kept. The oldest groups leave first.

    Raises:
        ValueError: If `capacity` is negative.

    Example:
        >>> buffer = ValueBuffer(capacity=4)
        >>> buffer.add([RolloutGroup([1], [[2], [3]], [0.0, 1.0], step=step) for step in range(3)])
        >>> len(buffer), [group.step for group in buffer.groups]
        (4, [1, 2])
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"`capacity` must be at least 0 completions, got {capacity}.")
        self.capacity = capacity
        self._groups: deque[RolloutGroup] = deque()
        self._size = 0

    def __len__(self) -> int:
        """Number of completions."""
        return self._size

    @property
    def groups(self) -> list[RolloutGroup]:
        """The groups, oldest first."""
        return list(self._groups)

    def add(self, groups: Sequence[RolloutGroup]) -> None:
        """Append groups, and drop the oldest ones until the rest fits.

        Args:
            groups: The new groups.

        Raises:
            ValueError: If a group alone is larger than the capacity; nothing is added then.
        """
        for group in groups:
            if len(group) > self.capacity:
                raise ValueError(
                    f"A group of {len(group)} completions does not fit a buffer of {self.capacity}. "
                    "Raise `buffer_size`."
                )
        for group in groups:
            self._groups.append(group)
            self._size += len(group)
        while self._size > self.capacity:
            self._size -= len(self._groups.popleft())

    def sample(
        self,
        num_groups: int,
        generator: torch.Generator | None = None,
        wanted: Callable[[RolloutGroup], bool] | None = None,
    ) -> list[RolloutGroup]:
        """Draw groups uniformly, none twice before all were drawn once.

        Args:
            num_groups: Number of groups.
            generator: Source of randomness; the same state and contents give the same groups.
            wanted: Which groups to draw from; `None` for all.

        Returns:
            `num_groups` groups, or an empty list if there is none to draw from.

        Raises:
            ValueError: If `num_groups` is negative.
        """
        if num_groups < 0:
            raise ValueError(f"`num_groups` must be at least 0, got {num_groups}.")
        pool = self.groups if wanted is None else [group for group in self._groups if wanted(group)]
        if not pool:
            return []
        order: list[int] = []
        while len(order) < num_groups:
            order += torch.randperm(len(pool), generator=generator).tolist()
        return [pool[index] for index in order[:num_groups]]

    def load(self, groups: Sequence[RolloutGroup]) -> None:
        """Replace the contents; this buffer's capacity stays, and the oldest groups leave.

        Args:
            groups: The groups, oldest first.
        """
        self._groups, self._size = deque(), 0
        self.add([group for group in groups if len(group) <= self.capacity])


def pack(groups: Sequence[RolloutGroup]) -> dict[str, Tensor]:
    """Return groups as flat tensors that a safetensors file can hold.

    Args:
        groups: The groups.

    Returns:
        Tensors by name, for `unpack`.
    """
    completions = [ids for group in groups for ids in group.completion_ids]
    logps = [row for group in groups for row in group.ref_logps or ()]
    values: dict[str, list] = {
        "prompt_lengths": [len(group.prompt_ids) for group in groups],
        "group_sizes": [len(group) for group in groups],
        "completion_lengths": [len(ids) for ids in completions],
        "has_ref_logps": [group.ref_logps is not None for group in groups],
        "steps": [group.step for group in groups],
    }
    tensors = {name: torch.tensor(value, dtype=_TENSORS[name]) for name, value in values.items()}
    tensors["prompt_ids"] = _concatenate([group.prompt_ids for group in groups], "prompt_ids")
    tensors["completion_ids"] = _concatenate(completions, "completion_ids")
    tensors["rewards"] = _concatenate([group.rewards for group in groups], "rewards")
    tensors["samplers"] = _concatenate([group.samplers for group in groups], "samplers")
    tensors["ref_logps"] = _concatenate(logps, "ref_logps")
    return tensors


def unpack(tensors: dict[str, Tensor]) -> list[RolloutGroup]:
    """Return the groups that `pack` was given.

    Args:
        tensors: What it returned.

    Raises:
        ValueError: If tensors are missing, of other types, or do not fit together.
    """
    _check_tensors(tensors)
    sizes = tensors["group_sizes"].tolist()
    lengths = tensors["completion_lengths"].tolist()
    has_logps = tensors["has_ref_logps"].tolist()
    prompts = tensors["prompt_ids"].split(tensors["prompt_lengths"].tolist())
    completions = iter(tensors["completion_ids"].split(lengths))
    rewards, samplers = tensors["rewards"].split(sizes), tensors["samplers"].split(sizes)
    lengths_of_group = torch.tensor(lengths, dtype=torch.int64).split(sizes)
    logp_lengths = [length for group, has in zip(lengths_of_group, has_logps, strict=True) if has for length in group]
    logps = iter(tensors["ref_logps"].split([int(length) for length in logp_lengths]))
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


def _concatenate(rows: Sequence[Tensor], name: str) -> Tensor:
    return torch.cat(list(rows)) if rows else torch.empty(0, dtype=_TENSORS[name])


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    for name, dtype in _TENSORS.items():
        if name not in tensors or tensors[name].dtype != dtype or tensors[name].ndim != 1:
            found = f"{tensors[name].dtype} {tuple(tensors[name].shape)}" if name in tensors else "nothing"
            raise ValueError(f"Expected a flat {dtype} tensor `{name}`, found {found}.")
    for name in ("prompt_lengths", "group_sizes", "completion_lengths"):
        if bool((tensors[name] < 0).any()):
            raise ValueError(f"Expected lengths of at least 0 in `{name}`, found {int(tensors[name].min())}.")
    num_groups = len(tensors["group_sizes"])
    num_completions = int(tensors["group_sizes"].sum())
    _expect_lengths(tensors, prompt_lengths=num_groups, has_ref_logps=num_groups, steps=num_groups)
    _expect_lengths(tensors, completion_lengths=num_completions, rewards=num_completions, samplers=num_completions)
    with_logps = tensors["has_ref_logps"].repeat_interleave(tensors["group_sizes"])
    _expect_lengths(
        tensors,
        prompt_ids=int(tensors["prompt_lengths"].sum()),
        completion_ids=int(tensors["completion_lengths"].sum()),
        ref_logps=int(tensors["completion_lengths"][with_logps].sum()),
    )


def _expect_lengths(tensors: dict[str, Tensor], **expected: int) -> None:
    for name, length in expected.items():
        if len(tensors[name]) != length:
            raise ValueError(f"Expected {length} entries in `{name}`, found {len(tensors[name])}.")
