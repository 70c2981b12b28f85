# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What a space must say so that whole responses can move in it: lift, velocity, step, project."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vgf_llm.functional import check_choice, sequence_direction
from vgf_llm.models.config import TransportConfig
from vgf_llm.models.sequence_value import DifferentiableValue, ReadPrefix

SEQUENCE_CONTROLS = (None, "random", "shuffled", "swaps")

# Maps a response position t and tokens [R, K] to what their log-probabilities gain there, [R, K].
Tilt = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class TextCandidates:
    """What the base would have written at every position of a text, R rows of T tokens."""

    ids: Tensor  # `[R, T, K]`; the text's own token is always among them
    mask: Tensor  # `[R, T, K]`, true on candidates
    logps: Tensor  # `[R, T, K]`, log-probabilities under the base, normalised over the vocabulary
    perturbed: Tensor  # `[R, T, K]`, the perturbed scores whose largest entry was sampled: the text's own token


@dataclass(frozen=True)
class SequenceState:
    """Responses of R = B * N rows as text, from which particles start."""

    prefix_embeds: Tensor  # `[R, P, D]`, the value's embeddings of what stands before the tokens that move
    prefix_mask: Tensor  # `[R, P]`, 1 on real tokens
    prefix_response: Tensor  # `[R, P]`, 1 on tokens that belong to the response
    tokens: Tensor  # `[R, T]`, the text that moves
    mask: Tensor  # `[R, T]`, true on response tokens
    num_particles: int = 1  # N; the rows of one prompt are consecutive
    candidates: TextCandidates | None = None  # for spaces that choose among the base's candidates
    # The prefix as the value has read it, so that it is not read again; `None` where it cannot be kept
    prefix: ReadPrefix | None = None

    def needed_candidates(self) -> TextCandidates:
        """The candidates, for those who cannot do without."""
        if self.candidates is None:
            raise ValueError("`state.candidates` is missing: this space chooses among the base's tokens.")
        return self.candidates


@dataclass(frozen=True)
class SequenceVelocity:
    """Where particles want to go."""

    direction: Tensor  # shaped as the particles
    values: Tensor  # `[R, H]`, the members' values where the gradient was taken


class SequenceSpace(ABC):
    """Moves whole responses along the gradient of a value; every leaf says where they live.

    `control` is `None`, `"random"` (directions of the gradient's norm and random sense) or `"shuffled"` (the gradient
    of another prompt's response, or of another particle where there is one prompt).
    """

    needs_candidates: ClassVar[bool] = False

    def __init__(self, value: DifferentiableValue, transport: TransportConfig, *, control: str | None = None) -> None:
        if not isinstance(value, DifferentiableValue):
            raise TypeError(
                f"`space={transport.space!r}` moves responses along the gradient of a DifferentiableValue; "
                f"{type(value).__name__} has none. For a black box use `transport_steps=0` (best-of-N) or "
                "`control='swaps'` (random search), both of which score decoded text alone."
            )
        check_choice("control", control, SEQUENCE_CONTROLS)
        self.value, self.config, self.control = value, transport, control
        self._embedding = value.embedding.detach().float()

    @abstractmethod
    def lift(self, state: SequenceState) -> Tensor:
        """Returns the particles `[R, T, ...]` of a text."""

    @abstractmethod
    def relift(self, particles: Tensor, start: Tensor, state: SequenceState, text: SequenceState) -> Tensor:
        """Returns the particles `[R, T', ...]` that are moved from `text` as `particles` are from `state`."""

    @abstractmethod
    def velocity(self, particles: Tensor, start: Tensor, state: SequenceState, *, at_text: bool) -> SequenceVelocity:
        """Returns the direction in which the value rises, at the text of `state` or at the particles `[R, T, ...]`."""

    @abstractmethod
    def step(self, particles: Tensor, direction: Tensor, state: SequenceState) -> Tensor:
        """Moves particles `[R, T, ...]` by one step."""

    @abstractmethod
    def project(self, particles: Tensor, start: Tensor, state: SequenceState) -> Tilt:
        """Returns how far the particles tilt the base's next-token distribution, for re-decoding."""

    def interacting(self, vectors: Tensor, score: Tensor, state: SequenceState, *, alpha: float) -> Tensor:
        """Shares the gradients `[R, T, D]` among the particles of a prompt, whose tokens are at `vectors`."""
        shape = (-1, state.num_particles, *vectors.shape[1:])
        phi = sequence_direction(
            vectors.view(shape),
            score.view(shape),
            state.mask.view(shape[:-1]),
            alpha=alpha,
            repulsion=self.config.repulsion,
        )
        return phi.view_as(score)

    def score(self, embeds: Tensor, state: SequenceState) -> tuple[Tensor, Tensor]:
        """Values embeddings `[R, T, D]`; returns the values `[R, H]` and the lower bound's gradient `[R, T, D]`.

        One backward serves all particles, since no value depends on another's row.
        """
        with torch.enable_grad():
            leaf = embeds.detach().requires_grad_()
            mask = torch.cat([state.prefix_mask, state.mask.to(state.prefix_mask.dtype)], dim=1)
            response = torch.cat([state.prefix_response, state.mask.to(state.prefix_response.dtype)], dim=1)
            if state.prefix is None:
                values = self.value(torch.cat([state.prefix_embeds.to(leaf.dtype), leaf], dim=1), mask, response)
            else:
                values = self.value(leaf, mask, response, state.prefix)
            check_values(values)
            lower = self.value.lower_bound(values, self.config.lower_bound_coef)
            gradient = torch.autograd.grad(lower.sum(), leaf, allow_unused=True)[0] if lower.requires_grad else None
        if gradient is None:
            raise ValueError(
                f"The sequence value {type(self.value).__name__} has no gradient in the embeddings of the response: "
                "its forward detaches them or runs under no_grad. Mend it, or use it as a black box with "
                "`transport_steps=0` or `control='swaps'`."
            )
        gradient = gradient * state.mask.unsqueeze(-1)
        if not bool(torch.isfinite(gradient).all()):
            raise ValueError(
                f"The gradient of the sequence value {type(self.value).__name__} is not finite; look for a square root "
                "or a norm at zero in it, or for a dtype that overflows."
            )
        if self.control == "shuffled":
            gradient = gradient.roll(_shuffle(len(gradient), state.num_particles), dims=0)
        return values.detach(), gradient


def check_values(values: Tensor) -> None:
    """Raises ValueError if a value `[R, ...]` is NaN or infinite; the message names the rows."""
    bad = ~torch.isfinite(values.flatten(1) if values.dim() > 1 else values.unsqueeze(-1)).all(dim=-1)
    if bool(bad.any()):
        raise ValueError(
            f"The sequence value is NaN or infinite for responses {bad.nonzero().flatten().tolist()[:8]}; "
            "a value must be finite for every text, also for one of a single token."
        )


def _shuffle(rows: int, num_particles: int) -> int:
    if rows == 1:
        raise ValueError("`control='shuffled'` needs a second prompt or `num_particles > 1` to take gradients from.")
    return num_particles if rows > num_particles else 1
