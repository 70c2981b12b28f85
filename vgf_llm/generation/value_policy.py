# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Samples the model behind a log-ratio value: the transported policy at L epsilon = 1, in one forward per token."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vgf_llm.functional import candidate_set
from vgf_llm.generation.prefill import SharedPrefill
from vgf_llm.models.adapter_rows import adapter_rows
from vgf_llm.models.backbones import VALUE_ADAPTER
from vgf_llm.models.language_model import inner_model
from vgf_llm.models.valued_policy import ValuedPolicy


class CandidateProcessor(LogitsProcessor):
    """Leaves a distribution's own candidates, ahead of temperature and top-p.

    Args:
        top_k: K, the most likely tokens that stay.
        min_prob: Least probability of a token that stays; the most likely one always does.

    Example:
        >>> CandidateProcessor(2, 0.25)(torch.tensor([[0]]), torch.tensor([[0.5, 0.3, 0.2]]).log()).exp()
        tensor([[0.5000, 0.3000, 0.0000]])
    """

    def __init__(self, top_k: int, min_prob: float) -> None:
        self.top_k = top_k
        self.min_prob = min_prob

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Maps logits `[R, V]` to logits with `-inf` for every token that is no candidate."""
        ids, mask = candidate_set(scores.float().log_softmax(dim=-1), top_k=self.top_k, min_prob=self.min_prob)
        kept = scores.gather(-1, ids).masked_fill(~mask, -torch.inf)
        return torch.full_like(scores, -torch.inf).scatter_(-1, ids, kept)


@torch.no_grad()
def generate_from_value(
    model: ValuedPolicy,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    num_particles: int = 1,
    top_k_candidates: int = 40,
    min_candidate_prob: float = 0.02,
    **kwargs: Any,
) -> Tensor:
    """Samples the model that a log-ratio value is the ratio of.

    L Fisher steps of size epsilon with L epsilon = 1 give mu(v|s) exp(log pi(v|s) - log mu(v|s)) / Z on the base's
    candidates, which is that model itself there. Its own candidates in their place make the base's forward needless,
    and let tokens through that the base hardly samples and the value has learned to like.

    Args:
        model: A model with a `log_ratio` value.
        input_ids: `[B, P]`, padded left.
        attention_mask: `[B, P]`.
        num_particles: N, responses per prompt.
        top_k_candidates: Most likely tokens that may be sampled.
        min_candidate_prob: Least probability of such a token.
        **kwargs: For `generate` of the model behind the value.

    Returns:
        `[B * N, P + T]`, the N responses to a prompt in adjacent rows.

    Raises:
        ValueError: For another kind of value.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from vgf_llm.models.value import build_value
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        >>> value = build_value("log_ratio", width=8, vocab_size=16)
        >>> model = ValuedPolicy(LlamaForCausalLM(config), value, backbone="copy")
        >>> ids = torch.tensor([[1, 5]])
        >>> generate_from_value(model, ids, torch.ones_like(ids), num_particles=3, do_sample=True,
        ...                     min_new_tokens=2, max_new_tokens=2).shape
        torch.Size([3, 4])
    """
    if not model.value.needs_logits:
        raise ValueError(f"A {model.value.parametrization!r} value is no ratio of two models; sample with transport.")
    own: Any = inner_model(model.policy if model.value_model is None else model.value_model)
    adapter: AbstractContextManager[Any] = nullcontext()
    if model.value_model is None:
        adapter = adapter_rows(model.policy, VALUE_ADAPTER)
    candidates = CandidateProcessor(top_k_candidates, min_candidate_prob)
    prefill = SharedPrefill(num_particles)
    with adapter, prefill.installed(own):
        output = own.generate(
            input_ids.repeat_interleave(num_particles, dim=0),
            attention_mask=attention_mask.repeat_interleave(num_particles, dim=0),
            logits_processor=LogitsProcessorList([candidates]),
            return_dict_in_generate=False,
            **kwargs,
        )
    return cast(Tensor, output)
