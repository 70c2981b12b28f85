# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Samples of the base, of the model behind a value, and of the transported policy, without a selection among them."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

from vgf_llm.generation.candidates import CandidateProcessor
from vgf_llm.generation.decoding import check_decoding, effective_config
from vgf_llm.generation.particles import check_inputs, for_particles
from vgf_llm.generation.processor import TransportProcessor
from vgf_llm.generation.responses import Responses, run_generate
from vgf_llm.generation.sequence import generate_sequences
from vgf_llm.generation.taps import FeatureTap
from vgf_llm.models.adapter_rows import adapter_rows
from vgf_llm.models.backbones import VALUE_ADAPTER
from vgf_llm.models.config import SEQUENCE_SPACES, TransportConfig
from vgf_llm.models.language_model import inner_model
from vgf_llm.models.valued_policy import ValuedPolicy

Who = Literal["base", "value", "transport"]


@dataclass(frozen=True)
class Sampled:
    """R = B * N responses, those of one prompt in adjacent rows."""

    tokens: Tensor  # `[R, T]`; what stands behind a response's length means nothing
    lengths: Tensor  # `[R]`, tokens of each response, the one that ended it included
    finished: Tensor  # `[R]`, true where a response ended by itself; false where a limit of length or time cut it
    # `[R, T]`, KL to the base spent at every token, in nats, 0 behind the end; `None` where it is not measured
    kl: Tensor | None = None


@torch.no_grad()
def sample(
    model: ValuedPolicy,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    who: Who,
    num_particles: int,
    transport: TransportConfig | None = None,
    **generate_kwargs: Any,
) -> Sampled:
    """Samples N responses per prompt.

    Args:
        model: The model.
        input_ids: `[B, P]`, padded left.
        attention_mask: `[B, P]`.
        who: `"base"`: the policy, the value's adapter off. `"value"`: the model behind a log-ratio value, in one
            forward per token. L Fisher steps of size epsilon with L epsilon = 1 give that model on the base's
            candidates; here the candidates are its own, so that tokens which the base hardly samples come through.
            `"transport"`: the policy under transport.
        num_particles: N.
        transport: Candidates of `"value"`, everything about `"transport"`; `model.transport` when left out. Its
            `num_particles` and `selection` are not read.
        **generate_kwargs: For `generate` of the model that samples, as in `ValuedPolicy.generate`.

    Returns:
        The samples.

    Raises:
        ValueError: For an unknown `who`, a value that is no ratio of two models, or settings that exclude each other.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        >>> ids = torch.tensor([[1, 5]])
        >>> found = sample(ValuedPolicy(LlamaForCausalLM(config)), ids, torch.ones_like(ids), who="base",
        ...                num_particles=3, do_sample=True, min_new_tokens=2, max_new_tokens=2)
        >>> found.tokens.shape, found.lengths.tolist(), found.finished.tolist()
        (torch.Size([3, 2]), [2, 2, 2], [False, False, False])
    """
    if who not in ("base", "value", "transport"):
        raise ValueError(f"`who` must be 'base', 'value' or 'transport', got {who!r}.")
    transport = replace(transport or model.transport, num_particles=num_particles, selection="none")
    given: GenerationConfig | None = generate_kwargs.get("generation_config")
    config, _ = effective_config(inner_model(model.policy), given, generate_kwargs, input_ids.shape[-1])
    check_decoding(transport, config, generate_kwargs, input_ids)
    check_inputs(generate_kwargs, attention_mask, alone=who == "base")
    generate_kwargs.pop("return_dict_in_generate", None)
    if who == "transport" and transport.space in SEQUENCE_SPACES:
        moved: Any = generate_sequences(
            model, transport, input_ids, attention_mask, return_dict=True, **generate_kwargs
        )
        kl = None if moved.kl is None else moved.kl.flatten(0, 1)
        tokens = moved.sequences[:, input_ids.shape[1] :]
        return Sampled(tokens, moved.lengths.flatten(), moved.finished.flatten(), kl)
    if who == "value":
        found = _value_responses(model, input_ids, attention_mask, transport, **generate_kwargs)
    else:
        if who == "base":
            transport = replace(transport, transport_steps=0)
        found = policy_responses(model, input_ids, attention_mask, transport, config=config, **generate_kwargs)
    kl = found.kl if who == "transport" else None
    return Sampled(found.tokens, found.ends.lengths, found.ends.finished, kl)


def policy_responses(
    model: ValuedPolicy,
    input_ids: Tensor,
    attention_mask: Tensor,
    transport: TransportConfig,
    *,
    config: GenerationConfig,
    control: str | None = None,
    **kwargs: Any,
) -> Responses:
    """Samples N responses per prompt from the policy, under transport in a token-level space where there are steps.

    `config` are the call's settings, resolved; `generate` documents the other arguments.
    """
    policy, n = inner_model(model.policy), transport.num_particles
    if transport.transport_steps == 0:
        with adapter_rows(model.policy, model.policy_adapter):
            return _run(policy, model, input_ids, attention_mask, n, **kwargs)
    static = config.cache_implementation == "static"
    tap = FeatureTap(
        model,
        attention_mask.repeat_interleave(n, dim=0),
        max_cache_len=input_ids.shape[1] + int(config.max_new_tokens or 0) if static else None,
        num_particles=n,
    )
    processor = TransportProcessor(model.value, transport, tap, control=control)
    with adapter_rows(model.policy, *model.value_blocks()):
        return _run(policy, model, input_ids, attention_mask, n, last=processor, **kwargs)


def _value_responses(
    model: ValuedPolicy, input_ids: Tensor, attention_mask: Tensor, transport: TransportConfig, **kwargs: Any
) -> Responses:
    if not model.value.needs_logits:
        raise ValueError(
            f"`who='value'` needs a log_ratio value: a {model.value.parametrization!r} value is no ratio of two "
            "models. Sample with `who='transport'`."
        )
    n, last = transport.num_particles, CandidateProcessor(transport.top_k_candidates, transport.min_candidate_prob)
    if model.value_model is not None:
        return _run(inner_model(model.value_model), model, input_ids, attention_mask, n, last=last, **kwargs)
    with adapter_rows(model.policy, VALUE_ADAPTER):
        return _run(inner_model(model.policy), model, input_ids, attention_mask, n, last=last, **kwargs)


def _run(
    language_model: PreTrainedModel,
    model: ValuedPolicy,
    input_ids: Tensor,
    attention_mask: Tensor,
    n: int,
    *,
    last: LogitsProcessor | None = None,
    **kwargs: Any,
) -> Responses:
    """Runs a model over the rows of all particles, by the policy's generation defaults."""
    kwargs = for_particles(kwargs, input_ids.shape[0], n)
    rows, mask = (x.repeat_interleave(n, dim=0) for x in (input_ids, attention_mask))
    defaults = model.generation_config
    return run_generate(language_model, rows, mask, defaults=defaults, num_particles=n, last=last, **kwargs)
