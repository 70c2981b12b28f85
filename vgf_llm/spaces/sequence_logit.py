# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Logit space of whole responses: a particle is one distribution per position over the base's candidates there."""

import torch
from torch import Tensor

from vgf_llm.functional import masked_log_softmax, simplex_direction, straight_through_tokens
from vgf_llm.models.config import TransportConfig
from vgf_llm.models.sequence_value import DifferentiableValue
from vgf_llm.spaces.controls import random_like
from vgf_llm.spaces.sequence import SequenceSpace, SequenceState, SequenceVelocity, TextCandidates, Tilt


class SequenceLogitSpace(SequenceSpace):
    """Transport of per-position next-token distributions; `temperature` is the one that the text was sampled at.

    The value reads the tokens that the moved logits would give under the sample's own noise, and its gradient passes
    straight through to the expected embeddings: Q of a candidate is E[v] . (gradient at its position). With `alpha` the
    score is Q / alpha + log mu - log p, whose entropy keeps a distribution from collapsing.
    """

    needs_candidates = True

    def __init__(
        self,
        value: DifferentiableValue,
        transport: TransportConfig,
        *,
        temperature: float = 1.0,
        control: str | None = None,
    ) -> None:
        super().__init__(value, transport, control=control)
        self.temperature = temperature

    def lift(self, state: SequenceState) -> Tensor:
        """Returns the base's log-probabilities over the candidates of every position, `[R, T, K]`."""
        candidates = state.needed_candidates()
        return masked_log_softmax(candidates.logps, candidates.mask)

    def relift(self, particles: Tensor, start: Tensor, state: SequenceState, text: SequenceState) -> Tensor:
        """Returns the new text's log-probabilities, displaced token by token as the particles are, `[R, T', K]`."""
        tilt, candidates = self.project(particles, start, state), text.needed_candidates()
        moved = [
            candidates.logps[:, position] + tilt(position, candidates.ids[:, position])
            for position in range(text.tokens.shape[1])
        ]
        return masked_log_softmax(torch.stack(moved, dim=1), candidates.mask)

    def velocity(self, particles: Tensor, start: Tensor, state: SequenceState, *, at_text: bool) -> SequenceVelocity:
        """Returns the velocity of the logits, `[R, T, K]`."""
        candidates = state.needed_candidates()
        probs = torch.where(candidates.mask, particles, -torch.inf).softmax(dim=-1)
        hard = state.tokens if at_text else self._hard_tokens(particles, start, state)
        with torch.enable_grad():
            leaf = probs.requires_grad_()
            through, soft = straight_through_tokens(leaf, candidates.ids, hard, self._embedding)
        values, score = self.score(through, state)
        if self.config.interaction:
            score = self.interacting(soft.detach(), score, state, alpha=1.0)
        # The gradient of score . sum_k p_k E_k in p: E_k . score for every candidate, without holding E_k.
        q_values = torch.autograd.grad(soft, leaf, grad_outputs=score.to(soft.dtype))[0]
        if self.control == "random":
            q_values = random_like(q_values, torch.where(candidates.mask, probs.detach(), 0.0))
        direction = simplex_direction(particles, q_values, candidates.mask, alpha=self.config.alpha, reference=start)
        return SequenceVelocity(direction * state.mask.unsqueeze(-1), values)

    def step(self, particles: Tensor, direction: Tensor, state: SequenceState) -> Tensor:
        """Moves the logits and normalises them; returns log-probabilities `[R, T, K]`."""
        candidates = state.needed_candidates()
        moved = particles + self.config.step_size * direction
        return torch.where(state.mask.unsqueeze(-1), masked_log_softmax(moved, candidates.mask), particles)

    def project(self, particles: Tensor, start: Tensor, state: SequenceState) -> Tilt:
        """Returns the tilt: what a token's log-probability gained; the least gain where it was no candidate."""
        candidates = state.needed_candidates()
        gain = self._gain(particles, start, candidates)
        least = gain.masked_fill(~candidates.mask, torch.inf).amin(dim=-1, keepdim=True)

        def tilt(position: int, token_ids: Tensor) -> Tensor:
            if position >= gain.shape[1]:
                return gain.new_zeros(token_ids.shape)
            # [R, K, K']: which of the moved candidates each token is
            same = token_ids.unsqueeze(-1) == candidates.ids[:, position].unsqueeze(1)
            same = same & candidates.mask[:, position].unsqueeze(1)
            found = (same * gain[:, position].unsqueeze(1)).sum(dim=-1)
            found = torch.where(same.any(dim=-1), found, least[:, position])
            return torch.where(state.mask[:, position].unsqueeze(-1), found, 0.0)

        return tilt

    def _gain(self, particles: Tensor, start: Tensor, candidates: TextCandidates) -> Tensor:
        return torch.where(candidates.mask, particles - start, 0.0)

    def _hard_tokens(self, particles: Tensor, start: Tensor, state: SequenceState) -> Tensor:
        """The largest perturbed score after the move; without one the text's own token."""
        candidates = state.needed_candidates()
        scores = candidates.perturbed + self._gain(particles, start, candidates) / self.temperature
        best = scores.masked_fill(~candidates.mask, -torch.inf).argmax(dim=-1, keepdim=True)
        return torch.where(state.mask, candidates.ids.gather(-1, best).squeeze(-1), state.tokens)
