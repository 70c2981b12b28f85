# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Makes a plain language model of a log-ratio value: its transported policy at L epsilon = 1, one forward per token."""

import copy
import os
import tempfile
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from vgf_llm.models.backbones import VALUE_ADAPTER
from vgf_llm.models.language_model import inner_model
from vgf_llm.models.origin import base_tensors
from vgf_llm.models.valued_policy import ValuedPolicy


def merging_obstacle(model: ValuedPolicy) -> str | None:
    """Returns why `merge_value` refuses a model, or `None` if it does not."""
    if not model.value.needs_logits:
        return (
            f"A {model.value.parametrization!r} value is no ratio of two models, so that no model stands behind it. "
            "Any value is served with `vgf serve`, and can be distilled in training (`distill_coef > 0`)."
        )
    if model.ref_model is not None or model.policy_adapter is not None:
        return (
            "This value transports a policy that was trained itself: the model behind the value is not its result at "
            "L * epsilon = 1. The folder's policy is a plain model already (`AutoModelForCausalLM` or PEFT loads it)."
        )
    return None


def merge_value(model: ValuedPolicy, budget: float = 1.0) -> PreTrainedModel:
    """Returns the model that a log-ratio value is the ratio of, as a plain language model.

    Transport with L epsilon = 1 gives mu(v|s) exp(log pi(v|s) - log mu(v|s)) / Z on the base's candidates: pi itself
    there. pi needs no base beside it, and any server runs it at a policy's cost. Its candidates are its own in place of
    the base's, by its generation defaults: it samples, and `top_k` and `epsilon_cutoff`, a token's least probability,
    are transport's. Of the policy's defaults it keeps the special tokens; temperature, top-p or penalties would make
    another distribution of it.

    Args:
        model: A model with a `log_ratio` value; it stays as it is. The result is a copy, which needs the memory of one.
        budget: Share, from 0 to 1, of the way from the base's weights to those behind the value (a LoRA's scale). Below
            1 this is near transport with that L epsilon, not equal to it; `vgf_llm.export.distil_budget` measures how
            near, and goes beyond 1.

    Returns:
        The model behind the value.

    Raises:
        ValueError: If the value is no ratio of two models, or transports a policy that was itself trained; if no
            weights lie between the two models.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from vgf_llm.models.value import build_value
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        >>> value = build_value("log_ratio", width=8, vocab_size=16)
        >>> model = ValuedPolicy(LlamaForCausalLM(config), value, backbone="lora")
        >>> merge_value(model).generation_config.epsilon_cutoff
        0.02
    """
    obstacle = merging_obstacle(model)
    if obstacle is not None:
        raise ValueError(obstacle)
    if not 0 <= budget <= 1:
        raise ValueError(
            f"`budget` must be from 0 to 1, the model behind the value, got {budget}: weights beyond it break. "
            "Distil larger budgets: `vgf export --budget S --prompts FILE`, `vgf_llm.export.distil_budget`."
        )
    merged = merge_backbone(model)
    if budget < 1:
        base, moved = base_tensors(model.policy), dict(merged.named_parameters())
        if any(name not in base or base[name].shape != tensor.shape for name, tensor in moved.items()):
            raise ValueError(
                f"`budget` ({budget}) takes weights between the base's and the value's, whose model has another shape. "
                "Leave it 1, or serve the budget with `vgf serve`."
            )
        with torch.no_grad():
            for name, tensor in moved.items():
                tensor.lerp_(base[name].to(tensor), 1 - budget)
    own = model.generation_config
    merged.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id,
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=model.transport.top_k_candidates,
        epsilon_cutoff=model.transport.min_candidate_prob or None,
    )
    return merged


def merge_backbone(model: ValuedPolicy) -> PreTrainedModel:
    """Returns a copy of the model that the value reads: its own, or the policy with the value's adapter merged in."""
    if model.value_model is not None:
        return copy.deepcopy(inner_model(model.value_model))
    merged: PreTrainedModel = copy.deepcopy(model.policy).merge_and_unload(adapter_names=[VALUE_ADAPTER])
    return merged


def save_plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, save_directory: str | Path) -> None:
    """Writes a plain model with its tokenizer to a new or empty folder: the whole of it, or nothing."""
    out = Path(save_directory)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as beside:
        whole = Path(beside) / out.name
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        os.replace(whole, out)
