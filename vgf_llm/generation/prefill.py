# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Particles of one prompt share its prefill: `generate`'s first forward runs over the prompts, not over the rows."""

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from vgf_llm.generation.hooks import forward_hooks
from vgf_llm.models.prompt_sharing import can_expand, expand_cache


class SharedPrefill:
    """Hooks that take every N-th row of `generate`'s first forward and repeat its cache and logits afterwards.

    Args:
        num_particles: N, adjacent rows with one prompt.
    """

    def __init__(self, num_particles: int) -> None:
        self.num_particles = num_particles
        self._cache: Any = None
        self._done = num_particles == 1

    def installed(self, model: nn.Module) -> AbstractContextManager[None]:
        """Hooks a model. Enter it before other hooks, which then see distinct rows go in and all rows come out."""
        return forward_hooks(model, self._take, self._repeat)

    def _take(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache, ids = kwargs.get("past_key_values"), kwargs.get("input_ids")
        self._cache = None
        if self._done or args or ids is None:
            return args, kwargs
        self._done = True
        if cache is None or not can_expand(cache) or int(cache.get_seq_length()) > 0:
            return args, kwargs
        self._cache = cache
        count = ids.shape[0]

        def distinct(x: Any) -> Any:
            rows = isinstance(x, Tensor) and x.dim() >= 2 and x.shape[0] == count
            return x[:: self.num_particles] if rows else x

        return args, {name: distinct(x) for name, x in kwargs.items()}

    def _repeat(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self._cache is None:
            return output
        expand_cache(self._cache, self.num_particles)
        output.logits = output.logits.repeat_interleave(self.num_particles, dim=0)
        self._cache = None
        return output
