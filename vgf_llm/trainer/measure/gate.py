# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Whether the value ranks the completions of prompts that it does not train on, and what transport by it would do."""

import logging
import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vgf_llm.functional import within_prompt_accuracy
from vgf_llm.models.sequence_value import DifferentiableValue
from vgf_llm.models.valued_policy import ValuedPolicy
from vgf_llm.trainer.fit.losses import mean_over_rows
from vgf_llm.trainer.fit.micro_batch import MicroBatch, Row, collate
from vgf_llm.trainer.fit.objective import transport_candidates
from vgf_llm.trainer.keep.buffer import RolloutGroup

logger = logging.getLogger(__name__)


class ScoredPrompt(NamedTuple):
    """What the value says of a prompt's completions, `values`, and what they earned, `rewards`: G numbers each."""

    values: list[float]
    rewards: list[float]


class ValueGate:
    """Within-prompt accuracy of the value on prompts that it does not train on, over a sliding window.

    Accuracy over prompts says which prompts are hard; only within a prompt does it say which response is better, which
    is all that transport can use. The estimate looks back on `window` pairs.

    Example:
        >>> gate = ValueGate(window=100)
        >>> gate.add(60.0, 80)
        >>> gate.accuracy
        0.75
    """

    def __init__(self, window: int = 2000) -> None:
        self.window = window
        self._counts: deque[tuple[float, int]] = deque()

    def add(self, correct: float, pairs: int) -> None:
        """Counts `pairs` of which `correct` were ordered right."""
        if pairs:
            self._counts.append((correct, pairs))
        while len(self._counts) > 1 and self.pairs - self._counts[0][1] >= self.window:
            self._counts.popleft()

    @property
    def pairs(self) -> int:
        """Pairs in the window."""
        return sum(pairs for _, pairs in self._counts)

    @property
    def accuracy(self) -> float:
        """Accuracy in the window; NaN without pairs."""
        return sum(correct for correct, _ in self._counts) / self.pairs if self.pairs else math.nan

    def warn_at_chance(self) -> None:
        """Warns if the value, measured often enough, cannot tell better responses from worse ones.

        At chance is within two standard errors (pairs taken as independent) of one half.
        """
        if self.pairs >= 100 and self.accuracy - 0.5 <= 2 * 0.5 / math.sqrt(self.pairs):
            logger.warning(
                "value/within_prompt_accuracy is %.3f over %d held-out pairs, not above chance: the value cannot tell "
                "a prompt's better responses from its worse ones, and transport by it will not help. Train on more "
                "prompts, raise `learning_rate`, or use `value_parametrization='log_ratio'`.",
                self.accuracy,
                self.pairs,
            )

    def state(self) -> list[list[float]]:
        """Returns the window for a checkpoint."""
        return [[correct, pairs] for correct, pairs in self._counts]

    def load(self, state: list[list[float]]) -> None:
        """Restores what `state` returned."""
        self._counts = deque((float(correct), int(pairs)) for correct, pairs in state)


@torch.no_grad()
def measure_gate(
    model: ValuedPolicy,
    groups: Sequence[RolloutGroup],
    *,
    sequence: bool,
    groups_at_a_time: int,
    num_processes: int,
    process_index: int,
    pad_token_id: int,
) -> tuple[Tensor, list[ScoredPrompt]]:
    """Measures this process's share of the groups of all processes, with the unwrapped model in evaluation mode.

    Every process runs the model as often as every other, on as many tokens, whatever there is to measure: rows that it
    lacks are repeated from the first group and count nothing.

    Returns sums `[5]`, which add up over processes: pairs that the value orders as the rewards do, pairs that the
    rewards order, per token the KL of transport and its total variation to the reference, each the mean within a
    group, and groups whose transport was measured; and the groups of the share, scored.
    """
    transports = not sequence and model.transport.space == "logit" and model.transport.transport_steps > 0
    most = -(-len(groups) // num_processes)
    total, scored = torch.zeros(5, dtype=torch.float64), []
    for start in range(0, most, groups_at_a_time):
        shares = [
            list(groups[index::num_processes])[start : start + groups_at_a_time] for index in range(num_processes)
        ]
        part = shares[process_index]
        rows = [Row(group, row) for group in part for row in range(len(group))]
        # As many rows of as many tokens as on every other process.
        missing = max(sum(map(len, share)) for share in shares) - len(rows)
        batch = collate(
            rows,
            pad_token_id,
            model.device,
            absent=[Row(groups[0], 0)] * missing,
            num_tokens=max(len(ids) for share in shares for group in share for ids in group.completion_ids),
        )
        counts, found = _counts(model, batch, [len(group) for group in part], sequence=sequence, transports=transports)
        if part:
            total += counts
            scored += found
    return total.float(), scored


def _counts(
    model: ValuedPolicy, batch: MicroBatch, sizes: list[int], *, sequence: bool, transports: bool
) -> tuple[Tensor, list[ScoredPrompt]]:
    if sequence:
        scores = model.sequence_scores(batch.input_ids, batch.attention_mask, batch.response_mask)
        values = DifferentiableValue.mean(scores)
    else:
        values = model.score(
            batch.input_ids, batch.attention_mask, batch.completion_mask, group_size=batch.group_sizes
        ).values
    correct, pairs, scored = 0.0, 0.0, []
    count = sum(sizes)
    for own, rewards in zip(values[:count].cpu().split(sizes), batch.rewards[:count].cpu().split(sizes), strict=True):
        right, of = within_prompt_accuracy(own.unsqueeze(0).float(), rewards.unsqueeze(0))
        correct, pairs = correct + float(right), pairs + int(of)
        scored.append(ScoredPrompt(own.tolist(), rewards.tolist()))
    kl = distance = measured = 0.0
    if transports:
        candidates = model.candidate_values(
            batch.input_ids,
            batch.attention_mask,
            batch.num_tokens,
            top_k=model.transport.top_k_candidates,
            min_prob=model.transport.min_candidate_prob,
            group_size=batch.group_sizes,
        )
        moved = transport_candidates(candidates, model.transport)
        measured = len(sizes)
        if measured:
            kl, distance = (float(mean_over_rows(x, batch)) * measured for x in (moved.kl, moved.distance))
    return torch.tensor([correct, pairs, kl, distance, measured], dtype=torch.float64), scored
