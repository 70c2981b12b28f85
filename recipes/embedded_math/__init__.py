# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The embedded default task: word problems in GSM8K's format, and a small base model that often gets them wrong."""

from pathlib import Path

from recipes.embedded_math.problems import make_corpus, make_problems

BASE_DIR = Path(__file__).parent / "base"

__all__ = ["BASE_DIR", "make_corpus", "make_problems"]
