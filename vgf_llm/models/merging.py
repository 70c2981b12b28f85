# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Makes a plain language model of a log-ratio value: its transported policy at L epsilon = 1, one forward per token."""

import copy
from typing import TYPE_CHECKING, cast

from peft import PeftModel
from transformers import PreTrainedModel

from vgf_llm.models.backbones import VALUE_ADAPTER
from vgf_llm.models.language_model import inner_model

if TYPE_CHECKING:
    from vgf_llm.models.vgf_model import VGFModel


def merge_value(model: "VGFModel") -> PreTrainedModel:
    """Returns the model that a log-ratio value is the ratio of, as a plain language model.

    Transport with L epsilon = 1 gives mu(v|s) exp(log pi(v|s) - log mu(v|s)) / Z on the base's candidates: pi itself
    there. pi needs no base beside it, and any server runs it at a policy's cost. Its candidates are its own in place of
    the base's, by its generation defaults. Those are the policy's but for three: it samples, and `top_k` and
    `epsilon_cutoff`, a token's least probability, are transport's. Budgets beyond L epsilon = 1 stay with the
    `VGFModel`.

    Args:
        model: A model with a `log_ratio` value. Nothing is copied: with `backbone="lora"` the policy's own weights
            take the adapter in, and `model` is of no use after it.

    Returns:
        The model behind the value.

    Raises:
        ValueError: If the value is no ratio of two models, or transports a policy that was itself trained.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from vgf_llm.models import VGFModel, build_value
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        >>> value = build_value("log_ratio", width=8, vocab_size=16)
        >>> model = VGFModel(LlamaForCausalLM(config), value, backbone="lora")
        >>> merge_value(model).generation_config.epsilon_cutoff
        0.02
    """
    if not model.value.needs_logits:
        raise ValueError(
            f"A {model.value.parametrization!r} value is no ratio of two models, so that no model stands behind it. "
            "Heads on the policy's own features are served with `vgf serve`; any value can be distilled in training "
            "(`distill_coef > 0`)."
        )
    if model.ref_model is not None or model.policy_adapter is not None:
        raise ValueError(
            "This value transports a policy that was trained itself: the model behind the value is not its result at "
            "L * epsilon = 1. The folder's policy is a plain model already (`AutoModelForCausalLM` or PEFT loads it)."
        )
    if model.value_model is not None:
        merged = inner_model(model.value_model)
    else:
        merged = cast(PeftModel, model.policy).merge_and_unload(adapter_names=[VALUE_ADAPTER])
    defaults = copy.deepcopy(model.generation_config)
    defaults.do_sample = True
    defaults.top_k = model.transport.top_k_candidates
    defaults.epsilon_cutoff = model.transport.min_candidate_prob or None
    merged.generation_config = defaults
    return merged
