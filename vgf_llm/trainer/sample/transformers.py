# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Completions by transformers' `generate`, of the base, the value and the transported policy alike."""

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.profiler import record_function

from vgf_llm._compat import pad
from vgf_llm.generation.sample import sample
from vgf_llm.models.language_model import evaluating
from vgf_llm.models.valued_policy import ValuedPolicy
from vgf_llm.trainer.sample.sampler import WHO, Request, Sampler, Samples

# Completions sampled together: a round may be a whole data set, and a cache of all its rows would not fit. A CPU gains
# nothing from more than some hundreds, and wastes less padding on fewer of similar length.
_ROWS_AT_A_TIME = 512
_ROWS_ON_CPU = 256


def prompts_in_a_row(prompts: Sequence[Sequence[int]]) -> int:
    """The largest N such that prompts come in blocks of N equal ones; 1 without rows.

    Example:
        >>> prompts_in_a_row([[5], [5], [6], [6], [6], [6]])
        2
    """
    return math.gcd(*(len(list(run)) for _, run in itertools.groupby(prompts))) or 1


@dataclass
class TransformersSampler(Sampler):
    """Samples with the model that trains."""

    model: Callable[[], ValuedPolicy]  # gives the policy and its value, unwrapped
    gathered: Callable[[], AbstractContextManager[Any]]  # A context in which sharded weights are whole
    pad_token_id: int  # fills prompts on the left
    generation_kwargs: dict[str, Any]  # arguments of `generate`
    pad_to_multiple_of: int | None  # lengths of prompts are rounded up to a multiple of it
    # Gives the largest of a number over all processes. Where weights stay shards while completions are sampled, every
    # process has to call `generate` as often as every other, whichever kinds its own rows are of.
    most: Callable[[int], int]

    def __call__(self, request: Request) -> Samples:
        """Samples the rows of a request, those of one kind together."""
        completion_ids: list[list[int]] = [[] for _ in request.prompt_ids]
        finished = [False] * len(request.prompt_ids)
        kl = []
        model = self.model()
        with record_function("vgf/sample"), self.gathered(), evaluating(model):
            for who in WHO:
                rows = [row for row, kind in enumerate(request.who) if kind == who]
                parts = self._parts([request.prompt_ids[row] for row in rows], model.device.type)
                for number in range(self.most(len(parts))):
                    if number >= len(parts):  # another process has more to sample
                        self._generate(model, request.prompt_ids[:1], who)
                        continue
                    chosen = [rows[place] for place in parts[number]]
                    found = self._generate(model, [request.prompt_ids[row] for row in chosen], who)
                    lengths = found.lengths.tolist()
                    for row, ids, length, ended in zip(
                        chosen, found.tokens.tolist(), lengths, found.finished.tolist(), strict=True
                    ):
                        completion_ids[row], finished[row] = ids[:length], ended
                    if found.kl is not None:
                        kl.append(found.kl.sum(dim=-1) / found.lengths.clamp_min(1))
        return Samples(completion_ids, finished, torch.cat(kl) if kl else None)

    def _parts(self, prompt_ids: list[list[int]], device_type: str) -> list[list[int]]:
        """Splits rows into calls: those of a prompt together, prompts of similar length in one."""
        count = prompts_in_a_row(prompt_ids)
        firsts = sorted(range(0, len(prompt_ids), count), key=lambda first: len(prompt_ids[first]))
        order = [row for first in firsts for row in range(first, first + count)]
        size = max(1, (_ROWS_ON_CPU if device_type == "cpu" else _ROWS_AT_A_TIME) // count) * count
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _generate(self, model: ValuedPolicy, prompt_ids: list[list[int]], who: str) -> Any:
        tensors = [torch.tensor(ids, device=model.device) for ids in prompt_ids]
        # Completions of one prompt are its particles, so that it is read once.
        n = prompts_in_a_row(prompt_ids)

        def padded(rows: list[Tensor], value: int) -> Tensor:
            return pad(rows, padding_value=value, padding_side="left", pad_to_multiple_of=self.pad_to_multiple_of)[::n]

        return sample(
            model,
            padded(tensors, self.pad_token_id),
            padded([torch.ones_like(ids) for ids in tensors], 0),
            who=cast(Literal["base", "value", "transport"], who),
            num_particles=n,
            **self.generation_kwargs,
        )
