# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Tiny random language models of every layout the toolkit supports, and values over them."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
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

_BROAD = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
_DEEPSEEK = {
    **_EXPERTS,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
_WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16}

# Every text layout of transformers that the toolkit is tried on, with what it needs beside `_BROAD` to be tiny.
BROAD_LAYOUTS: dict[str, dict[str, Any]] = {
    **{
        name: {}
        for name in [
            "apertus",
            "arcee",
            "bitnet",
            "ernie4_5",
            "gemma",
            "glm",
            "glm4",
            "gpt_neox",
            "helium",
            "hunyuan_v1_dense",
            "llama",
            "mistral",
            "nemotron",
            "olmo",
            "olmo2",
            "phi",
            "qwen2",
            "qwen3",
            "seed_oss",
            "smollm3",
            "stablelm",
            "starcoder2",
        ]
    },
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "bloom": {"n_head": 4, "n_layer": 2},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.25, **_WINDOW},
    "deepseek_v2": {**_DEEPSEEK, "head_dim": 8},
    "deepseek_v3": {**_DEEPSEEK, "head_dim": None},
    "exaone4": {**_WINDOW, "sliding_window_pattern": 2},
    "falcon": {"head_dim": None},
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_chunk_size": 16,
        "lm_head_multiplier": 0.25,
        "embedding_multiplier": 2.0,
    },
    "gemma2": {
        "final_logit_softcapping": 5.0,
        "attn_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
    },
    "gemma3_text": {**_WINDOW, "query_pre_attn_scalar": 16, "sliding_window_pattern": 2},
    "glm4_moe": {**_EXPERTS, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_oss": {**_EXPERTS, **_WINDOW},
    "granite": {
        "logits_scaling": 4.0,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.25,
    },
    "granitemoe": {**_EXPERTS, "logits_scaling": 4.0},
    "granitemoehybrid": {
        **_EXPERTS,
        **_MAMBA,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 32,
        "logits_scaling": 4.0,
    },
    "jamba": {
        **_EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
    },
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"], "num_key_value_heads": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 96},
    "llama4_text": {**_EXPERTS, "intermediate_size_mlp": 96, "interleave_moe_layer_step": 1},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 16, "num_heads": 8, "n_groups": 1, "expand": 2},
    "minimax": {**_EXPERTS, "layer_types": ["linear_attention", "full_attention"]},
    "mixtral": _EXPERTS,
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "nemotron_h": {
        "hybrid_override_pattern": "M*-",
        "num_hidden_layers": 3,
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 1,
        "mamba_n_groups": 1,
        "chunk_size": 16,
    },
    "olmo3": _WINDOW,
    "olmoe": _EXPERTS,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "phi3": {"head_dim": None},
    "phimoe": _EXPERTS,
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": _DELTA,
    "qwen3_moe": _EXPERTS,
    "qwen3_next": {**_EXPERTS, **_DELTA, "shared_expert_intermediate_size": 32},
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 8, "lru_width": 64},
    "rwkv": {"attention_hidden_size": 64},
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "mamba", "hybrid"],
        "mamba_d_state": 16,
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
        "num_mem_blocks": 1,
        "chunk_size": 16,
        "head_dim": None,
    },
}


def broad_model(layout: str) -> PreTrainedModel:
    """A random model of one of `BROAD_LAYOUTS`, in evaluation mode, with next-token distributions far from uniform."""
    settings = {name: value for name, value in {**_BROAD, **BROAD_LAYOUTS[layout]}.items() if value is not None}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[layout](**settings))
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "norm" not in name:
                parameter.normal_(std=0.15)
    model.generation_config.update(eos_token_id=EOS, pad_token_id=PAD, bos_token_id=BOS)
    return model.eval()


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
