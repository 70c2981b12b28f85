# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Evaluation: sampling with every method on one set of problems, tables with standard errors, and plots."""
