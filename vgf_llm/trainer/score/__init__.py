# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Rewards: loading and calling reward functions, and checks of what they return."""
