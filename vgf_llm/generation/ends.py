# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Where responses end, noted by the criteria that end them while `generate` runs."""

from typing import Any

import torch
from torch import Tensor
from transformers import MaxLengthCriteria, MaxTimeCriteria, PreTrainedModel, StoppingCriteriaList


class Ends(StoppingCriteriaList):
    """The stopping criteria of one `generate`, end tokens among them, which note the step at which each row was done.

    Attributes:
        lengths: `[R]`, tokens of each response, the one that ended it included.
        finished: `[R]`, true where a response ended by itself; false where a limit of length or time cut it.
    """

    def __init__(self, criteria: Any = ()) -> None:
        super().__init__(criteria)
        self._done: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Tells which rows are done after a step, `[R]`."""
        said = cut = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for criterion in self:
            done = criterion(input_ids, scores, **kwargs)
            if _is_limit(criterion):
                cut = cut | done
            else:
                said = said | done
        if self._done is None:
            self._done = self.finished = torch.zeros_like(said)
            self.lengths = torch.zeros_like(said, dtype=torch.long)
        self.lengths = self.lengths + ~self._done
        self.finished = self.finished | (said & ~self._done)
        self._done = self._done | said | cut
        return said | cut

    def replayed(self, sequences: Tensor, prompt_length: int) -> "Ends":
        """The ends of responses that are there already, `[R, P + T]`, by the same criteria, limits aside."""
        again = Ends(criterion for criterion in self if not _is_limit(criterion))
        for length in range(prompt_length + 1, sequences.shape[1] + 1):
            again(sequences[:, :length], None)
        return again


def _is_limit(criterion: Any) -> bool:
    return isinstance(getattr(criterion, "original", criterion), MaxLengthCriteria | MaxTimeCriteria)


def record_ends(model: PreTrainedModel) -> Ends:
    """Puts the `Ends` that it returns around the stopping criteria of the next `generate` of a model's copy.

    A `custom_generate` callable is given them too, but with it transformers 5.23 loses tokenizer, streamer and
    `synced_gpus`.
    """
    ends, prepare = Ends(), model._get_stopping_criteria

    def prepared(*args: Any, **kwargs: Any) -> Ends:
        ends.extend(prepare(*args, **kwargs))
        return ends

    model._get_stopping_criteria = prepared
    return ends


def response_mask(lengths: Tensor, num_tokens: int) -> Tensor:
    """Marks the tokens of responses of `lengths` `[...]` among T with 1, `[..., T]`, of dtype long.

    Example:
        >>> response_mask(torch.tensor([1, 3]), 3).tolist()
        [[1, 0, 0], [1, 1, 1]]
    """
    return (torch.arange(num_tokens, device=lengths.device) < lengths.unsqueeze(-1)).long()


def mask_after_eos(tokens: Tensor, eos_token_ids: list[int]) -> Tensor:
    """Marks tokens `[B, T]` up to and with the first end token with 1, `[B, T]`, of dtype long.

    It is for responses from outside; what was generated here has `lengths`. Without end tokens all tokens count.

    Example:
        >>> mask_after_eos(torch.tensor([[5, 2, 0], [5, 6, 7]]), [2]).tolist()
        [[1, 1, 0], [1, 1, 1]]
    """
    is_eos = torch.isin(tokens, torch.tensor(list(eos_token_ids), dtype=tokens.dtype, device=tokens.device))
    ended_before = is_eos.long().cumsum(dim=-1) - is_eos.long()
    return (ended_before == 0).long()
