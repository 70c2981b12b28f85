# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Values over language models: parametrizations, backbones, and the model that joins a value to its policy.

Its modules are imported by their own names inside the package. The names here are for users, and are looked up when
they are asked for: `VGFModel` stands above generation, which stands above the modules of this package.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "BilinearQHead": "vgf_llm.models.heads",
    "Candidates": "vgf_llm.models.outputs",
    "DifferentiableValue": "vgf_llm.models.sequence_value",
    "LogRatioValue": "vgf_llm.models.value",
    "QHead": "vgf_llm.models.heads",
    "Sampling": "vgf_llm.models.sampling",
    "SequenceValue": "vgf_llm.models.sequence_value",
    "StateFeatures": "vgf_llm.models.value",
    "TransportConfig": "vgf_llm.models.config",
    "VGFModel": "vgf_llm.vgf_model",
    "VGFModelConfig": "vgf_llm.models.config",
    "VGFModelOutput": "vgf_llm.models.outputs",
    "VGFScore": "vgf_llm.models.outputs",
    "ValueModel": "vgf_llm.models.value",
    "ValuedPolicy": "vgf_llm.models.valued_policy",
    "build_value": "vgf_llm.models.value",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
