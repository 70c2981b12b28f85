# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Values of decoded responses, from a differentiable value or a black box."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vgf_llm.generation.selection import token_lists
from vgf_llm.generation.sequence_decoding import Prefix, Text
from vgf_llm.models.sequence_value import DifferentiableValue, ReadPrefix
from vgf_llm.spaces.sequence import check_values

# Maps B prompts and B responses, as token ids, to B rewards.
ScoreFn = Callable[[list[list[int]], list[list[int]]], Sequence[float] | Tensor]


@dataclass
class TextScorer:
    """Values the text of R rows and counts how often it was asked."""

    value: DifferentiableValue | ScoreFn
    lower_bound_coef: float
    calls: int = 0
    _read: tuple[Prefix, ReadPrefix | None] | None = None

    def read(self, prefix: Prefix, num_particles: int) -> ReadPrefix | None:
        """Lets the value read a prefix once for all texts behind it, of N equal rows one; returns what it keeps."""
        if self._read is not None and self._read[0] is prefix:
            return self._read[1]
        found = None
        if isinstance(self.value, DifferentiableValue):
            rows = torch.cat([prefix.ids, prefix.mask], dim=1).view(-1, num_particles, 2 * prefix.ids.shape[1])
            every = num_particles if bool((rows == rows[:, :1]).all()) else 1
            found = self.value.read_prefix(prefix.ids[::every], prefix.mask[::every])
            if found is not None and every > 1:
                found = found.repeat_interleave(every)
        self._read = (prefix, found)
        return found

    def lower_bound(self, values: Tensor) -> Tensor:
        """Reduces the members' values `[R, H]` to `[R]`."""
        assert isinstance(self.value, DifferentiableValue)
        return self.value.lower_bound(values, self.lower_bound_coef)

    def __call__(self, prefix: Prefix, text: Text) -> Tensor:
        """Values prefix and text of every row, `[R]`, in float32; raises ValueError for values that are not finite."""
        self.calls += 1
        whole = prefix.followed_by(text)
        ids, mask, response = whole.ids, whole.mask, whole.response
        if isinstance(self.value, DifferentiableValue):
            read = self._read[1] if self._read is not None and self._read[0] is prefix else None
            ids = text.tokens if read is not None else ids
            values = self.lower_bound(self.value.from_ids(ids, mask, response, read))
        else:
            prompts, responses = token_lists(ids, mask * (1 - response)), token_lists(ids, response)
            values = torch.as_tensor(self.value(prompts, responses), dtype=torch.float32, device=ids.device)
            if values.shape != ids.shape[:1]:
                raise ValueError(
                    f"`sequence_value` returned values of shape {tuple(values.shape)} for {len(ids)} responses; it is "
                    "called with lists of prompts and responses as token ids, and returns one number for each."
                )
        check_values(values)
        return values


def check_sequence_value(
    value: object, *, vocab_size: int, gradients: bool, space: str
) -> "DifferentiableValue | ScoreFn":
    """Returns a sequence value that fits the policy and the way it is used, or raises ValueError or TypeError."""
    if value is None:
        raise ValueError(
            f"`space={space!r}` needs a sequence value, and this model has none. Set `model.sequence_value` to a "
            "SequenceValue, or pass `sequence_value=` to generate (with a plain callable, `transport_steps=0` or "
            "`control='swaps'`)."
        )
    if isinstance(value, DifferentiableValue):
        if value.vocab_size != vocab_size:
            raise ValueError(
                f"`sequence_value` has an embedding matrix of {value.vocab_size} tokens, the policy {vocab_size} "
                "logits: token ids would mean other tokens. Take a value with the policy's tokenizer, or score decoded "
                "text: a callable as `sequence_value`, with `transport_steps=0` or `control='swaps'`."
            )
        return value
    if not callable(value):
        raise TypeError(
            f"`sequence_value` must be a SequenceValue or a callable of prompts and responses as token ids, got "
            f"{type(value).__name__}."
        )
    if gradients:
        raise ValueError(
            f"`space={space!r}` needs the gradient of the sequence value in the response's embeddings, and a plain "
            f"callable ({type(value).__name__}) has none. Pass a SequenceValue, or keep the black box with "
            "`transport_steps=0` (best-of-N) or `control='swaps'` (random search)."
        )
    return value
