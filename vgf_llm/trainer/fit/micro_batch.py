# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""One micro-batch of completions, whose rows know nothing of the rows around them.

What a loss needs of the rest of a group (rewards, and scores where completions are compared) travels with every row, so
that any split of a group over micro-batches and processes gives the gradient of the whole group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_rows

from vgf_llm._compat import pad
from vgf_llm.trainer.keep.buffer import RolloutGroup


class Row(NamedTuple):
    """One completion of a group, by its place."""

    group: RolloutGroup
    place: int


@dataclass(frozen=True)
class MicroBatch:
    """R rows, padded.

    Attributes:
        prompt_ids: `[R, P]`, padded on the left.
        prompt_mask: `[R, P]`.
        completion_ids: `[R, T]`, padded on the right.
        completion_mask: `[R, T]`.
        group_sizes: Numbers of adjacent rows that share a prompt; they add up to R.
        rewards: `[R]` in float32; NaN where a completion has none.
        group_rewards: `[R, G]`, the rewards of the row's whole group, filled up with NaN.
        place: `[R]`, the row's own column in `group_rewards`.
        group_scores: `[R, G, H]`, scores of the row's whole group at the beginning of the pass, one per member of an
            ensemble; `None` where they are those of this batch.
        trains: `[R]`, whether the value learns from the row.
        present: `[R]`, false on rows that stand in for none, so that every process runs the model on as much.
        sampler: `[R]`, which of the run's samplings drew the row.
        ref_logps: `[R, T]`, the reference's log-probabilities of the tokens, 0 in the padding; `None` if unknown.
        whole: Whether every completion with a reward of the batch's groups is in it.
        num_groups: What a loss divides a sum over groups by: the groups of the pass per micro-batch.
        num_rows: The same for a sum over completions.
        num_read_tokens: The same for a sum over the tokens of completions that are read.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    group_sizes: list[int]
    rewards: Tensor
    group_rewards: Tensor
    place: Tensor
    group_scores: Tensor | None
    trains: Tensor
    present: Tensor
    sampler: Tensor
    ref_logps: Tensor | None
    whole: bool
    num_groups: float
    num_rows: float
    num_read_tokens: float

    @property
    def input_ids(self) -> Tensor:
        """`[R, P + T]`."""
        return torch.cat([self.prompt_ids, self.completion_ids], dim=1)

    @property
    def attention_mask(self) -> Tensor:
        """`[R, P + T]`."""
        return torch.cat([self.prompt_mask, self.completion_mask], dim=1)

    @property
    def response_mask(self) -> Tensor:
        """`[R, P + T]`, 1 on the completions alone."""
        return torch.cat([torch.zeros_like(self.prompt_mask), self.completion_mask], dim=1)

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.completion_ids.shape[1]

    def seen_from_each_row(self, scores: Tensor) -> Tensor:
        """The scores of each row's whole group, `[R, G, H]`, 0 for completions without one.

        Of those the row's own alone, in `scores` `[R, H]`, has a gradient.
        """
        known = self.group_scores
        if known is None:
            if not self.whole:
                raise ValueError("A group's completions are in several micro-batches, and their scores are not known.")
            known = scores.new_zeros(*self.group_rewards.shape, scores.shape[-1])
            start = 0
            for size in self.group_sizes:
                known[start : start + size, self.place[start : start + size]] = scores[start : start + size].detach()
                start += size
        place = self.place.view(-1, 1, 1).expand(-1, 1, scores.shape[-1])
        return known.to(scores.dtype).scatter(1, place, scores.unsqueeze(1))


def collate(
    rows: Sequence[Row],
    pad_token_id: int,
    device: torch.device | str = "cpu",
    pad_to_multiple_of: int | None = None,
    *,
    num_groups: float | None = None,
    num_rows: float | None = None,
    num_read_tokens: float | None = None,
    scores: Mapping[int, Tensor] | None = None,
    trains: Sequence[bool] | None = None,
    with_reference: bool = False,
    absent: Sequence[Row] = (),
    num_tokens: int | None = None,
) -> MicroBatch:
    """Turns rows, those of a group in adjacent places, into one padded batch.

    `scores` `[G, H]` are those of whole groups, by the identity of the group. `absent` rows follow the others, and no
    loss looks at them. `num_tokens` is the least T. Where the loss reads the reference's log-probabilities
    (`with_reference`), all rows must have them.

    Example:
        >>> group = RolloutGroup([1], [[2], [3, 4]], [0.0, 1.0])
        >>> batch = collate([Row(group, 1), Row(group, 0)], pad_token_id=0)
        >>> batch.completion_ids.tolist(), batch.place.tolist(), batch.group_sizes
        ([[3, 4], [2, 0]], [1, 0], [2])
    """
    every = [*rows, *absent]
    groups = [row.group for row in every]
    lacking = sum(row.group.ref_logps is None for row in rows) if with_reference else 0
    if lacking:
        raise ValueError(f"{lacking} of {len(rows)} rows have no `ref_logps`, which the loss reads.")
    prompts = [group.prompt_ids.long() for group in groups]
    completions = [group.completion_ids[index].long() for group, index in every]

    def padded(tensors: list[Tensor], value: float, side: str) -> Tensor:
        return pad(tensors, padding_value=value, padding_side=side, pad_to_multiple_of=pad_to_multiple_of).to(device)

    def right(tensors: list[Tensor], value: float) -> Tensor:
        # A row of the greatest length makes the others as long, and goes again.
        longest = tensors[0].new_zeros(num_tokens or 0)
        return padded([*tensors, longest], value, "right")[:-1]

    ref_logps = None
    if with_reference and rows:
        known = [row.group.ref_logps[row.place] for row in rows if row.group.ref_logps]
        ref_logps = right([*known, *(torch.zeros(len(completions[-1])) for _ in absent)], 0.0)
    width = max(len(group) for group in groups)
    group_rewards = torch.full((len(every), width), torch.nan)
    for number, row in enumerate(rows):
        group_rewards[number, : len(row.group)] = row.group.rewards.float()
    group_scores = None
    if scores is not None and rows:
        found = [scores[id(row.group)] for row in rows]
        found += [torch.zeros_like(found[0])] * len(absent)
        group_scores = torch.stack([pad_rows(x, (0, 0, 0, width - len(x))) for x in found]).to(device)
    if num_read_tokens is None:
        num_read_tokens = sum(map(len, completions[: len(rows)]))
    runs = [list(run) for _, run in groupby(groups[: len(rows)], key=id)]
    learned = [trains is None or trains[number] for number in range(len(rows))]
    return MicroBatch(
        prompt_ids=padded(prompts, pad_token_id, "left"),
        prompt_mask=padded([torch.ones_like(ids) for ids in prompts], 0, "left"),
        completion_ids=right(completions, pad_token_id),
        completion_mask=right([torch.ones_like(ids) for ids in completions], 0),
        group_sizes=[*(len(run) for run in runs), *(1 for _ in absent)],
        rewards=group_rewards.gather(1, torch.tensor([[row.place] for row in every])).squeeze(1).to(device),
        group_rewards=group_rewards.to(device),
        place=torch.tensor([row.place for row in every], device=device),
        group_scores=group_scores,
        trains=torch.tensor([*learned, *(False for _ in absent)], device=device),
        present=torch.tensor([*(True for _ in rows), *(False for _ in absent)], device=device),
        sampler=torch.stack([group.samplers[index] for group, index in every]).to(device),
        ref_logps=ref_logps,
        whole=all(int((~run[0].rewards.isnan()).sum()) <= len(run) for run in runs),
        num_groups=len(runs) if num_groups is None else num_groups,
        num_rows=len(rows) if num_rows is None else num_rows,
        num_read_tokens=num_read_tokens,
    )
