# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Hidden space: a particle is the policy's last hidden state, moved uphill on V and read by the output embedding."""

import torch
from torch import Tensor, nn

from vgf_llm.functional import flow_direction
from vgf_llm.models.language_model import project_hidden
from vgf_llm.models.value import StateValue, ValueModel
from vgf_llm.spaces.base import DecodeState, TransportSpace, random_like, shuffled_like


class HiddenSpace(TransportSpace):
    """Transport of last hidden states.

    A velocity has the norm of the start particle, so that `step_size` is relative: 0.1 moves a tenth of the norm.

    Args:
        policy: The language model.
        value: A `v_head` value on the policy's own features.
        step_size: epsilon, relative to the hidden state's norm.
        num_steps: L.
        alpha: Entropy temperature of interacting particles; `None` is 1.
        interaction: Whether particles of one prompt interact.
        repulsion: Whether the interaction includes the kernel's gradient.
        control: `None`, `"random"` or `"shuffled"`.

    Raises:
        ValueError: For a value that is no function of the hidden state alone.
    """

    name = "hidden"

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
        if not isinstance(value, StateValue):
            raise ValueError(
                f"`space='hidden'` needs a v_head value; this model has {value.parametrization!r}. "
                "Use `space='logit'`, or train with `value_parametrization='v_head'`."
            )
        self.alpha = alpha or 1.0
        self.interaction = interaction
        self.repulsion = repulsion

    def lift(self, state: DecodeState) -> Tensor:
        """Returns the hidden states `[R, D]`."""
        if state.hidden is None:
            raise ValueError("`state.hidden` is missing: the decode step did not capture the policy's hidden state.")
        return state.hidden.float()

    def velocity(self, particles: Tensor, state: DecodeState) -> Tensor:
        """Returns the gradient of V, `[R, D]`, scaled to the norm of the start particle."""
        with torch.enable_grad():
            moving = particles.detach().requires_grad_(True)
            value: StateValue = self.value  # type: ignore[assignment]
            score = torch.autograd.grad(value.state_potential(moving).sum(), moving)[0]
        if self.interaction:
            shape = (-1, state.num_particles, particles.shape[-1])
            score = flow_direction(
                particles.view(shape), score.view(shape), alpha=self.alpha, repulsion=self.repulsion
            ).view_as(particles)
        if self.control == "random":
            score = random_like(score)
        elif self.control == "shuffled":
            score = shuffled_like(score)
        norm = score.norm(dim=-1, keepdim=True)
        start = self.lift(state).norm(dim=-1, keepdim=True)
        return torch.where(norm > 0, score * start / norm.clamp(min=1e-30), torch.zeros_like(score))

    def project(self, particles: Tensor, state: DecodeState) -> Tensor:
        """Returns the candidates' logits `[R, K]`: the base's, and what moving did to them in the output embedding.

        The base's are what logits processors left, which a projection of the moved state alone would forget.
        """
        moved, start = (project_hidden(self.policy, x, state.candidate_ids) for x in (particles, self.lift(state)))
        return state.logits + (moved - start)
