# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Reward functions in the signature that TRL's trainers call: verifiable ones here, learned ones beside them."""

from reward_models.answers import extract_answer
from reward_models.verifiable import format_reward, get_length_reward, gsm8k_reward, math_reward

__all__ = ["extract_answer", "format_reward", "get_length_reward", "gsm8k_reward", "math_reward"]
