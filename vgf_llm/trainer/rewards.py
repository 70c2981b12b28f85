# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The public place of `RewardRunner` and `combine`, for scripts that score completions without a trainer."""

from vgf_llm.trainer.score.rewards import RewardRunner, combine

__all__ = ["RewardRunner", "combine"]
