# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Tiny random language models of every layout the toolkit supports, and values over them."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from vgf_llm.models import VGFModel, build_value
from vgf_llm.models.language_model import output_vocab_size, output_width

PAD, BOS, EOS = 0, 1, 2
VOCAB = 40
_TOKENS = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
# Wide initial weights: next-token distributions are far from uniform, and greedy decoding has no ties.
_COMMON = {
    **_TOKENS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
_GEMMA = {**_COMMON, "num_key_value_heads": 1, "head_dim": 8}
_OPT = {
    **_TOKENS,
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "init_std": 0.3,
    "dropout": 0.0,
}

LAYOUTS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_COMMON, num_key_value_heads=1),
    "qwen2": lambda: Qwen2Config(**_COMMON, num_key_value_heads=1),
    "qwen3": lambda: Qwen3Config(**_COMMON, num_key_value_heads=1, head_dim=8),
    "mistral": lambda: MistralConfig(**_COMMON, num_key_value_heads=1, sliding_window=4),
    "gemma": lambda: GemmaConfig(**_GEMMA),
    "gemma2": lambda: Gemma2Config(
        **_GEMMA, sliding_window=4, final_logit_softcapping=3.0, attn_logit_softcapping=5.0, query_pre_attn_scalar=8
    ),
    "gemma3": lambda: Gemma3TextConfig(**_GEMMA, sliding_window=4, query_pre_attn_scalar=8),
    "phi3": lambda: Phi3Config(**_COMMON),
    "gpt2": lambda: GPT2Config(
        **_TOKENS,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.3,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**_COMMON),
    "opt": lambda: OPTConfig(**_OPT, word_embed_proj_dim=16),
    "opt_projected": lambda: OPTConfig(**_OPT, word_embed_proj_dim=8),
}


def tiny_model(layout: str = "llama", *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model of a layout, in evaluation mode; the same seed gives the same weights."""
    config = LAYOUTS[layout]()
    for name, value in overrides.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def prompts() -> tuple[Tensor, Tensor]:
    """A left-padded batch of three prompts of different lengths and its attention mask."""
    ids = torch.tensor([[PAD, PAD, PAD, 5, 9], [PAD, 17, 8, 33, 4], [11, 12, 6, 21, 38]])
    return ids, (ids != PAD).long()


def shake(model: nn.Module, *, seed: int = 0, std: float = 0.5) -> None:
    """Gives every parameter that trains a random value, so that no head and no adapter is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * std
                parameter.add_(noise.to(parameter.dtype))


def vgf_model(
    base: nn.Module,
    parametrization: str = "bilinear",
    backbone: str = "policy",
    *,
    head_hidden_size: int | None = None,
    seed: int = 1,
    std: float = 0.2,
    **kwargs: Any,
) -> VGFModel:
    """A `VGFModel` with a random value over a copy of `base`, in evaluation mode."""
    base = copy.deepcopy(base)
    value_model = kwargs.get("value_model")
    value = build_value(
        parametrization,
        width=output_width(value_model if value_model is not None else base),
        vocab_size=output_vocab_size(base),
        embedding_width=output_width(base),
        head_hidden_size=head_hidden_size,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VGFModel(base, value, backbone=backbone, **kwargs).eval()
    shake(model, seed=seed, std=std)
    return model
