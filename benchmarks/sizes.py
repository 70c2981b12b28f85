# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The shapes of the models that benchmarks are run on, all with random weights."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM


def _shape(
    vocab_size: int, hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int, **more: Any
) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **more,
    }


# Llama shapes, and those that Qwen publishes in config.json of Qwen/Qwen2.5-0.5B, -1.5B and -7B.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": _shape(64, 16, 32, 2, 2, 1),
    "25m": _shape(16_000, 384, 1024, 8, 6, 3),
    "60m": _shape(32_000, 512, 1408, 8, 8, 4),
    "130m": _shape(32_000, 768, 2048, 12, 12, 4),
    "qwen2.5-0.5b": _shape(151_936, 896, 4864, 24, 14, 2, tie_word_embeddings=True),
    "qwen2.5-1.5b": _shape(151_936, 1536, 8960, 28, 12, 2, tie_word_embeddings=True),
    "qwen2.5-7b": _shape(152_064, 3584, 18_944, 28, 28, 4),
}


def build_policy(size: str, device: str, dtype: str, **changes: Any) -> PreTrainedModel:
    """Builds a causal language model with random weights.

    Args:
        size: A key of `SIZES`; those of Qwen are Qwen2 models, the others Llamas.
        device: Where it is built, so that a large model never passes through the memory of another device.
        dtype: A name of torch, such as `"float32"`.
        **changes: Fields of the configuration that replace those of the size.

    Returns:
        The model in evaluation mode.
    """
    classes = (Qwen2Config, Qwen2ForCausalLM) if size.startswith("qwen") else (LlamaConfig, LlamaForCausalLM)
    config = classes[0](**{**SIZES[size], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **changes})
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            return classes[1](config).eval()
    finally:
        torch.set_default_dtype(before)
