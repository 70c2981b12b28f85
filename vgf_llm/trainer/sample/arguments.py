# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""How the tokens of rounds are drawn, said once: for `generate`, and for the losses, which have to know it."""

from typing import Any

from vgf_llm.models.config import TransportConfig
from vgf_llm.models.sampling import Sampling
from vgf_llm.trainer.config import settings_dict
from vgf_llm.trainer.sample.sampler import WHO

# Sampling settings that neither `Sampling` nor a vLLM engine knows, at the values that leave a distribution alone. Left
# out, transformers would take those that a checkpoint ships.
_NEUTRAL = {
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "no_repeat_ngram_size": 0,
    "do_sample": True,
    "num_beams": 1,
}


def sampling_settings(args: Any) -> dict[str, Any]:
    """Returns the settings of sampling that are in force: those of the configuration, or of its `generation_kwargs`."""
    settings = {
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "min_p": args.min_p or 0.0,
        "repetition_penalty": args.repetition_penalty,
    }
    given = settings_dict(args.generation_kwargs)
    return {name: value if given.get(name) is None else given[name] for name, value in settings.items()}


def rollout_samplings(args: Any, transport: TransportConfig) -> tuple[Sampling, ...]:
    """Returns how each of `WHO` draws tokens in rounds.

    Args:
        args: The configuration.
        transport: Holds the candidates of the value's own samples.

    Raises:
        ValueError: If `generation_kwargs` change the distribution in a way that log-probabilities do not know.
    """
    given = settings_dict(args.generation_kwargs)
    for name, neutral in _NEUTRAL.items():
        if given.get(name, neutral) not in (neutral, None):
            raise ValueError(
                f"`generation_kwargs[{name!r}]` ({given[name]!r}) changes how completions are sampled in a way "
                "that the loss does not know, so that the value would learn the sampler. Leave it out; `temperature`, "
                "`top_p`, `top_k`, `min_p` and `repetition_penalty` are known."
            )
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
    """Returns the arguments of transformers' `generate` for rounds.

    Args:
        args: The configuration.
        tokenizer: The policy's.
        end_token_ids: Tokens that end a completion.
    """
    given = settings_dict(args.generation_kwargs)
    kwargs = {
        **_NEUTRAL,
        "max_new_tokens": args.max_completion_length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": end_token_ids,
        "cache_implementation": args.cache_implementation,
        "disable_compile": True,
        **given,
        **sampling_settings(args),
    }
    if kwargs.get("stop_strings") is not None:
        kwargs["tokenizer"] = tokenizer
    return kwargs
