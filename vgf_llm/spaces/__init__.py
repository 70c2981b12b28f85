# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The spaces in which particles move: they lift a state to particles, move these, and project them back."""

from vgf_llm.models.config import TransportConfig
from vgf_llm.models.sequence_value import DifferentiableValue
from vgf_llm.spaces.logit import DecodeState, LogitSpace, TransportedStep
from vgf_llm.spaces.sequence import SequenceSpace, SequenceState
from vgf_llm.spaces.sequence_embedding import SequenceEmbeddingSpace
from vgf_llm.spaces.sequence_logit import SequenceLogitSpace


def build_sequence_space(
    value: DifferentiableValue, transport: TransportConfig, *, temperature: float = 1.0, control: str | None = None
) -> SequenceSpace:
    """Builds the sequence space that `transport` names; its arguments are those of `SequenceLogitSpace`."""
    if transport.space == "sequence_embedding":
        return SequenceEmbeddingSpace(value, transport, control=control)
    return SequenceLogitSpace(value, transport, temperature=temperature, control=control)
