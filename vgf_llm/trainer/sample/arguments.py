# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""How the tokens of rounds are drawn, said once: for `generate`, and for the losses, which have to know it."""

from typing import Any

from vgf_llm.models.config import TransportConfig
from vgf_llm.models.sampling import Sampling
from vgf_llm.trainer.config import settings_dict
from vgf_llm.trainer.config.tables import NEUTRAL_SAMPLING
from vgf_llm.trainer.sample.sampler import WHO


def sampling_settings(args: Any) -> dict[str, Any]:
    """Returns the settings of sampling that losses know."""
    return {
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "min_p": args.min_p or 0.0,
        "repetition_penalty": args.repetition_penalty,
    }


def rollout_samplings(args: Any, transport: TransportConfig) -> tuple[Sampling, ...]:
    """Returns how each of `WHO` draws tokens in rounds; `transport` holds the candidates of the value's own samples."""
    settings = sampling_settings(args)
    candidates = (transport.top_k_candidates, transport.min_candidate_prob)
    of = {
        "base": Sampling(**settings),
        "value": Sampling(**settings, candidates=candidates),
        # Of transported tokens the temperature alone is known: which tokens were candidates is the base's affair.
        "transport": Sampling(temperature=settings["temperature"]),
    }
    return tuple(of[who] for who in WHO)


def generation_arguments(args: Any, tokenizer: Any, end_token_ids: list[int]) -> dict[str, Any]:
    """Returns the arguments of transformers' `generate` for rounds."""
    kwargs = {
        **NEUTRAL_SAMPLING,  # left out, transformers would take what a checkpoint ships
        "do_sample": True,
        "num_beams": 1,
        "max_new_tokens": args.max_completion_length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": end_token_ids,
        "cache_implementation": args.cache_implementation,
        "disable_compile": True,
        **settings_dict(args.generation_kwargs),
        **sampling_settings(args),
    }
    if kwargs.get("stop_strings") is not None:
        kwargs["tokenizer"] = tokenizer
    return kwargs
