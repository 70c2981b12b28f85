# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The embedded preference task: reviews in a small language, a hidden gold score, a base that writes them, a proxy.

The proxy's weights come from

    accelerate launch reward_models/train.py --config reward_models/configs/embedded_preference.yaml \
        --output_dir recipes/embedded_preference/proxy_model
"""

from pathlib import Path

from recipes.embedded_preference.gold import gold_reward, gold_score
from recipes.embedded_preference.language import make_corpus, make_prompts

BASE_DIR = Path(__file__).parent / "base"
PROXY_DIR = Path(__file__).parent / "proxy_model"

__all__ = ["BASE_DIR", "PROXY_DIR", "gold_reward", "gold_score", "make_corpus", "make_prompts"]
