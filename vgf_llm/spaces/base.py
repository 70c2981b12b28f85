# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What a space must say so that token-level transport can run in it: lift, velocity, step, project."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vgf_llm.functional import masked_log_softmax
from vgf_llm.models.value import StateFeatures, ValueModel

CONTROLS = (None, "random", "shuffled")


@dataclass(frozen=True)
class DecodeState:
    """One decode step of R = B * N rows.

    Attributes:
        candidate_ids: `[R, K]`.
        candidate_mask: `[R, K]`, true on candidates.
        logits: `[R, K]`, the base's log-probabilities of the candidates, normalised over the vocabulary.
        features: What the value reads.
        num_particles: N; the rows of one prompt are consecutive.
    """

    candidate_ids: Tensor
    candidate_mask: Tensor
    logits: Tensor
    features: StateFeatures
    num_particles: int = 1


@dataclass(frozen=True)
class TransportedStep:
    """The outcome of transport at one decode step.

    Attributes:
        logits: `[R, K]`, normalised log-probabilities of the candidates, `-inf` off the mask.
        q_values: `[R, K]`, potentials of the candidates; `None` where the space has none.
    """

    logits: Tensor
    q_values: Tensor | None


class TransportSpace(ABC):
    """Moves the particles of one decode step; every leaf says where they live.

    Args:
        policy: The language model.
        value: The value.
        step_size: epsilon.
        num_steps: L.
        control: `None`, or a control for result tables: `"random"`, directions of the value's norm and random sense, or
            `"shuffled"`, the value's own numbers given to the wrong candidates.
    """

    name: ClassVar[str]

    def __init__(
        self, policy: nn.Module, value: ValueModel, *, step_size: float, num_steps: int, control: str | None = None
    ) -> None:
        if control not in CONTROLS:
            raise ValueError(f"`control` must be one of {', '.join(map(repr, CONTROLS))}; got {control!r}.")
        self.policy = policy
        self.value = value
        self.step_size = step_size
        self.num_steps = num_steps
        self.control = control

    @abstractmethod
    def lift(self, state: DecodeState) -> Tensor:
        """Returns the particles `[R, ...]` of a state."""

    @abstractmethod
    def velocity(self, particles: Tensor, state: DecodeState) -> Tensor:
        """Returns the direction, shaped as `particles`, in which the value rises."""

    @abstractmethod
    def project(self, particles: Tensor, state: DecodeState) -> Tensor:
        """Returns the candidates' logits `[R, K]` of particles."""

    def step(self, particles: Tensor, velocity: Tensor) -> Tensor:
        """Moves particles by one step of `step_size`."""
        return particles + self.step_size * velocity

    def transport(self, state: DecodeState) -> TransportedStep:
        """Lifts, moves `num_steps` times and projects.

        Args:
            state: The decode step.

        Returns:
            A `TransportedStep`.
        """
        particles = self.lift(state)
        for _ in range(self.num_steps):
            particles = self.step(particles, self.velocity(particles, state))
        return TransportedStep(masked_log_softmax(self.project(particles, state), state.candidate_mask), None)


def random_like(direction: Tensor, weights: Tensor | None = None) -> Tensor:
    """Draws a direction of random sense with the norm of `direction`.

    Args:
        direction: `[..., D]`.
        weights: `[..., D]`, non-negative: coordinates with weight 0 stay 0, and mean and norm are taken under them.

    Returns:
        `[..., D]`; with weights, centred and of the same standard deviation as `direction`.
    """
    noise = torch.randn_like(direction)
    if weights is None:
        return noise * direction.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    def centred(x: Tensor) -> Tensor:
        x = torch.where(weights > 0, x, torch.zeros_like(x))
        return torch.where(weights > 0, x - (weights * x).sum(dim=-1, keepdim=True), torch.zeros_like(x))

    def spread(x: Tensor) -> Tensor:
        return (weights * x.square()).sum(dim=-1, keepdim=True).sqrt()

    noise = centred(noise)
    return noise * spread(centred(direction)) / spread(noise).clamp(min=1e-12)


def shuffled_like(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Permutes each row at random, so that its numbers stay and what they belong to is lost.

    Args:
        values: `[..., K]`.
        mask: `[..., K]`; entries where it is false keep their place.

    Returns:
        `[..., K]`.

    Example:
        >>> shuffled_like(torch.tensor([1.0, 2.0, 3.0])).sort().values.tolist()
        [1.0, 2.0, 3.0]
    """
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    # Entries off the mask sort behind all others in both orders, and meet themselves there.
    off = torch.where(mask, 0.0, 2.0 + torch.arange(values.shape[-1], device=values.device))
    places, drawn = off.argsort(dim=-1, stable=True), (off + torch.rand_like(off)).argsort(dim=-1)
    return torch.empty_like(values).scatter_(-1, places, values.gather(-1, drawn))
