# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The embedded preference task: reviews in a small language, a hidden gold score, and a base that writes them."""

from pathlib import Path

from recipes.embedded_preference.gold import gold_reward, gold_score
from recipes.embedded_preference.language import make_corpus, make_prompts

BASE_DIR = Path(__file__).parent / "base"

__all__ = ["BASE_DIR", "gold_reward", "gold_score", "make_corpus", "make_prompts"]
