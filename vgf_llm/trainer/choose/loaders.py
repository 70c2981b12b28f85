# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Data loaders that repeat every prompt `num_generations` times, as TRL's online trainers do."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from vgf_llm._compat import RepeatSampler


class EpochRepeatSampler(RepeatSampler):
    """TRL's `RepeatSampler` whose order depends on the epoch alone, so that a resumed run draws the same prompts.

    With `fills` the last round of an epoch is filled up with the epoch's first prompts. Otherwise prompts that fill no
    round are left out of the epoch, as in TRL.

    Example:
        >>> sampler = EpochRepeatSampler(
        ...     data_source=range(3), mini_repeat_count=1, batch_size=2, shuffle=False, fills=True
        ... )
        >>> list(sampler), len(sampler)
        ([0, 1, 2, 0], 4)
    """

    def __init__(self, *, fills: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count = self.num_samples
        if fills:
            self.num_samples += -self.count % self.batch_size

    def __iter__(self) -> Iterator[int]:
        """Yields the indices of one epoch."""
        order: Sequence[int] = range(self.count)
        if self.shuffle:
            order = torch.randperm(self.count, generator=self.generator).tolist()
        for start in range(0, self.num_samples - self.batch_size + 1, self.batch_size):
            chunk = [order[place % self.count] for place in range(start, start + self.batch_size)]
            yield from [index for index in chunk for _ in range(self.mini_repeat_count)] * self.repeat_count

    def set_epoch(self, epoch: int) -> None:
        """Seeds the order of one epoch."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)
