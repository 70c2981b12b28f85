# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The tokens that a decode step may take, without asking the host."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from vgf_llm.functional import candidate_set
from vgf_llm.functional._masking import candidate_mask

# What a request to vLLM names its `CandidateProcessor`'s arguments by.
CANDIDATES_ARGUMENT = "own_candidates"


def candidate_tokens(log_probs: Tensor, *, top_k: int, min_prob: float) -> tuple[Tensor, Tensor, Tensor]:
    """`vgf_llm.functional.candidate_set` of log-probabilities `[R, V]` that are normalised already.

    Returns ids, mask and log-probabilities of the candidates, each `[R, K]`, most likely first.
    """
    top, ids = log_probs.topk(min(top_k, log_probs.shape[-1]), dim=-1, sorted=True)
    return ids, candidate_mask(top, min_prob), top


class CandidateProcessor(LogitsProcessor):
    """Leaves a distribution's own candidates, ahead of temperature and top-p.

    They are its `top_k` most likely tokens with a probability of at least `min_prob`, and the most likely one always.
    """

    def __init__(self, top_k: int, min_prob: float) -> None:
        self.top_k = top_k
        self.min_prob = min_prob

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Maps logits `[R, V]` to logits with `-inf` for every token that is no candidate."""
        ids, mask = candidate_set(scores, top_k=self.top_k, min_prob=self.min_prob)
        kept = scores.gather(-1, ids).masked_fill(~mask, -torch.inf)
        return torch.full_like(scores, -torch.inf).scatter(-1, ids, kept)
