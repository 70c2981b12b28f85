# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Callbacks that show a run while it trains: its progress, and plots."""
