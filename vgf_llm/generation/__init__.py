# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Generation under transport: `generate`, samples without a selection, and selection among particles."""

from vgf_llm.generation.ends import mask_after_eos, response_mask
from vgf_llm.generation.generate import generate
from vgf_llm.generation.output import VGFGenerateOutput
from vgf_llm.generation.processor import TransportProcessor
from vgf_llm.generation.sample import Sampled, sample
from vgf_llm.generation.selection import select
from vgf_llm.generation.taps import FeatureTap
from vgf_llm.models.options import TRANSPORT_OPTIONS, TransportOption
