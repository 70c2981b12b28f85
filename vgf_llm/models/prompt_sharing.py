# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Reads a prompt once for all its responses: the keys and values of its tokens are computed, then repeated.

N responses of T tokens to a prompt of P cost P + N T tokens instead of N (P + T), in training as in decoding, and
gradients flow through the repetition. Layers that keep something else than keys and values of single tokens, such as
the state of a recurrent layer, are left alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from vgf_llm.models.language_model import accepts_argument, inner_model, last_hidden_states

_GROWING = (DynamicLayer, DynamicSlidingWindowLayer)


def can_share_prompts(model: nn.Module) -> bool:
    """Tells whether `grouped_hidden_states` runs a causal language model.

    The answer follows from the model and its mode alone, so that every process of a run gives the same. It is false for
    models that keep anything but keys and values of every token (windows, recurrent states), while a compiler traces
    them, and with gradient checkpointing, which excludes caches.
    """
    inner = inner_model(model)
    if torch.compiler.is_compiling() or getattr(inner, "_is_stateful", False):
        return False
    if inner.training and any(getattr(module, "gradient_checkpointing", False) for module in inner.modules()):
        return False
    if not (accepts_argument(inner, "past_key_values") and accepts_argument(inner, "attention_mask")):
        return False
    config = inner.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None) or []
    layers = DynamicCache(config=config).layers
    return all(type(layer) is DynamicLayer for layer in layers) and all(kind == "full_attention" for kind in kinds)


def grouped_hidden_states(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, num_tokens: int, group_sizes: Sequence[int]
) -> Tensor:
    """Hidden states that would enter the output embedding of a model that `can_share_prompts`.

    The rows `[R, P + T]` have prompts padded left and `num_tokens` T of responses padded right; `group_sizes`, which
    add up to R, are the numbers of adjacent rows with one prompt.

    Returns:
        `[R, 1 + T, D]`: of the prompt's last token and of the response's tokens.
    """
    length = input_ids.shape[1] - num_tokens
    cache = DynamicCache(config=inner_model(model).config.get_text_config(decoder=True))
    sizes = torch.tensor(group_sizes)
    first = (sizes.cumsum(0) - sizes).to(input_ids.device)
    prompts, masks = input_ids[first, :length], attention_mask[first, :length]
    # A number where it can be one: for a tensor of repeats a GPU waits at every layer.
    repeats = group_sizes[0] if len(set(group_sizes)) == 1 else sizes.to(input_ids.device)
    prompt = last_hidden_states(model, prompts, masks, past_key_values=cache)[:, -1:]
    cache.batch_repeat_interleave(repeats)
    responses = last_hidden_states(model, input_ids[:, length:], attention_mask, past_key_values=cache)
    return torch.cat([prompt.repeat_interleave(repeats, dim=0), responses], dim=1)


def can_expand(cache: Cache) -> bool:
    """Tells whether `expand_cache` can repeat the rows of a cache, filled or not."""
    return all(type(layer) in (*_GROWING, StaticLayer) for layer in cache.layers)


def expand_cache(cache: Cache, repeats: int) -> None:
    """Makes rows b N to b N + N - 1 of row b of a filled cache, in place; `can_expand` has to be true of it."""
    for layer in cache.layers:
        if isinstance(layer, StaticLayer):
            layer.keys = layer.keys.repeat_interleave(repeats, dim=0)
            layer.values = layer.values.repeat_interleave(repeats, dim=0)
            layer.batch_size = layer.keys.shape[0]
        else:
            layer.batch_repeat_interleave(repeats)
