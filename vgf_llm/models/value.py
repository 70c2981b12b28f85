# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""One interface for every value: Q over the candidates of a state.

A head reads the last hidden state of a backbone; `log_ratio` is the log-probability ratio of an adapted model and the
reference, the implicit value of KL-regularised reinforcement learning. Where the hidden states come from (the policy's
own features, a LoRA adapter on it, or a model of its own) is a separate choice, made once in `VGFModel`.

A value says itself how it is trained: which losses fit it, and what of a prompt's completions they need.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vgf_llm.functional import check_choice
from vgf_llm.models.config import REWARD_KINDS, VGFModelConfig, check_parametrization
from vgf_llm.models.heads import BilinearQHead, QHead


@dataclass(frozen=True)
class StateFeatures:
    """What a value may read of a state, for any leading shape `[...]`."""

    hidden: Tensor | None = None  # `[..., D]`, the value backbone's last hidden state
    embedding: Tensor | None = None  # `[V, D]`, the frozen output embedding of the policy
    value_logits: Tensor | None = None  # `[..., V]`, next-token logits of the adapted model (`log_ratio` only)
    ref_logits: Tensor | None = None  # `[..., V]`, next-token logits of the reference (`log_ratio` only)
    ref_logps: Tensor | None = None  # `[..., V]`, its log-probabilities in their place, where they are known


