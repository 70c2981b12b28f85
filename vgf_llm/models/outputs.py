# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What the teacher-forced passes of a `VGFModel` return."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """The candidates of every state of a response, with what transport needs of them.

    Attributes:
        ids: `[B, T, K]`.
        mask: `[B, T, K]`, true on candidates.
        logits: `[B, T, K]`, log-probabilities under the reference, normalised over the vocabulary.
        q_values: `[B, T, K]`, potentials.
    """

    ids: Tensor
    mask: Tensor
    logits: Tensor
    q_values: Tensor


@dataclass(frozen=True)
class VGFModelOutput:
    """What one training forward computes.

    Attributes:
        scores: `[B, T]`, the value's raw score of every response token; `None` where the sequence value is asked for.
        policy_logps: `[B, T, K]`, the policy's log-probabilities of the candidates, normalised over the vocabulary;
            `None` unless candidates were given or asked for.
        sequence_values: `[B, H]`, the members' values of whole responses; `None` unless asked for.
        candidates: The reference's candidates; `None` unless asked for.
        entropies: `[B, T]`, entropies in nats of the model behind a log-ratio value, over all tokens at the temperature
            of sampling; `None` unless asked for.
    """

    scores: Tensor | None
    policy_logps: Tensor | None = None
    sequence_values: Tensor | None = None
    candidates: Candidates | None = None
    entropies: Tensor | None = None


@dataclass(frozen=True)
class VGFScore:
    """Values of finished responses.

    Attributes:
        values: `[B]`, one value per response.
        token_scores: `[B, T]`, raw scores of the response tokens.
    """

    values: Tensor
    token_scores: Tensor
