# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Where responses end, noted by the criteria that end them while `generate` runs."""

from typing import Any

import torch
from torch import Tensor
from transformers import MaxLengthCriteria, MaxTimeCriteria, PreTrainedModel, StoppingCriteriaList


class Ends(StoppingCriteriaList):
    """The stopping criteria of one `generate`, end tokens among them, which note the step at which each row was done.

    Example:
        >>> from transformers import EosTokenCriteria
        >>> ends = Ends([EosTokenCriteria(torch.tensor([2])), MaxLengthCriteria(4)])
        >>> rows = torch.tensor([[1, 5, 2, 0], [1, 7, 8, 9]])
        >>> for length in (2, 3, 4):
        ...     done = ends(rows[:, :length], None)
        >>> ends.lengths.tolist(), ends.finished.tolist()
        ([2, 3], [True, False])
    """

    def __init__(self, criteria: Any = ()) -> None:
        super().__init__(criteria)
        self.steps = 0
        self._lengths: Tensor | None = None
        self._finished: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Tells which rows are done after a step, `[R]`."""
        self.steps += 1
        said = cut = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for criterion in self:
            done = criterion(input_ids, scores, **kwargs)
            if _is_limit(criterion):
                cut = cut | done
            else:
                said = said | done
        if self._lengths is None or self._finished is None:
            self._lengths, self._finished = torch.zeros_like(said, dtype=torch.long), torch.zeros_like(said)
        new = self._lengths == 0
        self._lengths = torch.where(new & (said | cut), self.steps, self._lengths)
        self._finished = self._finished | (new & said)
        return said | cut

    @property
    def lengths(self) -> Tensor:
        """`[R]`, tokens of each response, the one that ended it included."""
        assert self._lengths is not None
        return torch.where(self._lengths == 0, self.steps, self._lengths)

    @property
    def finished(self) -> Tensor:
        """`[R]`, true where a response ended by itself; false where a limit of length or time cut it."""
        assert self._finished is not None
        return self._finished

    def replayed(self, sequences: Tensor, prompt_length: int) -> "Ends":
        """Asks the criteria, limits aside, about responses that are there already.

        Args:
            sequences: `[R, P + T]`.
            prompt_length: P.

        Returns:
            Ends whose `lengths` and `finished` are those of `sequences`.
        """
        again = Ends(criterion for criterion in self if not _is_limit(criterion))
        for length in range(prompt_length + 1, sequences.shape[1] + 1):
            again(sequences[:, :length], None)
        return again


def _is_limit(criterion: Any) -> bool:
    return isinstance(getattr(criterion, "original", criterion), MaxLengthCriteria | MaxTimeCriteria)


def record_ends(model: PreTrainedModel) -> Ends:
    """Puts `Ends` around the stopping criteria that a model's next `generate` prepares.

    A `custom_generate` callable is given them too, but with it transformers 5.23 loses tokenizer, streamer and
    `synced_gpus`.

    Args:
        model: A model for this one call, see `shallow_copy`.

    Returns:
        What the call will fill.
    """
    ends, prepare = Ends(), model._get_stopping_criteria

    def prepared(*args: Any, **kwargs: Any) -> Ends:
        ends.extend(prepare(*args, **kwargs))
        return ends

    model._get_stopping_criteria = prepared  # type: ignore[method-assign]
    return ends


def response_mask(lengths: Tensor, num_tokens: int) -> Tensor:
    """Marks the tokens of responses.

    Args:
        lengths: `[...]`.
        num_tokens: T.

    Returns:
        `[..., T]`, 1 or 0, of dtype long.

    Example:
        >>> response_mask(torch.tensor([1, 3]), 3).tolist()
        [[1, 0, 0], [1, 1, 1]]
    """
    return (torch.arange(num_tokens, device=lengths.device) < lengths.unsqueeze(-1)).long()


def mask_after_eos(tokens: Tensor, eos_token_ids: list[int]) -> Tensor:
    """Marks tokens up to and with the first end token, for responses of which nothing else is known.

    Args:
        tokens: `[B, T]`, from outside; what was generated here has `lengths`.
        eos_token_ids: Every token that ends a response; none means that all tokens count.

    Returns:
        `[B, T]`, 1 or 0, of dtype long.

    Example:
        >>> mask_after_eos(torch.tensor([[5, 2, 0], [5, 6, 7]]), [2]).tolist()
        [[1, 1, 0], [1, 1, 1]]
    """
    is_eos = torch.isin(tokens, torch.tensor(list(eos_token_ids), dtype=tokens.dtype, device=tokens.device))
    ended_before = is_eos.long().cumsum(dim=-1) - is_eos.long()
    return (ended_before == 0).long()
