# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Where a decode step's features come from, without touching the model's own `generate`.

The policy's last hidden state is seen by a pre-hook on the output embedding. A value with an adapter on the policy
rides in the same forward: hooks on the model repeat the batch, one row block per adapter, and hand `generate` the
policy's rows alone. A value with a model of its own keeps its own cache.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, StaticCache

from vgf_llm.generation.prefill import SharedPrefill
from vgf_llm.models.adapter_rows import adapter_rows
from vgf_llm.models.language_model import (
    accepts_argument,
    inner_model,
    last_hidden_states,
    logits_of_states,
    output_embedding,
    output_weight,
    position_ids_from_mask,
)
from vgf_llm.models.prompt_sharing import can_expand, expand_cache
from vgf_llm.models.value import StateFeatures
from vgf_llm.models.valued_policy import ValuedPolicy


@dataclass
class _Captured:
    hidden: Tensor | None = None  # [blocks * R, D], what entered the output embedding
    logits: Tensor | None = None  # [blocks * R, V]


@dataclass
class _OwnModel:
    """Steps a value (or reference) model of its own through the tokens that `generate` chose."""

    model: nn.Module
    attention_mask: Tensor  # [R, P]
    cache: Cache = field(default_factory=DynamicCache)
    num_particles: int = 1  # adjacent rows that share a prompt

    def step(self, input_ids: Tensor) -> Tensor:
        """Returns the last hidden state `[R, D]` after the tokens that came since the last step."""
        seen = self.cache.get_seq_length()
        grown = input_ids.shape[1] - self.attention_mask.shape[1]
        mask = torch.nn.functional.pad(self.attention_mask, (0, grown), value=1)
        n = self.num_particles if seen == 0 and can_expand(self.cache) else 1
        hidden = self._run(input_ids[::n], mask[::n], seen)
        if n > 1:
            expand_cache(self.cache, n)
            hidden = hidden.repeat_interleave(n, dim=0)
        return hidden

    def _run(self, input_ids: Tensor, mask: Tensor, seen: int) -> Tensor:
        kwargs: dict[str, Any] = {}
        if accepts_argument(inner_model(self.model).base_model, "position_ids"):
            kwargs["position_ids"] = position_ids_from_mask(mask)[:, seen:]
        hidden = last_hidden_states(
            self.model, input_ids[:, seen:], mask, past_key_values=self.cache, use_cache=True, **kwargs
        )
        return hidden[:, -1]


def _own_model(
    model: nn.Module | None, attention_mask: Tensor, max_cache_len: int | None, num_particles: int
) -> _OwnModel | None:
    if model is None:
        return None
    cache: Cache = DynamicCache()
    if max_cache_len is not None:
        cache = StaticCache(config=inner_model(model).config.get_text_config(), max_cache_len=max_cache_len)
    return _OwnModel(model, attention_mask, cache, num_particles)


