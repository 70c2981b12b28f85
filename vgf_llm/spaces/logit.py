# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Logit space: a particle is the next-token distribution over the base's candidates.

The flow on the simplex has a closed form, so that L steps cost as much as one. Particles of
one prompt may interact: the kernel compares their distributions, attraction shares their Q-values and repulsion keeps
them apart; that has no closed form and runs step by step.
"""

import torch
from torch import Tensor, nn

from vgf_llm.functional import flow_direction, masked_log_softmax, simplex_flow, value_checks
from vgf_llm.models.value import ValueModel
from vgf_llm.spaces.base import (
    DecodeState,
    TransportedStep,
    TransportSpace,
    random_like,
    shuffled_like,
)


class LogitSpace(TransportSpace):
    """Transport of next-token distributions.

    Args:
        policy: The language model.
        value: A value that ranks candidates.
        step_size: epsilon.
        num_steps: L.
        alpha: Entropy temperature of the Boltzmann target, or `None` to tilt.
        interaction: Whether particles of one prompt interact.
        repulsion: Whether the interaction includes the kernel's gradient.
        control: `None`, `"random"` or `"shuffled"`.
    """

    name = "logit"

    def __init__(
        self,
        policy: nn.Module,
        value: ValueModel,
        *,
        step_size: float,
        num_steps: int,
        alpha: float | None = None,
        interaction: bool = False,
        repulsion: bool = False,
        control: str | None = None,
    ) -> None:
        super().__init__(policy, value, step_size=step_size, num_steps=num_steps, control=control)
        self.alpha = alpha
        self.interaction = interaction
        self.repulsion = repulsion

    def q_values(self, state: DecodeState) -> Tensor:
        """Returns the potentials `[R, K]` that drive the flow; under a control, senseless ones of their spread."""
        q_values = self.value.q_values(state.features, state.candidate_ids)
        if self.control == "random":
            weights = masked_log_softmax(state.logits, state.candidate_mask).exp()
            q_values = random_like(q_values, weights)
        elif self.control == "shuffled":
            q_values = shuffled_like(q_values, state.candidate_mask)
        return q_values

    def lift(self, state: DecodeState) -> Tensor:
        """Returns the base's log-probabilities over the candidates, `[R, K]`."""
        return masked_log_softmax(state.logits, state.candidate_mask)

    def velocity(self, particles: Tensor, state: DecodeState) -> Tensor:
        """Returns Q centred under the particle's own distribution, shared among interacting particles, `[R, K]`."""
        return self._velocity(particles, state, self.q_values(state))

    def _velocity(self, particles: Tensor, state: DecodeState, q_values: Tensor) -> Tensor:
        probs = masked_log_softmax(particles, state.candidate_mask).exp()
        scores = torch.where(state.candidate_mask, q_values, torch.zeros_like(q_values))
        scores = scores - (probs * scores).sum(dim=-1, keepdim=True)
        scores = torch.where(state.candidate_mask, scores, torch.zeros_like(scores))
        if not self.interaction:
            return scores
        return _interact(probs, scores, state, self.alpha, self.repulsion)

    def project(self, particles: Tensor, state: DecodeState) -> Tensor:
        """Returns the particles: they are logits already."""
        return particles

    def transport(self, state: DecodeState) -> TransportedStep:
        """Moves the distributions of a decode step: in closed form where there is one."""
        q_values = self.q_values(state)
        if not self.interaction:
            logits = simplex_flow(
                state.logits,
                q_values,
                step_size=self.step_size,
                num_steps=self.num_steps,
                alpha=self.alpha,
                candidate_mask=state.candidate_mask,
            )
            return TransportedStep(logits, q_values)
        particles = self.lift(state)
        for _ in range(self.num_steps):
            particles = self.step(particles, self._velocity(particles, state, q_values))
            particles = masked_log_softmax(particles, state.candidate_mask)
        return TransportedStep(particles, q_values)


def _interact(probs: Tensor, scores: Tensor, state: DecodeState, alpha: float | None, repulsion: bool) -> Tensor:
    """`flow_direction` on distributions whose candidates differ: coordinates are matched by token id."""
    n, k = state.num_particles, probs.shape[-1]
    slots = _token_slots(state.candidate_ids.view(-1, n * k)).view(-1, n, k)

    def in_slots(x: Tensor) -> Tensor:
        return x.new_zeros(*slots.shape[:2], n * k).scatter_(-1, slots, x.view(slots.shape))

    with value_checks(False):  # once per token and step: the host is not to wait
        phi = flow_direction(in_slots(probs), in_slots(scores), alpha=alpha or 1.0, repulsion=repulsion)
    return phi.gather(-1, slots).view(probs.shape) * state.candidate_mask


def _token_slots(ids: Tensor) -> Tensor:
    """Numbers the different token ids of each row `[B, S]` from 0, so that S coordinates hold them all."""
    tokens, order = ids.sort(dim=-1)
    rank = nn.functional.pad((tokens[:, 1:] != tokens[:, :-1]).cumsum(dim=-1), (1, 0))
    return torch.empty_like(rank).scatter_(-1, order, rank)
