# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Generation under transport: `generate`, its processor, and selection among particles."""

from vgf_llm.generation.decode_attention import decode_attention, decoding_attention
from vgf_llm.generation.decoding import mask_after_eos
from vgf_llm.generation.generate import generate
from vgf_llm.generation.output import VGFGenerateOutput
from vgf_llm.generation.processor import TransportProcessor
from vgf_llm.generation.selection import select
from vgf_llm.generation.taps import FeatureTap
from vgf_llm.generation.token_logps import TokenLogps
from vgf_llm.generation.value_policy import generate_from_value

__all__ = [
    "FeatureTap",
    "TokenLogps",
    "TransportProcessor",
    "VGFGenerateOutput",
    "decode_attention",
    "decoding_attention",
    "generate",
    "generate_from_value",
    "mask_after_eos",
    "select",
]
