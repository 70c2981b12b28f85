# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Choosing one response among the particles of a prompt."""

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vgf_llm.models.config import TransportConfig

AnswerFn = Callable[[list[int]], Hashable | None]


def select(
    values: Tensor, selection: str, *, answers: Sequence[Sequence[Hashable | None]], weights: Tensor | None = None
) -> Tensor:
    """Picks one particle per prompt.

    Args:
        values: `[B, N]`.
        selection: `"value"`: the highest value; `"majority"`: the most frequent answer; `"weighted_vote"`: the answer
            whose particles weigh most. A vote returns the answer's particle of highest value. `None` answers have no
            vote unless nothing else was answered.
        answers: `B` lists of `N` answers.
        weights: `[B, N]`, positive, for `"weighted_vote"`.

    Returns:
        Indices `[B]`.

    Raises:
        ValueError: For an unknown selection.

    Example:
        >>> values = torch.tensor([[0.1, 0.9, 0.2]])
        >>> select(values, "majority", answers=[["a", "b", "a"]]).tolist()
        [2]
    """
    if selection == "value":
        return values.argmax(dim=-1)
    if selection not in ("majority", "weighted_vote"):
        raise ValueError(f"`selection` must be value, weighted_vote or majority here, got {selection!r}.")
    if selection == "majority" or weights is None:
        weights = torch.ones_like(values)
    chosen = []
    for row, row_weights, row_answers in zip(values.tolist(), weights.tolist(), answers, strict=True):
        votes: dict[Hashable, float] = defaultdict(float)
        for answer, weight in zip(row_answers, row_weights, strict=True):
            if answer is not None:
                votes[answer] += weight
        members = list(range(len(row)))
        if votes:
            best = max(votes.values())
            # Among tied answers the one whose best particle has the highest value.
            members = [i for i, answer in enumerate(row_answers) if answer is not None and votes[answer] == best]
        chosen.append(max(members, key=row.__getitem__))
    return torch.tensor(chosen, device=values.device)


def last_match(pattern: re.Pattern[str], tokenizer: PreTrainedTokenizerBase) -> AnswerFn:
    """Returns what votes see of a response: the last match of a pattern, of its first group if it has one."""

    def answer(token_ids: list[int]) -> str | None:
        matches = list(pattern.finditer(tokenizer.decode(token_ids, skip_special_tokens=True)))
        return matches[-1].group(1 if pattern.groups else 0) if matches else None

    return answer


def chosen_sequences(
    transport: TransportConfig,
    sequences: Tensor,
    mask: Tensor,
    values: Tensor | None,
    weights: Tensor | None,
    answer_fn: AnswerFn | None,
) -> tuple[Tensor, Tensor]:
    """Selects among the N particles `[B * N, P + T]` of each prompt, responses marked by `mask` `[B * N, T]`.

    Answers are the response's ids without an `answer_fn`. Returns the chosen sequences, all with `selection="none"`,
    and the index `[B]` of the chosen particles.
    """
    n = transport.num_particles
    particles = sequences.view(-1, n, sequences.shape[1])
    chosen = torch.zeros(len(particles), dtype=torch.long, device=sequences.device)
    if transport.selection == "none":
        return sequences, chosen
    if n > 1:
        assert values is not None
        answers: list[list[Hashable | None]] = []
        if transport.selection != "value":
            responses = token_lists(sequences[:, -mask.shape[1] :], mask)
            flat = [tuple(response) if answer_fn is None else answer_fn(response) for response in responses]
            answers = [flat[i : i + n] for i in range(0, len(flat), n)]
        chosen = select(values, transport.selection, answers=answers, weights=weights)
    return particles[torch.arange(len(chosen), device=chosen.device), chosen], chosen


def token_lists(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The ids `[R, T]` of each row that `mask` keeps."""
    return [row[keep.bool()].tolist() for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]
