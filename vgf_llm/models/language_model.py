# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What the rest of the package asks of a causal language model, for every layout transformers ships.

A causal language model is a backbone, which turns tokens into hidden states, and an output embedding, which turns a
hidden state into logits. The helpers here find both, run the backbone alone and apply the output embedding to hidden
states of the caller's choice, with the same arithmetic as the model's own `forward`.
"""

import inspect
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel


def inner_model(model: nn.Module) -> PreTrainedModel:
    """Returns the transformers model inside a PEFT wrapper, or the model itself.

    Args:
        model: A `PreTrainedModel` or a `PeftModel` around one.

    Returns:
        The `PreTrainedModel`; adapter layers that PEFT injected stay in it.

    Raises:
        TypeError: For anything else.
    """
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(
            f"`model` must be a transformers PreTrainedModel or a PeftModel around one, got {type(model).__name__}. "
            "Load it with AutoModelForCausalLM.from_pretrained(...)."
        )
    return inner


def output_embedding(model: nn.Module) -> nn.Module:
    """Returns the layer that maps hidden states to logits.

    Args:
        model: A causal language model, PEFT-wrapped or not.

    Returns:
        The output embedding; its `weight` is `[V, D]`.

    Raises:
        ValueError: If the model has none, such as a bare encoder.
    """
    inner = inner_model(model)
    layer = inner.get_output_embeddings()
    if layer is None:
        raise ValueError(
            f"`model` has no output embedding: {type(inner).__name__} is not a causal language model. "
            "Load it with AutoModelForCausalLM."
        )
    return layer


def output_weight(model: nn.Module) -> Tensor:
    """Returns E, the `[V, D]` weight of the output embedding of `model`."""
    return cast(Tensor, output_embedding(model).weight)


def weight_shape(weight: Tensor) -> torch.Size:
    """Returns the shape of a weight; of the whole weight where DeepSpeed ZeRO-3 left an empty tensor in its place."""
    return getattr(weight, "ds_shape", weight.shape)


def output_width(model: nn.Module) -> int:
    """Returns D, the width of the hidden states that enter the output embedding of `model`."""
    return weight_shape(output_weight(model))[1]


def output_vocab_size(model: nn.Module) -> int:
    """Returns V, the number of logits of `model` (which may exceed the number of tokens of its tokenizer)."""
    return weight_shape(output_weight(model))[0]


def position_ids_from_mask(attention_mask: Tensor) -> Tensor:
    """Counts real tokens, so that left padding does not shift positions.

    Args:
        attention_mask: `[B, T]`, 1 on real tokens.

    Returns:
        Positions `[B, T]`; padding gets position 0.

    Example:
        >>> position_ids_from_mask(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])).tolist()
        [[0, 0, 0, 1], [0, 1, 2, 3]]
    """
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def accepts_argument(model: nn.Module, name: str) -> bool:
    """Tells whether `model.forward` has a parameter called `name`."""
    return name in inspect.signature(type(model).forward).parameters


def last_hidden_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Tensor:
    """Runs the backbone alone and returns the hidden states that would enter the output embedding.

    Args:
        model: A causal language model, PEFT-wrapped or not.
        input_ids: `[B, T]`.
        attention_mask: `[B, T]`, 1 on real tokens, padding on either side.
        **kwargs: Handed to the backbone, such as `past_key_values`.

    Returns:
        `[B, T, D]`.
    """
    inner = inner_model(model)
    backbone = inner.base_model
    if accepts_argument(backbone, "position_ids") and "position_ids" not in kwargs:
        kwargs["position_ids"] = position_ids_from_mask(attention_mask)
    kwargs.setdefault("use_cache", False)
    return backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state


def project_hidden(model: nn.Module, hidden: Tensor, candidate_ids: Tensor | None = None) -> Tensor:
    """Applies the output embedding, with the scaling and soft-capping that some layouts add.

    Args:
        model: A causal language model.
        hidden: `[..., D]`.
        candidate_ids: `[..., K]`, optional: only these rows of the output embedding are evaluated.

    Returns:
        Logits in float32, `[..., V]` or `[..., K]`.
    """
    layer, weight = output_embedding(model), output_weight(model)
    if candidate_ids is None:
        logits = layer(hidden.to(weight.dtype)).float()
    else:
        logits = torch.einsum("...kd,...d->...k", weight[candidate_ids], hidden.to(weight.dtype)).float()
        bias = getattr(layer, "bias", None)
        if bias is not None:
            logits = logits + bias[candidate_ids].float()
    config = inner_model(model).config.get_text_config()
    scale = getattr(config, "logits_scaling", None)
    if scale is not None:
        logits = logits / scale
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits


# States whose logits exist at a time: 150 MB in float32 at a vocabulary of 150,000.
STATES_AT_A_TIME = 256


def chosen_logps(model: nn.Module, hidden: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of chosen tokens, without holding the logits of all states at once.

    The logits of `STATES_AT_A_TIME` states are computed, reduced and dropped; a backward pass computes them again.

    Args:
        model: A causal language model.
        hidden: `[..., D]`.
        ids: `[..., K]`, tokens of each state.

    Returns:
        `[..., K]` in float32, normalised over the vocabulary.
    """

    def logps(states: Tensor, chosen: Tensor) -> Tensor:
        logits = project_hidden(model, states)
        return logits.gather(-1, chosen) - logits.logsumexp(dim=-1, keepdim=True)

    states, chosen = hidden.reshape(-1, hidden.shape[-1]), ids.reshape(-1, ids.shape[-1])
    if states.shape[0] <= STATES_AT_A_TIME:
        return logps(states, chosen).view(ids.shape)
    pairs = zip(states.split(STATES_AT_A_TIME), chosen.split(STATES_AT_A_TIME), strict=True)
    if torch.is_grad_enabled():
        parts = [checkpoint(logps, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs]
    else:
        parts = [logps(*pair) for pair in pairs]
    return torch.cat(parts).view(ids.shape)
