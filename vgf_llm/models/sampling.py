# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""How tokens were drawn, and their log-probabilities under that: what a loss on samples has to know of the sampler."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vgf_llm.functional import Range, candidate_set


@dataclass(frozen=True)
class Sampling:
    """How a token was drawn from a model's distribution, in the order in which `generate` applies it.

    Example:
        >>> Sampling(temperature=0.0)
        Traceback (most recent call last):
        ...
        ValueError: `temperature` must be a number > 0 and finite, got 0.0.
    """

    temperature: float = 1.0  # divides the logits
    top_k: int = 0  # the most likely tokens that stay; 0 keeps all
    top_p: float = 1.0  # the least probability mass that stays
    min_p: float = 0.0  # a token's least probability, as a share of the largest
    # What divides the positive logits of tokens that came before, and multiplies negative ones
    repetition_penalty: float = 1.0
    # K and p: only the model's own K most likely tokens with a probability of at least p could be drawn, ahead of the
    # temperature; `None` for all tokens
    candidates: tuple[int, float] | None = None

    def __post_init__(self) -> None:
        Range(0, open_low=True).check("temperature", self.temperature)
        Range(0, integer=True).check("top_k", self.top_k)
        Range(0, 1, open_low=True).check("top_p", self.top_p)
        Range(0, 1).check("min_p", self.min_p)
        Range(0, open_low=True).check("repetition_penalty", self.repetition_penalty)
        if self.candidates is not None:
            if len(self.candidates) != 2:
                raise ValueError(f"`candidates` must be K and a least probability, got {self.candidates!r}.")
            Range(1, integer=True).check("candidates[0]", self.candidates[0])
            Range(0, 1, open_high=True).check("candidates[1]", self.candidates[1])

    @property
    def is_plain(self) -> bool:
        """Whether tokens were drawn from the model's own distribution."""
        return self == Sampling()


def sampled_logps(logits: Tensor, ids: Tensor, sampling: Sampling, context: Tensor | None = None) -> Tensor:
    """Log-probabilities `[S, K]` of tokens under the distribution that they were drawn from.

    A token that the sampling would have cut counts as kept: it was drawn, if by other rounding. Which tokens are kept
    carries no gradient.

    Args:
        logits: `[S, V]`, raw.
        ids: `[S, K]`.
        sampling: How they were drawn.
        context: `[S, L]`, the tokens before each, negative where there is none; for a repetition penalty.

    Example:
        >>> logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> sampled_logps(logits, torch.tensor([[0]]), Sampling(top_k=2)).exp()
        tensor([[0.6250]])
    """
    scores = logits
    if sampling.repetition_penalty != 1.0:
        if context is None:
            raise ValueError("`repetition_penalty` needs the tokens before each state; pass `context`.")
        scores = _penalised(scores, context, sampling.repetition_penalty)
    own, cut, found = scores.gather(-1, ids), scores, None
    if sampling.candidates is not None:
        # All that follows depends on the candidates alone, so that K columns do in place of V.
        top_k, min_prob = sampling.candidates
        candidates, mask = candidate_set(scores.detach(), top_k=top_k, min_prob=min_prob)
        cut = scores.gather(-1, candidates).masked_fill(~mask, -torch.inf)
        found = ids.unsqueeze(-1) == candidates.unsqueeze(-2)  # [S, ids, candidates]
    if sampling.temperature != 1.0:
        own, cut = own / sampling.temperature, TemperatureLogitsWarper(float(sampling.temperature))(ids, cut)
    cut = _warpers(sampling)(ids, cut)
    left = cut > -torch.inf
    kept = left.gather(-1, ids) if found is None else (found & left.unsqueeze(-2)).any(dim=-1)
    # One token joins a sum that lacks it: log(exp(total) + exp(own)).
    total = cut.logsumexp(dim=-1, keepdim=True)
    return own - torch.where(kept, total, torch.logaddexp(total, own))


def _penalised(logits: Tensor, context: Tensor, penalty: float) -> Tensor:
    vocab_size = logits.shape[-1]
    seen = torch.zeros(len(logits), vocab_size + 1, dtype=torch.bool, device=logits.device)
    seen.scatter_(1, context.to(logits.device).masked_fill(context < 0, vocab_size).clamp(max=vocab_size), True)
    return torch.where(seen[:, :-1], torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _warpers(sampling: Sampling) -> LogitsProcessorList:
    warpers = LogitsProcessorList()
    if sampling.top_k > 0:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0.0:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers
