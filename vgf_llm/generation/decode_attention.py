# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Attention of one new token on a CPU, as two matrix products over the cache.

torch's fused kernel is made for long queries: with one query per row it takes two to three times as long on a CPU.
Prompts and training keep it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from vgf_llm.models.language_model import inner_model

_NAME = "vgf_decode"
_FUSED = "sdpa"
# What some models add to attention: the fused function knows what to do with it, or refuses it.
_NOT_PLAIN = ("position_bias", "cache", "softcap", "s_aux")


def decode_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: products where there is one query, torch's fused kernel elsewhere.

    Args:
        module: The attention layer.
        query: `[B, H, Q, D]`.
        key: `[B, K, S, D]`; every H / K query heads share one.
        value: `[B, K, S, D]`.
        attention_mask: `[B, 1, Q, S]`, true where a query may look or added to the scores; `None` for everywhere.
        dropout: Probability.
        scaling: Factor of the scores, D^-1/2 by default.
        **kwargs: For the fused kernel.

    Returns:
        `[B, Q, H, D]`, and no weights.

    Example:
        >>> states = torch.randn(3, 2, 4, 8)
        >>> query, key = states[:, :, :1], states[:, :1]
        >>> layer = nn.Module()
        >>> layer.num_key_value_groups, layer.is_causal = 2, True
        >>> fused, _ = AttentionInterface()["sdpa"](layer, query, key, key, None)
        >>> torch.allclose(decode_attention(layer, query, key, key, None)[0], fused, atol=1e-6)
        True
    """
    batch, heads, queries, width = query.shape
    needs_grad = torch.is_grad_enabled() and query.requires_grad
    plain = dropout == 0 and all(kwargs.get(name) is None for name in _NOT_PLAIN)
    plain = plain and (attention_mask is None or attention_mask.shape[1] == 1)
    if queries > 1 or needs_grad or not plain or query.dtype != torch.float32 or query.device.type != "cpu":
        fused: Any = AttentionInterface()[_FUSED]
        return fused(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    # The query heads that share keys stand where several queries would.
    grouped = query.reshape(batch, key.shape[1], -1, width)
    scores = (grouped @ key.transpose(-2, -1)) * (width**-0.5 if scaling is None else scaling)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill_(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    return (scores.softmax(dim=-1) @ value).reshape(batch, 1, heads, -1), None


AttentionInterface.register(_NAME, decode_attention)
AttentionMaskInterface.register(_NAME, AttentionMaskInterface()[_FUSED])


@contextmanager
def decoding_attention(*models: nn.Module | None) -> Iterator[None]:
    """Has those of the models that use torch's fused kernel in float32 on a CPU decode with `decode_attention` inside.

    Args:
        *models: Causal language models, PEFT-wrapped or not.
    """
    found = {id(inner): inner for inner in (inner_model(model) for model in models if model is not None)}
    changed = [inner for inner in found.values() if _decodes_slowly(inner)]
    for inner in changed:
        inner.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        for inner in changed:
            inner.set_attn_implementation(_FUSED)


def _decodes_slowly(model: Any) -> bool:
    # Models made of several have an attention of their own for each, which would have to be put back one by one.
    fused = model.config._attn_implementation == _FUSED and not model.config.sub_configs
    return fused and model.device.type == "cpu" and model.dtype == torch.float32
