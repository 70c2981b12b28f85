# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Reward functions in the signature that TRL's trainers call: verifiable ones here, learned ones beside them."""

from reward_models.answers import extract_answer
from reward_models.mixture import WeightedMixture
from reward_models.verifiable import (
    format_reward,
    get_length_reward,
    get_repetition_reward,
    gsm8k_reward,
    math_reward,
    thinking_reward,
)

__all__ = [
    "WeightedMixture",
    "extract_answer",
    "format_reward",
    "get_length_reward",
    "get_repetition_reward",
    "gsm8k_reward",
    "math_reward",
    "thinking_reward",
]
