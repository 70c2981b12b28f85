# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints: what they hold, when they count, and weights that training holds in shards."""
