# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The spaces in which particles move, behind one interface: lift, velocity, step, project."""

from torch import nn

from vgf_llm.models.config import TransportConfig
from vgf_llm.models.sequence_value import DifferentiableValue
from vgf_llm.models.value import ValueModel
from vgf_llm.spaces.base import DecodeState, TransportedStep, TransportSpace
from vgf_llm.spaces.logit import LogitSpace
from vgf_llm.spaces.sequence import SequenceSpace, SequenceState
from vgf_llm.spaces.sequence_embedding import SequenceEmbeddingSpace
from vgf_llm.spaces.sequence_logit import SequenceLogitSpace

__all__ = [
    "DecodeState",
    "LogitSpace",
    "SequenceEmbeddingSpace",
    "SequenceLogitSpace",
    "SequenceSpace",
    "SequenceState",
    "TransportSpace",
    "TransportedStep",
    "build_sequence_space",
    "build_space",
]


def build_space(
    policy: nn.Module, value: ValueModel, transport: TransportConfig, *, control: str | None = None
) -> TransportSpace:
    """Builds the space that `transport` names.

    Args:
        policy: The language model.
        value: The value.
        transport: Space, steps and interaction.
        control: `None`, `"random"` or `"shuffled"`.

    Returns:
        The space.

    Raises:
        ValueError: If the value cannot move particles of that space.
    """
    return LogitSpace(
        policy,
        value,
        step_size=transport.step_size,
        num_steps=transport.transport_steps,
        alpha=transport.alpha,
        interaction=transport.interaction,
        repulsion=transport.repulsion,
        control=control,
    )


def build_sequence_space(
    value: DifferentiableValue, transport: TransportConfig, *, temperature: float = 1.0, control: str | None = None
) -> SequenceSpace:
    """Builds the sequence space that `transport` names.

    Args:
        value: The sequence value.
        transport: Space, steps, radius and interaction.
        temperature: The sampling temperature.
        control: `None`, `"random"` or `"shuffled"`.

    Returns:
        The space.

    Raises:
        TypeError: If the value has no gradient.
    """
    common = {
        "step_size": transport.step_size,
        "num_steps": transport.transport_steps,
        "alpha": transport.alpha,
        "interaction": transport.interaction,
        "repulsion": transport.repulsion,
        "lower_bound_coef": transport.lower_bound_coef,
        "control": control,
    }
    if transport.space == "sequence_embedding":
        return SequenceEmbeddingSpace(
            value,
            max_distance=transport.max_distance,
            anchor=transport.anchor,
            decode_strength=transport.decode_strength,
            **common,
        )
    return SequenceLogitSpace(value, temperature=temperature, **common)
