# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What the teacher-forced passes of a `VGFModel` return."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """The candidates of every state of a response, with what transport needs of them."""

    ids: Tensor  # `[B, T, K]`
    mask: Tensor  # `[B, T, K]`, true on candidates
    logits: Tensor  # `[B, T, K]`, log-probabilities under the reference, normalised over the vocabulary
    q_values: Tensor  # `[B, T, K]`, potentials


@dataclass(frozen=True)
class VGFModelOutput:
    """What one training forward computes."""

    # `[B, T]`, the value's raw score of every response token; `None` where the sequence value is asked for
    scores: Tensor | None
    # `[B, T, K]`, the policy's log-probabilities of the candidates, normalised over the vocabulary; `None` unless
    # candidates were given or asked for
    policy_logps: Tensor | None = None
    sequence_values: Tensor | None = None  # `[B, H]`, the members' values of whole responses; `None` unless asked for
    candidates: Candidates | None = None  # the reference's candidates; `None` unless asked for
    # `[B, T]`, entropies in nats of the model behind a log-ratio value, over all tokens at the temperature of sampling;
    # `None` unless asked for
    entropies: Tensor | None = None


@dataclass(frozen=True)
class VGFScore:
    """Values of finished responses."""

    values: Tensor  # `[B]`, one value per response
    token_scores: Tensor  # `[B, T]`, raw scores of the response tokens
