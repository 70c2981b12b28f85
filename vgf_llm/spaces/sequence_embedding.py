# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Embedding space of whole responses: a particle is the response's matrix of token embeddings."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vgf_llm.functional import sequence_step
from vgf_llm.models.config import TransportConfig
from vgf_llm.models.sequence_value import DifferentiableValue
from vgf_llm.spaces.controls import random_like
from vgf_llm.spaces.sequence import SequenceSpace, SequenceState, SequenceVelocity, Tilt


class SequenceEmbeddingSpace(SequenceSpace):
    """Transport of the value's embeddings of a response.

    Every token of a response moves by the same length, `step_size` times the mean norm of the embedding matrix.
    """

    def __init__(self, value: DifferentiableValue, transport: TransportConfig, *, control: str | None = None) -> None:
        super().__init__(value, transport, control=control)
        self._scale = float(self._embedding.norm(dim=-1).mean())
        if self._scale == 0:
            raise ValueError("The value's embedding matrix is zero; its weights were not loaded.")

    def lift(self, state: SequenceState) -> Tensor:
        """Returns the embeddings `[R, T, D]` of the text."""
        return F.embedding(state.tokens, self._embedding)

    def relift(self, particles: Tensor, start: Tensor, state: SequenceState, text: SequenceState) -> Tensor:
        """Returns the text's embeddings, displaced at every position as the particles are, `[R, T', D]`."""
        moved = self.lift(text)
        length = min(moved.shape[1], particles.shape[1])
        moved[:, :length] += (particles - start)[:, :length] * text.mask[:, :length].unsqueeze(-1)
        return moved

    def velocity(self, particles: Tensor, start: Tensor, state: SequenceState, *, at_text: bool) -> SequenceVelocity:
        """Returns the gradient of the lower bound, shared and repelled where particles interact, `[R, T, D]`."""
        where = start if at_text else particles
        values, score = self.score(where, state)
        if self.config.interaction:
            score = self.interacting(where, score, state, alpha=self.config.alpha or 1.0)
        if self.control == "random":
            score = random_like(score)
        return SequenceVelocity(score, values)

    def step(self, particles: Tensor, direction: Tensor, state: SequenceState) -> Tensor:
        """Moves every token by one length, `[R, T, D]`."""
        return sequence_step(particles, direction, state.mask, step_size=self.config.step_size, scale=self._scale)

    def project(self, particles: Tensor, start: Tensor, state: SequenceState) -> Tilt:
        """Returns the tilt `decode_strength * E[v] . (u_t - u0_t) / s^2`; none beyond the moved response.

        With both factors in mean embedding norms s, one strength means the same for every model.
        """
        shift = self.config.decode_strength / self._scale**2 * (particles - start) * state.mask.unsqueeze(-1)

        def tilt(position: int, token_ids: Tensor) -> Tensor:
            if position >= shift.shape[1]:
                return shift.new_zeros(token_ids.shape)
            return torch.einsum("rkd,rd->rk", self._embedding[token_ids], shift[:, position])

        return tilt
