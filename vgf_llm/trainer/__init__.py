# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`VGFTrainer` and `VGFConfig`: training a value, and on request the policy, in TRL's conventions."""

from vgf_llm.trainer.config import VGFConfig

__all__ = ["VGFConfig", "VGFTrainer"]
