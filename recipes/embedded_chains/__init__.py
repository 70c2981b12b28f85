# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A harder task than `embedded_math`: chains of five to nine steps, and a small base model that solves one in seven."""

from pathlib import Path

from recipes.embedded_chains.problems import make_corpus, make_problems

BASE_DIR = Path(__file__).parent / "base"

__all__ = ["BASE_DIR", "make_corpus", "make_problems"]
