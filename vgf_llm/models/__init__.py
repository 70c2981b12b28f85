# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Values over language models: parametrizations, backbones, and `VGFModel`, which joins a value to its policy."""

from vgf_llm.models.config import TransportConfig, VGFModelConfig
from vgf_llm.models.heads import BilinearQHead, QHead, ValueHead
from vgf_llm.models.outputs import Candidates, VGFModelOutput, VGFScore
from vgf_llm.models.sequence_value import DifferentiableValue, SequenceValue
from vgf_llm.models.value import LogRatioValue, StateFeatures, StateValue, ValueModel, build_value
from vgf_llm.models.vgf_model import VGFModel

__all__ = [
    "BilinearQHead",
    "Candidates",
    "DifferentiableValue",
    "LogRatioValue",
    "QHead",
    "SequenceValue",
    "StateFeatures",
    "StateValue",
    "TransportConfig",
    "VGFModel",
    "VGFModelConfig",
    "VGFModelOutput",
    "VGFScore",
    "ValueHead",
    "ValueModel",
    "build_value",
]
