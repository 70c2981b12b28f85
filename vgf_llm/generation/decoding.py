# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Settings and masks that every way of generating shares."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from vgf_llm.generation.selection import AnswerFn
from vgf_llm.models.config import TransportConfig


def setting(name: str, default: Any, kwargs: dict[str, Any], *configs: GenerationConfig | None) -> Any:
    """The value of a generation setting: the call's, else the first configuration's that has one, else `default`."""
    for source in (kwargs.get(name), *(getattr(config, name, None) for config in configs)):
        if source is not None:
            return source
    return default


def mask_after_eos(tokens: Tensor, eos_token_ids: Sequence[int]) -> Tensor:
    """Marks response tokens up to and with the first end-of-sequence token.

    Args:
        tokens: `[B, T]`.
        eos_token_ids: Every token that ends a response; none means that all tokens count.

    Returns:
        `[B, T]`, 1 or 0, of dtype long.

    Example:
        >>> mask_after_eos(torch.tensor([[5, 2, 0], [5, 6, 7]]), [2]).tolist()
        [[1, 1, 0], [1, 1, 1]]
    """
    is_eos = torch.isin(tokens, torch.tensor(list(eos_token_ids), dtype=tokens.dtype, device=tokens.device))
    ended_before = is_eos.long().cumsum(dim=-1) - is_eos.long()
    return (ended_before == 0).long()


def end_token_ids(eos: Any, *configs: GenerationConfig | None) -> list[int]:
    """Every token that ends a response: the call's `eos`, else those of the first configuration that has some."""
    for config in configs:
        if eos is None and config is not None:
            eos = config.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def answers_of(tokens: Tensor, mask: Tensor, n: int, answer_fn: AnswerFn | None) -> list[list[Any]]:
    """The answers of responses `[B * N, T]`, B lists of N; the ids themselves without an `answer_fn`."""
    responses = [row[m.bool()].tolist() for row, m in zip(tokens.cpu(), mask.cpu(), strict=True)]
    flat = [answer_fn(response) if answer_fn is not None else tuple(response) for response in responses]
    return [flat[i : i + n] for i in range(0, len(flat), n)]


def default_mask(policy: Any, config: GenerationConfig | None, kwargs: dict[str, Any], input_ids: Tensor) -> Tensor:
    """The attention mask `[B, P]` that transformers derives from the pad token of prompts `[B, P]`."""
    pad = kwargs.get("pad_token_id")
    for source in (config, policy.generation_config):
        if pad is None and source is not None:
            pad = source.pad_token_id
    # A pad token that also ends responses may be a real token of the prompt: transformers masks nothing then.
    if pad is None or pad in end_token_ids(kwargs.get("eos_token_id"), config, policy.generation_config):
        return torch.ones_like(input_ids)
    return (input_ids != pad).long()


def check_decoding(
    transport: TransportConfig, kwargs: dict[str, Any], defaults: GenerationConfig, input_ids: Tensor
) -> None:
    """Raises ValueError for decoding settings that particles exclude; each message says how to mend it."""
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise ValueError(f"`input_ids` must be a non-empty [B, P] tensor, got shape {tuple(input_ids.shape)}.")
    config = kwargs.get("generation_config") or defaults

    def own(name: str, default: Any) -> Any:
        return setting(name, default, kwargs, config)

    if own("num_beams", 1) > 1:
        raise ValueError("`num_beams` must be 1: particles take the place of beams. Raise `num_particles` instead.")
    if own("num_return_sequences", 1) > 1:
        raise ValueError(
            "`num_return_sequences` must be 1: set `num_particles`, with `selection='none'` to get every particle."
        )
    for name in ("assistant_model", "prompt_lookup_num_tokens", "guidance_scale"):
        if own(name, None) is not None:
            raise ValueError(f"`{name}` runs the model outside the decode steps that transport sees; leave it out.")
    if kwargs.get("streamer") is not None and (transport.num_particles > 1 or input_ids.shape[0] > 1):
        raise ValueError("`streamer` needs `num_particles=1` and one prompt: a stream is one response.")
    if transport.num_particles > 1 and not own("do_sample", False):
        raise ValueError(
            f"`num_particles={transport.num_particles}` with greedy decoding gives {transport.num_particles} equal "
            "responses; pass `do_sample=True`."
        )
