# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Settings of a call as transformers will read them, and the checks that every way of generating shares."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from vgf_llm.generation.ends import mask_after_eos as mask_after_eos  # its place in release 0.1
from vgf_llm.models.config import TransportConfig


def effective_config(
    policy: PreTrainedModel, generation_config: GenerationConfig | None, kwargs: dict[str, Any], prompt_length: int
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Resolves generation settings: the call's, then those of `generation_config`, the policy's own and the defaults.

    Returns the settings, with the longest response in `max_new_tokens`, and the call's arguments that are none.
    """
    by_default = not any(
        source is not None and source.get("max_length") is not None
        for source in (kwargs, generation_config and vars(generation_config), vars(policy.generation_config))
    )
    settings = {name: value for name, value in kwargs.items() if name != "generation_config"}
    config, others = policy._prepare_generation_config(generation_config, **settings)
    if config.max_new_tokens is None:
        length: int = config.max_length if by_default else config.max_length - prompt_length
        config.max_new_tokens = max(1, length)
    config.max_length = None
    return config, others


def end_token_ids(config: GenerationConfig) -> list[int]:
    """Every end token that settings name."""
    eos: Any = config.eos_token_id
    return [] if eos is None else [int(eos)] if isinstance(eos, int) else [int(token) for token in eos]


def default_mask(config: GenerationConfig, input_ids: Tensor) -> Tensor:
    """The attention mask `[B, P]` that transformers derives from the pad token of prompts `[B, P]`."""
    pad = config.pad_token_id
    # A pad token that also ends responses may be a real token of the prompt: transformers masks nothing then.
    if pad is None or pad in end_token_ids(config):
        return torch.ones_like(input_ids)
    return (input_ids != pad).long()


def check_decoding(
    transport: TransportConfig, config: GenerationConfig, kwargs: dict[str, Any], input_ids: Tensor
) -> None:
    """Raises ValueError for decoding settings that particles exclude; each message says how to mend it."""
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or input_ids.numel() == 0:
        found = f"shape {tuple(input_ids.shape)}" if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise ValueError(f"`input_ids` must be a non-empty [B, P] tensor, got {found}.")
    n = transport.num_particles
    if (config.num_beams or 1) > 1:
        raise ValueError("`num_beams` must be 1: particles take the place of beams. Raise `num_particles` instead.")
    if (config.num_return_sequences or 1) > 1:
        raise ValueError(
            "`num_return_sequences` must be 1: set `num_particles`, with `selection='none'` to get every particle."
        )
    for name in ("assistant_model", "prompt_lookup_num_tokens", "guidance_scale", "custom_generate"):
        if kwargs.get(name) is not None or getattr(config, name, None) is not None:
            raise ValueError(f"`{name}` runs the model outside the decode steps that transport sees; leave it out.")
    if kwargs.get("streamer") is not None and (n > 1 or input_ids.shape[0] > 1):
        raise ValueError("`streamer` needs `num_particles=1` and one prompt: a stream is one response.")
    if n > 1 and not config.do_sample:
        raise ValueError(f"`num_particles={n}` with greedy decoding gives {n} equal responses; pass `do_sample=True`.")
    if kwargs.get("past_key_values") is not None:
        raise ValueError("`past_key_values` has no rows for particles or for a value's adapter; leave it out.")
