# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Saved models that the tests of the evaluation share."""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.embedded_math import BASE_DIR
from tests.layouts import vgf_model
from vgf_llm.models.config import TransportConfig


def save_vgf(folder: Path, parametrization: str = "bilinear", *, seed: int = 1, std: float = 0.5) -> str:
    """The embedded base under a random value, with its tokenizer."""
    base = AutoModelForCausalLM.from_pretrained(BASE_DIR)
    transport = TransportConfig(transport_steps=2, step_size=0.5)
    vgf_model(base, parametrization, seed=seed, std=std, transport=transport).save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE_DIR).save_pretrained(folder)
    return str(folder)