class FeatureTap:
    """Gives the value's features of each decode step while `policy.generate` runs.

    Args:
        model: The model.
        attention_mask: `[R, P]`, the prompts' mask, one row per particle.
        need_hidden: Whether the policy's hidden state is wanted even if the value does not read it.
        max_cache_len: Length of a static cache for models of the value's own; `None` for a cache that grows.
        num_particles: Adjacent rows that share a prompt, which is then read once.
    """

    def __init__(
        self,
        model: ValuedPolicy,
        attention_mask: Tensor,
        *,
        need_hidden: bool,
        max_cache_len: int | None = None,
        num_particles: int = 1,
    ) -> None:
        self.model = model
        self.num_particles = num_particles
        self.rows = attention_mask.shape[0]
        self.blocks = model.value_blocks()
        self.need_hidden = need_hidden
        self._captured = _Captured()
        self._value_model = _own_model(model.value_model, attention_mask, max_cache_len, num_particles)
        self._ref_model = _own_model(model.ref_model, attention_mask, max_cache_len, num_particles)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Installs the hooks for as long as the context lasts."""
        inner = inner_model(self.model.policy)
        with ExitStack() as stack:
            stack.enter_context(adapter_rows(self.model.policy, *self.blocks))
            stack.enter_context(SharedPrefill(self.num_particles).installed(inner))
            hook = output_embedding(inner).register_forward_pre_hook(self._capture_hidden)
            stack.callback(hook.remove)
            if len(self.blocks) > 1:
                stack.callback(inner.register_forward_pre_hook(self._repeat_rows, with_kwargs=True).remove)
            stack.callback(inner.register_forward_hook(self._keep_policy_rows, with_kwargs=True).remove)
            yield

    def _capture_hidden(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # A prefill's last position is a strided slice; frozen weights then make torch take a slow batched product.
        hidden = args[0].contiguous()
        self._captured.hidden = hidden[:, -1]
        own_rows = hidden.shape[0] // len(self.blocks)  # fewer than R in a shared prefill
        return (hidden if self.model.value.needs_logits else hidden[:own_rows], *args[1:])

    def _repeat_rows(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rows = kwargs["input_ids"].shape[0]  # fewer than R in a shared prefill

        def repeated(x: Any) -> Any:
            if isinstance(x, Tensor) and x.dim() >= 2 and x.shape[0] == rows:
                return x.repeat(len(self.blocks), *[1] * (x.dim() - 1))
            return x

        return args, {name: repeated(x) for name, x in kwargs.items()}

    def _keep_policy_rows(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        hidden = self._captured.hidden
        if hidden is not None and hidden.shape[0] < self.rows * len(self.blocks):  # of a shared prefill
            self._captured.hidden = hidden.repeat_interleave(self.num_particles, dim=0)
        self._captured.logits = output.logits[:, -1]
        output.logits = output.logits[: self.rows]
        return output

    def _block(self, x: Tensor, index: int) -> Tensor:
        return x[index * self.rows : (index + 1) * self.rows]

    @property
    def policy_hidden(self) -> Tensor:
        """`[R, D]`, the policy's last hidden state of this step."""
        if self._captured.hidden is None:
            raise RuntimeError(
                "The policy's forward did not call its output embedding, so its hidden state was not seen. "
                "A fused or replaced LM head hides it; generate with the plain transformers model."
            )
        return self._block(self._captured.hidden, 0)

    def features(self, input_ids: Tensor) -> StateFeatures:
        """Returns the features `[R, ...]` of the state that the tokens so far led to.

        Args:
            input_ids: `[R, P + t]`.
        """
        model = self.model
        embedding = output_weight(model.policy)
        if not model.value.needs_logits:
            if self._value_model is not None:
                hidden = self._value_model.step(input_ids)
            else:
                hidden = self._block(self._hidden(), 1 if model.has_value_adapter else 0)
            return StateFeatures(hidden=hidden, embedding=embedding)
        if self._value_model is not None:
            value_logits = logits_of_states(self._value_model.model, self._value_model.step(input_ids))
        else:
            value_logits = self._block(self._logits(), 1)
        if self._ref_model is not None:
            ref_logits = logits_of_states(self._ref_model.model, self._ref_model.step(input_ids))
        else:
            # The policy without an adapter of its own is the reference, else the last block is. Raw logits: what other
            # processors do to the policy's is no part of the value.
            ref_logits = self._block(self._logits(), 0 if model.policy_adapter is None else len(self.blocks) - 1)
        return StateFeatures(value_logits=value_logits, ref_logits=ref_logits)

    def _hidden(self) -> Tensor:
        self.policy_hidden  # noqa: B018  (raises where nothing was captured)
        return self._captured.hidden  # type: ignore[return-value]

    def _logits(self) -> Tensor:
        if self._captured.logits is None:
            raise RuntimeError("The policy's forward returned no logits for the value's rows.")
        return self._captured.logits
