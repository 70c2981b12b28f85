# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Runnable recipes: one file or folder a task."""
