# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Logit space: a particle is the next-token distribution over the base's candidates.

The flow on the simplex has a closed form, so that L steps cost as much as one. Particles of
one prompt may interact: the kernel compares their distributions, attraction shares their Q-values and repulsion keeps
them apart; that has no closed form and runs step by step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vgf_llm.functional import (
    check_choice,
    flow_direction,
    masked_log_softmax,
    simplex_direction,
    simplex_flow,
    value_checks,
)
from vgf_llm.models.config import TransportConfig
from vgf_llm.models.value import StateFeatures, ValueModel
from vgf_llm.spaces.controls import CONTROLS, random_like, shuffled_like


@dataclass(frozen=True)
class DecodeState:
    """One decode step of R = B * N rows."""

    candidate_ids: Tensor  # `[R, K]`
    candidate_mask: Tensor  # `[R, K]`, true on candidates
    logits: Tensor  # `[R, K]`, the base's log-probabilities of the candidates, normalised over the vocabulary
    features: StateFeatures  # what the value reads
    num_particles: int = 1  # N; the rows of one prompt are consecutive


@dataclass(frozen=True)
class TransportedStep:
    """The outcome of transport at one decode step."""

    logits: Tensor  # `[R, K]`, normalised log-probabilities of the candidates, `-inf` off the mask
    q_values: Tensor  # `[R, K]`, potentials of the candidates
    scores: Tensor  # `[R, K]`, the value's raw scores of them, whatever a control made of these


class LogitSpace:
    """Transport of next-token distributions by a value that ranks candidates.

    `control` is `None`, or a control for result tables: `"random"`, directions of the value's norm and random sense, or
    `"shuffled"`, the value's own numbers given to the wrong candidates.
    """

    def __init__(self, value: ValueModel, transport: TransportConfig, *, control: str | None = None) -> None:
        check_choice("control", control, CONTROLS)
        self.value, self.config, self.control = value, transport, control

    def q_values(self, state: DecodeState) -> Tensor:
        """Returns the potentials `[R, K]` that drive the flow; under a control, senseless ones of their spread."""
        return self._controlled(self.value.q_values(state.features, state.candidate_ids), state)

    def _controlled(self, q_values: Tensor, state: DecodeState) -> Tensor:
        if self.control == "random":
            weights = masked_log_softmax(state.logits, state.candidate_mask).exp()
            q_values = random_like(q_values, weights)
        elif self.control == "shuffled":
            q_values = shuffled_like(q_values, state.candidate_mask)
        return q_values

    def lift(self, state: DecodeState) -> Tensor:
        """Returns the base's log-probabilities over the candidates, `[R, K]`."""
        return masked_log_softmax(state.logits, state.candidate_mask)

    def velocity(self, particles: Tensor, state: DecodeState, q_values: Tensor) -> Tensor:
        """Returns Q centred under the particle's own distribution, shared among interacting particles, `[R, K]`."""
        with value_checks(False):  # once per token and step: the host is not to wait
            scores = simplex_direction(particles, q_values, state.candidate_mask)
            return _interact(particles.exp(), scores, state, self.config) if self.config.interaction else scores

    def step(self, particles: Tensor, velocity: Tensor, state: DecodeState) -> Tensor:
        """Moves particles by one step and normalises them, `[R, K]`."""
        return masked_log_softmax(particles + self.config.step_size * velocity, state.candidate_mask)

    def transport(self, state: DecodeState) -> TransportedStep:
        """Moves the distributions of a decode step: in closed form where there is one."""
        scores, config = self.value.scores(state.features, state.candidate_ids), self.config
        q_values = self._controlled(self.value.potential(scores), state)
        if not config.interaction:
            logits = simplex_flow(
                state.logits,
                q_values,
                step_size=config.step_size,
                num_steps=config.transport_steps,
                alpha=config.alpha,
                candidate_mask=state.candidate_mask,
            )
            return TransportedStep(logits, q_values, scores)
        particles = self.lift(state)
        for _ in range(config.transport_steps):
            particles = self.step(particles, self.velocity(particles, state, q_values), state)
        return TransportedStep(particles, q_values, scores)


def _interact(probs: Tensor, scores: Tensor, state: DecodeState, config: TransportConfig) -> Tensor:
    """`flow_direction` on distributions whose candidates differ: coordinates are matched by token id."""
    n, k = state.num_particles, probs.shape[-1]
    slots = _token_slots(state.candidate_ids.view(-1, n * k)).view(-1, n, k)

    def in_slots(x: Tensor) -> Tensor:
        return x.new_zeros(*slots.shape[:2], n * k).scatter_(-1, slots, x.view(slots.shape))

    phi = flow_direction(in_slots(probs), in_slots(scores), alpha=config.alpha or 1.0, repulsion=config.repulsion)
    return phi.gather(-1, slots).view(probs.shape) * state.candidate_mask


def _token_slots(ids: Tensor) -> Tensor:
    """Numbers the different token ids of each row `[B, S]` from 0, so that S coordinates hold them all."""
    tokens, order = ids.sort(dim=-1)
    rank = nn.functional.pad((tokens[:, 1:] != tokens[:, :-1]).cumsum(dim=-1), (1, 0))
    return torch.empty_like(rank).scatter_(-1, order, rank)
