# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The tokens that a decode step may take, without asking the host."""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

from vgf_llm.functional import candidate_set


class CandidateTokens(NamedTuple):
    """The candidates of R rows, most likely first.

    Attributes:
        ids: `[R, K]`.
        mask: `[R, K]`, false where a token is no candidate.
        log_probs: `[R, K]`, normalised over the vocabulary.
    """

    ids: Tensor
    mask: Tensor
    log_probs: Tensor


def candidate_tokens(log_probs: Tensor, *, top_k: int, min_prob: float) -> CandidateTokens:
    """`vgf_llm.functional.candidate_set` of log-probabilities that are normalised already.

    Args:
        log_probs: `[R, V]`.
        top_k: K; a smaller vocabulary is kept whole.
        min_prob: Least probability of a candidate; the most likely token always is one.

    Returns:
        The candidates.

    Example:
        >>> candidate_tokens(torch.tensor([[0.5, 0.3, 0.2]]).log(), top_k=2, min_prob=0.4).mask
        tensor([[ True, False]])
    """
    top, ids = log_probs.topk(min(top_k, log_probs.shape[-1]), dim=-1, sorted=True)
    mask = (top.exp() >= min_prob) & (top > -torch.inf)
    mask[..., 0] = True
    return CandidateTokens(ids, mask, top)


class CandidateProcessor(LogitsProcessor):
    """Leaves a distribution's own candidates, ahead of temperature and top-p.

    Args:
        top_k: K, the most likely tokens that stay.
        min_prob: Least probability of a token that stays; the most likely one always does.

    Example:
        >>> CandidateProcessor(2, 0.25)(torch.tensor([[0]]), torch.tensor([[0.5, 0.3, 0.2]]).log()).exp()
        tensor([[0.5000, 0.3000, 0.0000]])
    """

    def __init__(self, top_k: int, min_prob: float) -> None:
        self.top_k = top_k
        self.min_prob = min_prob

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Maps logits `[R, V]` to logits with `-inf` for every token that is no candidate."""
        ids, mask = candidate_set(scores, top_k=self.top_k, min_prob=self.min_prob)
        kept = scores.gather(-1, ids).masked_fill(~mask, -torch.inf)
        return torch.full_like(scores, -torch.inf).scatter(-1, ids, kept)
