# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Serving a saved VGF model with vLLM: transport inside the engine, a budget for each request."""

from vgf_llm.serving.artefacts import engine_arguments, load_served_value, policy_view
from vgf_llm.serving.client import best_of, score
from vgf_llm.serving.transport import ServedRequest, ServedTransport
