# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Offline reinforcement learning on OGBench: data, agents, evaluation and the figure of `recipes/ogbench_vgf.py`."""
