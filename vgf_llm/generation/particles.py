# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What a call says about a prompt goes to every one of its particles, or is refused by name."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from vgf_llm.models.language_model import position_ids_from_mask


def check_inputs(kwargs: dict[str, Any], attention_mask: Tensor, *, alone: bool) -> None:
    """Raises ValueError for inputs beside the token ids that particles or a value would not get.

    Positions that the attention mask says already are taken out of `kwargs`. With `alone` no value reads the prompts.
    """
    for name, value in list(kwargs.items()):
        if not _holds_rows(name, value):
            continue
        if name == "position_ids" and _as_counted(value, attention_mask):
            del kwargs[name]
            continue
        if name in ("position_ids", "token_type_ids") and value.dim() == 2:
            if alone or (name == "token_type_ids" and not bool(value.any())):
                continue
            raise ValueError(
                f"`{name}` differs from what a value reads: positions are counted from `attention_mask` and all tokens "
                "are of type 0. Leave it out, or sample the policy alone (`transport_steps=0, num_particles=1`)."
            )
        raise ValueError(
            f"`{name}` is no input of transport: particles and their value read token ids alone. Pass the prompts as "
            "`input_ids`, or generate with the policy itself (`model.policy.generate`)."
        )


def _holds_rows(name: str, value: Any) -> bool:
    """Whether an argument may have a row for each prompt."""
    if hasattr(_NO_SETTINGS, name):
        return False
    parts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(part, Tensor) and part.dim() > 0 for part in parts)


_NO_SETTINGS = GenerationConfig()


def _as_counted(position_ids: Tensor, attention_mask: Tensor) -> bool:
    if position_ids.shape != attention_mask.shape:
        return False
    return not bool(((position_ids != position_ids_from_mask(attention_mask)) & attention_mask.bool()).any())


def for_particles(kwargs: dict[str, Any], num_prompts: int, num_particles: int) -> dict[str, Any]:
    """Returns the arguments of a call for B prompts as those of the B * N rows of their particles.

    `prefix_allowed_tokens_fn` is asked with the prompt's index, tensors are repeated, and each particle has processors
    and criteria of its own, which see the B rows that they would see without particles.
    """
    result = dict(kwargs)
    if num_particles == 1:
        return result
    allowed: Callable[[int, Tensor], list[int]] | None = kwargs.get("prefix_allowed_tokens_fn")
    if allowed is not None:
        result["prefix_allowed_tokens_fn"] = lambda row, input_ids: allowed(row // num_particles, input_ids)
    for name, kind, wrapped in (
        ("logits_processor", LogitsProcessorList, _ParticleProcessor),
        ("stopping_criteria", StoppingCriteriaList, _ParticleCriterion),
    ):
        if kwargs.get(name) is not None:
            made = (wrapped(x, num_particles, name) if _sees_rows(x, num_prompts) else x for x in kwargs[name])
            result[name] = kind(made)
    for name in ("position_ids", "token_type_ids"):
        if kwargs.get(name) is not None:
            result[name] = kwargs[name].repeat_interleave(num_particles, dim=0)
    return result


def _sees_rows(call: Any, num_prompts: int) -> bool:
    """Whether a processor or criterion may know its rows; transformers' own do where they hold a tensor of them."""
    if not type(call).__module__.startswith("transformers."):
        return True
    held = vars(call).values()
    return any(isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == num_prompts for x in held)


class _EachParticle:
    """Calls copy n for the rows of every prompt's particle n."""

    def __init__(self, original: Any, num_particles: int, argument: str) -> None:
        self.original = original
        # Models and tokenizers are read, and too large to copy.
        shared = {id(x): x for x in vars(original).values() if isinstance(x, nn.Module | PreTrainedTokenizerBase)}
        try:
            self.calls = [original, *(copy.deepcopy(original, dict(shared)) for _ in range(num_particles - 1))]
        except Exception as error:  # whatever its parts raise when they are copied
            raise ValueError(
                f"`{argument}` holds a {type(original).__name__} that cannot be copied for {num_particles} particles "
                f"({error}). Give it a `__deepcopy__`, or pass `num_particles=1`."
            ) from error

    def _call(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        n, found = len(self.calls), []
        for particle, call in enumerate(self.calls):
            rows, seen = input_ids[particle::n], scores
            if isinstance(scores, Tensor):
                seen = scores[particle::n]
            elif scores:
                seen = tuple(step[particle::n] for step in scores)
            answer = call(rows, seen, **kwargs)
            # A criterion may answer for all its rows with one bool.
            found.append(
                answer if isinstance(answer, Tensor) else torch.full(rows.shape[:1], answer, device=rows.device)
            )
        return torch.stack(found, dim=1).flatten(0, 1)


class _ParticleProcessor(_EachParticle, LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._call(input_ids, scores)


class _ParticleCriterion(_EachParticle, StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return self._call(input_ids, scores, **kwargs)
