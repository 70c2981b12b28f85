# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`VGFTrainer` and `VGFConfig`: training a value, and on request the policy, in TRL's conventions."""

from vgf_llm.trainer.vgf_config import VGFConfig
from vgf_llm.trainer.vgf_trainer import VGFTrainer

__all__ = ["VGFConfig", "VGFTrainer"]
