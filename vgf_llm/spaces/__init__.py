# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The spaces in which particles move, behind one interface: lift, velocity, step, project."""

from torch import nn

from vgf_llm.models.config import TransportConfig
from vgf_llm.models.value import ValueModel
from vgf_llm.spaces.base import DecodeState, TransportedStep, TransportSpace
from vgf_llm.spaces.hidden import HiddenSpace
from vgf_llm.spaces.logit import LogitSpace

__all__ = ["DecodeState", "HiddenSpace", "LogitSpace", "TransportSpace", "TransportedStep", "build_space"]


def build_space(
    policy: nn.Module, value: ValueModel, transport: TransportConfig, *, control: str | None = None
) -> TransportSpace:
    """Builds the space that `transport` names.

    Args:
        policy: The language model.
        value: The value.
        transport: Space, metric, steps and interaction.
        control: `None`, `"random"` or `"shuffled"`.

    Returns:
        The space.

    Raises:
        ValueError: If the value cannot move particles of that space.
    """
    if transport.space == "hidden":
        return HiddenSpace(
            policy,
            value,
            step_size=transport.step_size,
            num_steps=transport.transport_steps,
            alpha=transport.alpha,
            interaction=transport.interaction,
            repulsion=transport.repulsion,
            control=control,
        )
    return LogitSpace(
        policy,
        value,
        step_size=transport.step_size,
        num_steps=transport.transport_steps,
        metric=transport.metric,
        alpha=transport.alpha,
        interaction=transport.interaction,
        repulsion=transport.repulsion,
        control=control,
    )
