# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Particles of one prompt share its prefill: `generate`'s first forward runs over the prompts, not over the rows."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from vgf_llm.models.prompt_sharing import can_expand, expand_cache

_ROW_INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")
_ROWLESS_INPUTS = ("cache_position",)


def over_rows(kwargs: dict[str, Any], num_rows: int, change: Callable[[Tensor, int], Tensor]) -> dict[str, Any] | None:
    """Changes the arguments of a forward that have R rows: `change` is given each and the dimension of its rows.

    Returns the arguments, or `None` if one of them is not known to have rows or none.
    """
    result = dict(kwargs)
    for name, value in kwargs.items():
        parts = value if isinstance(value, dict) else {"": value}  # masks of layers of several kinds
        tensors = {key: x for key, x in parts.items() if isinstance(x, Tensor) and x.dim() > 0}
        if not tensors or name in _ROWLESS_INPUTS:
            continue
        if name not in _ROW_INPUTS:
            return None
        changed = dict(parts)
        for key, x in tensors.items():
            dim = 1 if name == "position_ids" and x.dim() > 2 else 0  # one set of positions for each kind of input
            if x.shape[dim] == num_rows:
                changed[key] = change(x, dim)
            elif x.shape[dim] != 1:
                return None
        result[name] = changed if isinstance(value, dict) else changed[""]
    return result


class SharedPrefill:
    """Takes every N-th row of `generate`'s first forward and repeats its cache and logits afterwards."""

    def __init__(self, num_particles: int) -> None:
        self.num_particles = num_particles
        self._cache: Any = None
        self._done = False

    def install(self, model: PreTrainedModel) -> None:
        """Hooks a model for one call, ahead of hooks that see distinct rows go in and all rows come out."""
        if self.num_particles == 1:
            return
        model.register_forward_pre_hook(self._take, with_kwargs=True)
        model.register_forward_hook(self._repeat, with_kwargs=True)

    def _take(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache, ids = kwargs.get("past_key_values"), kwargs.get("input_ids")
        if self._done or args or ids is None:
            return None
        self._done = True
        if cache is None or not can_expand(cache) or int(cache.get_seq_length()) > 0:
            return None
        n = self.num_particles
        distinct = over_rows(kwargs, ids.shape[0], lambda x, dim: x[::n] if dim == 0 else x[:, ::n])
        if distinct is None:
            return None
        self._cache = cache
        return args, distinct

    def _repeat(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if self._cache is None:
            return output
        expand_cache(self._cache, self.num_particles)
        output.logits = output.logits.repeat_interleave(self.num_particles, dim=0)
        self._cache = None
        return output