class ValueModel(nn.Module, ABC):
    """Q over the candidates of a state.

    Args:
        reward_kind: `"bernoulli"` for 0/1 outcomes: raw scores are logits of success and the potential that moves
            particles is its log-probability; `"regression"`: raw scores are the expected reward itself.

    Attributes:
        parametrization: Its name in configurations and saved folders.
        needs_logits: Whether it reads the logits of its backbone and of the reference instead of hidden states.
        losses: The losses that fit it.
        needs_contrast: Whether prompts without both better and worse completions teach it nothing, or mislead it.
    """

    parametrization: ClassVar[str]
    needs_logits: ClassVar[bool] = False
    losses: ClassVar[tuple[str, ...]] = ("bernoulli", "regression", "pairwise")
    needs_contrast: ClassVar[bool] = False

    def __init__(self, reward_kind: str = "bernoulli") -> None:
        super().__init__()
        check_choice("reward_kind", reward_kind, REWARD_KINDS)
        self.reward_kind = reward_kind

    @abstractmethod
    def scores(self, features: StateFeatures, candidate_ids: Tensor) -> Tensor:
        """Returns the raw scores `[..., K]` of candidates `[..., K]`; losses act on these."""

    def default_loss(self, *, outcomes: bool, pairs: bool) -> str:
        """Names the loss that fits the data: `outcomes` where every reward is 0 or 1, `pairs` for preference pairs."""
        if pairs:
            return "pairwise"
        return "bernoulli" if outcomes else "regression"

    def needs_reference(self, loss: str) -> bool:
        """Tells whether a loss on this value reads log-probabilities of the reference."""
        return False

    def potential(self, scores: Tensor) -> Tensor:
        """Maps raw scores to the potential whose gradient moves particles.

        For 0/1 rewards this is the log-probability of success: exp(potential) then weighs a candidate by how often it
        succeeds, which is the posterior given success when `transport_steps * step_size` is 1.
        """
        return F.logsigmoid(scores) if self.reward_kind == "bernoulli" else scores

    def q_values(self, features: StateFeatures, candidate_ids: Tensor) -> Tensor:
        """Returns the potential `[..., K]` of candidates `[..., K]`."""
        return self.potential(self.scores(features, candidate_ids))

    def sequence_values(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Reduces raw scores of tokens `[B, T]` to one value per response, `[B]`: the score at its last token.

        `mask` `[B, T]` is 1 on response tokens. An empty response has the value 0.
        """
        lengths = mask.long().sum(dim=-1)
        last = scores.gather(-1, (lengths - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return torch.where(lengths > 0, last, torch.zeros_like(last))

    def vote_weights(self, values: Tensor) -> Tensor:
        """Maps the values `[B, N]` of one prompt's particles to positive weights `[B, N]` for a weighted vote."""
        return torch.sigmoid(values) if self.reward_kind == "bernoulli" else torch.softmax(values, dim=-1)


class HeadValue(ValueModel):
    """Q from a head with one row per token of the vocabulary."""

    parametrization = "vocab"

    def __init__(self, head: QHead | BilinearQHead, reward_kind: str = "bernoulli") -> None:
        super().__init__(reward_kind)
        self.head = head

    def scores(self, features: StateFeatures, candidate_ids: Tensor) -> Tensor:
        return self.head(features.hidden, candidate_ids)


class BilinearValue(HeadValue):
    """Q(h, v) = b(h) + (W h) . E[v] on the policy's frozen output embedding."""

    parametrization = "bilinear"

    def scores(self, features: StateFeatures, candidate_ids: Tensor) -> Tensor:
        return self.head(features.hidden, candidate_ids, features.embedding)


class LogRatioValue(ValueModel):
    """Q(s, v) = log pi_theta(v|s) - log mu(v|s), the implicit value of a model adapted from the reference mu.

    Summed over a response it is `log pi_theta(y|x) / mu(y|x)`, which a within-prompt pairwise logistic loss on
    outcomes fits (the identity behind DPO, arXiv 2305.18290, used here per token). Fisher transport with
    `transport_steps * step_size = 1` gives pi_theta itself on the reference's support; larger budgets extrapolate.
    """

    parametrization = "log_ratio"
    needs_logits = True
    losses = ("likelihood", "pairwise", "bernoulli")
    needs_contrast = True

    def __init__(self) -> None:
        super().__init__("regression")

    def default_loss(self, *, outcomes: bool, pairs: bool) -> str:
        """Names the loss that fits the data: the likelihood of successes where every reward is 0 or 1."""
        return "likelihood" if outcomes and not pairs else "pairwise"

    def needs_reference(self, loss: str) -> bool:
        """Tells whether a loss reads the reference; the likelihood of successes differs by a constant without it."""
        return loss != "likelihood"

    def scores(self, features: StateFeatures, candidate_ids: Tensor) -> Tensor:
        """Returns log-probability ratios `[..., K]`."""
        ref = features.ref_logps
        if ref is None and features.ref_logits is not None:
            ref = features.ref_logits.float().log_softmax(dim=-1)
        if features.value_logits is None or ref is None:
            raise ValueError("`features` lacks the value and reference logits that a log_ratio value reads.")
        value = features.value_logits.float().log_softmax(dim=-1)
        return value.gather(-1, candidate_ids) - ref.gather(-1, candidate_ids)

    def sequence_values(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Sums the per-token log-ratios `[B, T]` over response tokens: `log pi_theta(y|x) / mu(y|x)`, `[B]`."""
        return (scores * mask.to(scores.dtype)).sum(dim=-1)


def build_value(
    parametrization: str,
    *,
    width: int,
    vocab_size: int,
    embedding_width: int | None = None,
    head_hidden_size: int | None = None,
    reward_kind: str = "bernoulli",
) -> ValueModel:
    """Builds an untrained value by name.

    Args:
        parametrization: `"log_ratio"`, `"bilinear"` or `"vocab"`.
        width: D of the value backbone's hidden states.
        vocab_size: V.
        embedding_width: Width of the policy's output embedding; `width` when left out.
        head_hidden_size: Width of the head's MLP; `None` for a linear head.
        reward_kind: `"bernoulli"` or `"regression"`.

    Returns:
        The value; every head starts at zero.

    Raises:
        ValueError: For an unknown name, which lists the known ones.

    Example:
        >>> build_value("bilinear", width=8, vocab_size=10).parametrization
        'bilinear'
    """
    check_parametrization(parametrization)
    if parametrization == "log_ratio":
        return LogRatioValue()
    if parametrization == "bilinear":
        return BilinearValue(BilinearQHead(width, embedding_width or width, head_hidden_size), reward_kind)
    return HeadValue(QHead(width, vocab_size, head_hidden_size), reward_kind)


def build_saved_value(config: VGFModelConfig, embedding_width: int) -> ValueModel:
    """Builds the value that a saved model has, untrained."""
    return build_value(
        config.parametrization,
        width=config.hidden_size,
        vocab_size=config.vocab_size,
        embedding_width=embedding_width,
        head_hidden_size=config.head_hidden_size,
        reward_kind=config.reward_kind,
    )
