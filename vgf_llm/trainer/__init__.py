# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`VGFTrainer` and `VGFConfig`: training a value, and on request the policy, in TRL's conventions.

The folders are the parts of a round: `choose` prompts and who samples, `sample`, `score`, `keep`, `fit`, `measure`,
`save`; `config` is what the user sets.
"""

from vgf_llm.trainer.config import VGFConfig
from vgf_llm.trainer.vgf_trainer import VGFTrainer

__all__ = ["VGFConfig", "VGFTrainer"]
