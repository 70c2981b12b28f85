# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Keeps the doctest collection away from the adapter where the library that it adapts to is not installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("lm_eval") else ["lm_eval_adapter.py"]
