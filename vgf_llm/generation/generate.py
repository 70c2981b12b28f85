# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`VGFModel.generate`: the policy's own `generate`, transported token by token, with selection among particles."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from vgf_llm.generation.decode_attention import decoding_attention
from vgf_llm.generation.decoding import answers_of, check_decoding, default_mask, end_token_ids, mask_after_eos
from vgf_llm.generation.output import VGFGenerateOutput
from vgf_llm.generation.prefill import SharedPrefill
from vgf_llm.generation.processor import TransportProcessor
from vgf_llm.generation.selection import AnswerFn, select
from vgf_llm.generation.sequence import generate_sequences
from vgf_llm.generation.sequence_scoring import ScoreFn
from vgf_llm.generation.taps import FeatureTap
from vgf_llm.models.adapter_rows import adapter_rows
from vgf_llm.models.config import SEQUENCE_SPACES, TransportConfig
from vgf_llm.models.language_model import inner_model
from vgf_llm.models.sequence_value import DifferentiableValue
from vgf_llm.models.valued_policy import ValuedPolicy
from vgf_llm.spaces import build_space
from vgf_llm.spaces.base import CONTROLS
from vgf_llm.spaces.sequence import SEQUENCE_CONTROLS

_TRANSPORT_FIELDS = tuple(item.name for item in fields(TransportConfig))


@torch.no_grad()
def generate(
    model: ValuedPolicy,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    generation_config: GenerationConfig | None = None,
    logits_processor: LogitsProcessorList | None = None,
    streamer: BaseStreamer | None = None,
    return_dict_in_generate: bool | None = None,
    answer_fn: AnswerFn | None = None,
    control: str | None = None,
    sequence_value: DifferentiableValue | ScoreFn | None = None,
    **kwargs: Any,
) -> Tensor | VGFGenerateOutput:
    """Samples `num_particles` responses per prompt under transport and selects one.

    Args:
        model: The model.
        input_ids: `[B, P]`, padded left.
        attention_mask: `[B, P]`; derived from the pad token when left out, as transformers does.
        generation_config: As for the policy's `generate`.
        logits_processor: Run before transport.
        streamer: Receives tokens as they come; one particle and one prompt only.
        return_dict_in_generate: Whether a `VGFGenerateOutput` is returned instead of the sequences.
        answer_fn: Maps a response's token ids to its answer, for votes; the ids themselves by default.
        control: `None`, or a control for result tables: `"random"`, directions of the value's norm and random sense, or
            `"shuffled"`, the value's numbers given to the wrong candidates (in sequence spaces: another response's
            gradient); in sequence spaces also `"swaps"`, random token swaps with the same acceptance.
        sequence_value: The value of a sequence space; the model's own when left out. A plain callable that maps lists
            of prompts and responses, as token ids, to rewards is a black box: it selects, and serves `"swaps"`.
        **kwargs: Every field of `TransportConfig` (`transport_steps`, `step_size`, `num_particles`, `space`, ...),
            which override the model's own defaults; all others go to the policy's `generate` (`max_new_tokens`,
            `do_sample`, `temperature`, ...).

    Returns:
        The chosen sequences `[B, P + T]` (with `selection="none"` every particle, `[B * N, P + T]`), or a
        `VGFGenerateOutput`.

    Raises:
        ValueError: For settings that exclude each other; each message says how to mend it.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        >>> model = ValuedPolicy(LlamaForCausalLM(config))
        >>> out = generate(model, torch.tensor([[1, 5]]), transport_steps=2, num_particles=2, do_sample=True,
        ...                max_new_tokens=3, return_dict_in_generate=True)
        >>> out.values.shape, out.chosen.shape
        (torch.Size([1, 2]), torch.Size([1]))
    """
    transport = replace(model.transport, **{k: kwargs.pop(k) for k in _TRANSPORT_FIELDS if kwargs.get(k) is not None})
    for name in _TRANSPORT_FIELDS:
        kwargs.pop(name, None)
    sequences = transport.space in SEQUENCE_SPACES
    controls = SEQUENCE_CONTROLS if sequences else CONTROLS
    if control not in controls:
        allowed = ", ".join(map(repr, controls))
        raise ValueError(f"`control` must be one of {allowed} in `space={transport.space!r}`; got {control!r}.")
    policy = inner_model(model.policy)
    if return_dict_in_generate is None:
        return_dict_in_generate = bool((generation_config or policy.generation_config).return_dict_in_generate)
    kwargs.update(generation_config=generation_config, logits_processor=logits_processor, streamer=streamer)
    plain = transport.transport_steps == 0
    if plain and transport.num_particles == 1 and not return_dict_in_generate:
        with adapter_rows(model.policy, model.policy_adapter):
            return policy.generate(input_ids, attention_mask=attention_mask, return_dict_in_generate=False, **kwargs)
    check_decoding(transport, kwargs, policy.generation_config, input_ids)
    if attention_mask is None:
        attention_mask = default_mask(policy, generation_config, kwargs, input_ids)
    if sequences:
        return generate_sequences(
            model,
            transport,
            input_ids,
            attention_mask,
            sequence_value=sequence_value,
            answer_fn=answer_fn,
            control=control,
            return_dict=return_dict_in_generate,
            **kwargs,
        )
    _check_model(model, transport, kwargs)
    rows = input_ids.repeat_interleave(transport.num_particles, dim=0)
    mask = attention_mask.repeat_interleave(transport.num_particles, dim=0)
    processor = None
    if plain:
        prefill = SharedPrefill(transport.num_particles)
        with adapter_rows(model.policy, model.policy_adapter), prefill.installed(policy), decoding_attention(policy):
            raw = policy.generate(rows, attention_mask=mask, return_dict_in_generate=True, **kwargs)
    else:
        tap = FeatureTap(
            model,
            mask,
            need_hidden=transport.space == "hidden",
            max_cache_len=_static_cache_len(kwargs, policy.generation_config, rows.shape[1]),
            num_particles=transport.num_particles,
        )
        space = build_space(model.policy, model.value, transport, control=control)
        wanted = return_dict_in_generate or transport.selection != "none"
        record = wanted and (transport.num_particles > 1 or return_dict_in_generate)
        processor = TransportProcessor(space, tap, transport, record=record)
        kwargs["logits_processor"] = LogitsProcessorList([*(logits_processor or []), processor])
        with tap.installed(), decoding_attention(policy, model.value_model):
            raw = policy.generate(rows, attention_mask=mask, return_dict_in_generate=True, **kwargs)
    if not return_dict_in_generate and (transport.selection == "none" or transport.num_particles == 1):
        return raw.sequences
    eos_ids = end_token_ids(kwargs.get("eos_token_id"), generation_config, policy.generation_config)
    return _finish(model, transport, raw, mask, eos_ids, processor, answer_fn, return_dict_in_generate)


