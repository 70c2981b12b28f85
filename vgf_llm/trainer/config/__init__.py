# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The configuration of `VGFTrainer`: `VGFConfig`, its checks, and the parser of command lines and YAML files."""

from vgf_llm.trainer.config.batch_sizes import fit_round
from vgf_llm.trainer.config.parser import VGFParser
from vgf_llm.trainer.config.resolve import settings_dict
from vgf_llm.trainer.config.vgf_config import VGFConfig

__all__ = ["VGFConfig", "VGFParser", "fit_round", "settings_dict"]
