# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`ValuedPolicy.generate`: the policy's own `generate`, transported token by token, with selection among particles."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from vgf_llm.generation.decoding import check_decoding, default_mask, effective_config
from vgf_llm.generation.output import VGFGenerateOutput
from vgf_llm.generation.particles import check_inputs
from vgf_llm.generation.responses import Responses
from vgf_llm.generation.sample import policy_responses
from vgf_llm.generation.selection import AnswerFn, chosen_sequences
from vgf_llm.generation.sequence import generate_sequences
from vgf_llm.generation.sequence_scoring import ScoreFn
from vgf_llm.models.adapter_rows import adapter_rows
from vgf_llm.models.config import SEQUENCE_SPACES, TransportConfig
from vgf_llm.models.language_model import inner_model
from vgf_llm.models.options import TRANSPORT_FIELDS
from vgf_llm.models.sequence_value import DifferentiableValue
from vgf_llm.models.valued_policy import ValuedPolicy
from vgf_llm.spaces.controls import CONTROLS
from vgf_llm.spaces.sequence import SEQUENCE_CONTROLS


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
    given = {name: kwargs.pop(name, None) for name in TRANSPORT_FIELDS}
    transport = replace(model.transport, **{name: value for name, value in given.items() if value is not None})
    sequences = transport.space in SEQUENCE_SPACES
    controls = SEQUENCE_CONTROLS if sequences else CONTROLS
    if control not in controls:
        allowed = ", ".join(map(repr, controls))
        raise ValueError(f"`control` must be one of {allowed} in `space={transport.space!r}`; got {control!r}.")
    policy = inner_model(model.policy)
    kwargs.update(generation_config=generation_config, logits_processor=logits_processor, streamer=streamer)
    plain = transport.transport_steps == 0
    prompt_length = input_ids.shape[-1] if isinstance(input_ids, Tensor) else 0
    config, _ = effective_config(policy, generation_config, kwargs, prompt_length)
    return_dict = config.return_dict_in_generate if return_dict_in_generate is None else return_dict_in_generate
    if plain and transport.num_particles == 1 and not return_dict:
        with adapter_rows(model.policy, model.policy_adapter):
            own: Any = policy.generate(
                input_ids, attention_mask=attention_mask, return_dict_in_generate=False, **kwargs
            )
        return own
    check_decoding(transport, config, kwargs, input_ids)
    if attention_mask is None:
        attention_mask = default_mask(config, input_ids)
    valued = return_dict or (transport.selection != "none" and transport.num_particles > 1)
    check_inputs(kwargs, attention_mask, alone=plain and not valued and not sequences)
    if sequences:
        return generate_sequences(
            model,
            transport,
            input_ids,
            attention_mask,
            sequence_value=sequence_value,
            answer_fn=answer_fn,
            control=control,
            return_dict=return_dict,
            **kwargs,
        )
    found = policy_responses(model, input_ids, attention_mask, transport, config=config, control=control, **kwargs)
    if not valued:
        return found.sequences
    return _finish(model, transport, found, attention_mask, answer_fn, return_dict)


def _finish(
    model: ValuedPolicy,
    transport: TransportConfig,
    found: Responses,
    attention_mask: Tensor,
    answer_fn: AnswerFn | None,
    return_dict: bool,
) -> Tensor | VGFGenerateOutput:
    """Values every particle, selects one per prompt and packs the output."""
    n, mask = transport.num_particles, found.mask
    scores = found.transport.token_scores(found.tokens, mask) if found.transport is not None else None
    if scores is None:
        attention = torch.cat([attention_mask.repeat_interleave(n, dim=0), mask], dim=1)
        scores = model.score(found.sequences, attention, mask, group_size=n).token_scores * mask
    values = model.value.sequence_values(scores, mask).view(-1, n)
    weights = model.value.vote_weights(values)
    sequences, chosen = chosen_sequences(transport, found.sequences, mask, values, weights, answer_fn)
    if not return_dict:
        return sequences
    return VGFGenerateOutput(
        sequences=sequences,
        particle_sequences=found.sequences.view(-1, n, found.sequences.shape[1]),
        values=values,
        token_scores=scores.view(-1, n, scores.shape[-1]),
        kl=found.kl.view(-1, n, scores.shape[-1]),
        lengths=found.ends.lengths.view(-1, n),
        finished=found.ends.finished.view(-1, n),
        chosen=chosen,
        scores=found.scores,
        logits=found.logits,
    )