def _finish(
    model: ValuedPolicy,
    transport: TransportConfig,
    raw: Any,
    prompt_mask: Tensor,
    eos_ids: list[int],
    processor: TransportProcessor | None,
    answer_fn: AnswerFn | None,
    return_dict: bool,
) -> Tensor | VGFGenerateOutput:
    """Values every particle, selects one per prompt and packs the output."""
    prompt_length, n = prompt_mask.shape[1], transport.num_particles
    tokens = raw.sequences[:, prompt_length:]
    completion_mask = mask_after_eos(tokens, eos_ids)
    scores = processor.token_scores(tokens, completion_mask) if processor is not None else None
    if scores is None:
        attention = torch.cat([prompt_mask, completion_mask], dim=1)
        scored = model.score(raw.sequences, attention, completion_mask, group_size=n)
        scores = scored.token_scores * completion_mask
    values = model.value.sequence_values(scores, completion_mask).view(-1, n)
    chosen = torch.zeros(values.shape[0], dtype=torch.long, device=values.device)
    if transport.selection != "none" and n > 1:
        answers: Sequence[Any] = ()
        if transport.selection != "value":
            answers = answers_of(tokens, completion_mask, n, answer_fn)
        weights = model.value.vote_weights(values)
        chosen = select(values, transport.selection, answers=answers, weights=weights)
    particles = raw.sequences.view(-1, n, raw.sequences.shape[1])
    if transport.selection == "none":
        sequences = raw.sequences
    else:
        sequences = particles[torch.arange(particles.shape[0], device=chosen.device), chosen]
    if not return_dict:
        return sequences
    kl = torch.zeros_like(scores)
    if processor is not None:
        kl = processor.token_kl(tokens.shape[1]) * completion_mask
    return VGFGenerateOutput(
        sequences=sequences,
        particle_sequences=particles,
        values=values,
        token_scores=scores.view(-1, n, scores.shape[-1]),
        kl=kl.view(-1, n, kl.shape[-1]),
        chosen=chosen,
        scores=raw.scores,
        logits=raw.logits,
    )


def _static_cache_len(kwargs: dict[str, Any], defaults: GenerationConfig, prompt_length: int) -> int | None:
    """The length that a static cache needs, if one was asked for: models of the value's own then use one too."""
    config = kwargs.get("generation_config") or defaults

    def setting(name: str) -> Any:
        value = kwargs.get(name)
        return getattr(config, name, None) if value is None else value

    if setting("cache_implementation") != "static":
        return None
    new_tokens = setting("max_new_tokens")
    return prompt_length + new_tokens if new_tokens is not None else setting("max_length")


def _check_model(model: ValuedPolicy, transport: TransportConfig, kwargs: dict[str, Any]) -> None:
    rows_differ = transport.num_particles > 1 or len(model.value_blocks()) > 1
    if kwargs.get("past_key_values") is not None and rows_differ:
        raise ValueError("`past_key_values` has no rows for particles or for a value's adapter; leave it out.")
