# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Tiny sequence classifiers over the tokenizer of the trainer tests."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from tests.trainer.tiny import EOS, VOCAB


def classifier(num_labels: int = 1, seed: int = 0, **overrides: Any) -> LlamaForSequenceClassification:
    """A random classifier; the same seed gives the same weights."""
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "pad_token_id": 0,
        "num_labels": num_labels,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForSequenceClassification(LlamaConfig(**{**settings, **overrides})).eval()
