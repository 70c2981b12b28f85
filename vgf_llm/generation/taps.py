# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Where a decode step's features come from, without touching the model's own `generate`.

The hidden state that a head reads is seen by a hook on the policy's backbone. A value with an adapter on the policy
rides in the same forward: hooks repeat the batch, one row block per adapter, and hand `generate` the policy's rows
alone. A value with a model of its own keeps its own cache. The hooks stand on a copy of the model's object for one
call.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from vgf_llm.generation.prefill import over_rows
from vgf_llm.models.language_model import (
    accepts_argument,
    backbone_name,
    inner_model,
    last_hidden_states,
    output_weight,
    position_ids_from_mask,
)
from vgf_llm.models.prompt_sharing import can_expand, expand_cache
from vgf_llm.models.value import StateFeatures
from vgf_llm.models.valued_policy import ValuedPolicy


class _OwnModel:
    """Steps a value (or reference) model of its own through the tokens that `generate` chose."""

    def __init__(
        self, model: PreTrainedModel, attention_mask: Tensor, max_cache_len: int | None, num_particles: int
    ) -> None:
        self.model, self.attention_mask, self.num_particles = model, attention_mask, num_particles
        # transformers looks into a mask at every step, and needs none where nothing is padded.
        self._padded = not bool(attention_mask.all())
        self.cache: Cache | None = None  # layouts with a cache of their own kind are read anew at every step
        config = model.config.get_text_config(decoder=True)
        if accepts_argument(model, "past_key_values") and model._supports_default_dynamic_cache():
            self.cache = DynamicCache(config=config)
            if max_cache_len is not None:
                self.cache = StaticCache(config=config, max_cache_len=max_cache_len)

    def logits(self, input_ids: Tensor) -> Tensor:
        """Returns the next token's logits `[R, V]` after `[R, P + t]` tokens, by the model's own forward."""
        kwargs: dict[str, Any] = {}
        if accepts_argument(self.model, "logits_to_keep"):
            kwargs["logits_to_keep"] = 1

        return self._step(
            input_ids, lambda ids, mask, **more: self.model(input_ids=ids, attention_mask=mask, **more, **kwargs).logits
        )

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Returns the last hidden state `[R, D]` after `[R, P + t]` tokens."""
        return self._step(input_ids, lambda ids, mask, **more: last_hidden_states(self.model, ids, mask, **more))

    def _step(self, input_ids: Tensor, run: Callable[..., Tensor]) -> Tensor:
        grown = input_ids.shape[1] - self.attention_mask.shape[1]
        mask = nn.functional.pad(self.attention_mask, (0, grown), value=1)
        seen = 0 if self.cache is None else int(self.cache.get_seq_length())
        n = self.num_particles if self.cache is not None and seen == 0 and can_expand(self.cache) else 1
        more: dict[str, Any] = {"use_cache": self.cache is not None}
        if self.cache is not None:
            more["past_key_values"] = self.cache
        if accepts_argument(self.model, "position_ids"):
            more["position_ids"] = position_ids_from_mask(mask[::n])[:, seen:]
        found = run(input_ids[::n, seen:], mask[::n] if self._padded else None, **more)[:, -1]
        if n > 1 and self.cache is not None:
            expand_cache(self.cache, n)
            found = found.repeat_interleave(n, dim=0)
        return found


class FeatureTap:
    """Gives the value's features of each decode step while `generate` runs on a copy of the policy's object.

    The prompts' mask `[R, P]` has one row per particle; `num_particles` adjacent rows share a prompt, which is then
    read once. `max_cache_len` is the length of a static cache for models of the value's own; `None` lets their caches
    grow.
    """

    def __init__(
        self, model: ValuedPolicy, attention_mask: Tensor, *, max_cache_len: int | None = None, num_particles: int = 1
    ) -> None:
        self.model = model
        self.num_particles = num_particles
        self.rows = attention_mask.shape[0]
        self.blocks = model.value_blocks()
        self._hidden: Tensor | None = None  # [blocks * R, D], the backbone's last states
        self._logits: Tensor | None = None  # [blocks * R, V]

        def own(language_model: nn.Module | None) -> _OwnModel | None:
            if language_model is None:
                return None
            return _OwnModel(inner_model(language_model), attention_mask, max_cache_len, num_particles)

        self._value_model, self._ref_model = own(model.value_model), own(model.ref_model)

    def install(self, copied: PreTrainedModel) -> None:
        """Hooks a copy of the policy's object, which runs under `adapter_rows(policy, *blocks)`."""
        copied.get_submodule(backbone_name(copied)).register_forward_hook(self._capture_hidden)
        if len(self.blocks) > 1:
            copied.register_forward_pre_hook(self._repeat_rows, with_kwargs=True)
        copied.register_forward_hook(self._keep_policy_rows, with_kwargs=True)

    def _capture_hidden(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        # The next token is all that a step asks for. A prefill's last position is a strided slice; frozen weights then
        # make torch take a slow batched product.
        last = (output[0] if isinstance(output, tuple) else output.last_hidden_state)[:, -1:].contiguous()
        self._hidden = last[:, 0]
        own_rows = last.shape[0] // len(self.blocks)  # fewer than R in a shared prefill
        last = last if self.model.value.needs_logits else last[:own_rows]
        if isinstance(output, tuple):
            return (last, *output[1:])
        output.last_hidden_state = last
        return output

    def _repeat_rows(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def repeated(x: Tensor, dim: int) -> Tensor:
            return torch.cat([x] * len(self.blocks), dim=dim)

        changed = over_rows(kwargs, kwargs["input_ids"].shape[0], repeated)
        if changed is None:
            raise ValueError(
                f"{type(module).__name__} is given {sorted(kwargs)} at a decode step, and rows of a value's adapter "
                "cannot be added to all of it. Train a value with `backbone='copy'` for this model."
            )
        return args, changed

    def _keep_policy_rows(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self._hidden is not None and self._hidden.shape[0] < self.rows * len(self.blocks):  # of a shared prefill
            self._hidden = self._hidden.repeat_interleave(self.num_particles, dim=0)
        self._logits = output.logits[:, -1]
        output.logits = output.logits[: self.rows]
        return output

    def _block(self, x: Tensor, index: int) -> Tensor:
        return x[index * self.rows : (index + 1) * self.rows]

    def features(self, input_ids: Tensor, policy_logps: Tensor | None = None) -> StateFeatures:
        """Returns the features `[R, ...]` of the state that tokens `[R, P + t]` led to.

        `policy_logps` `[R, V]` are the policy's log-probabilities where they are known and nothing has changed them.
        """
        model = self.model
        if not model.value.needs_logits:
            if self._value_model is not None:
                hidden = self._value_model.hidden(input_ids)
            elif self._hidden is None:
                raise RuntimeError(
                    "The policy's forward did not call its backbone, so its hidden state was not seen. "
                    "A fused or replaced forward hides it; generate with the plain transformers model."
                )
            else:
                hidden = self._block(self._hidden, 1 if model.has_value_adapter else 0)
            return StateFeatures(hidden=hidden, embedding=output_weight(model.policy))
        assert self._logits is not None
        own = self._value_model
        value_logits = self._block(self._logits, 1) if own is None else own.logits(input_ids)
        if self._ref_model is not None:
            return StateFeatures(value_logits=value_logits, ref_logits=self._ref_model.logits(input_ids))
        # The policy without an adapter of its own is the reference, else the last block is. Raw logits: what other
        # processors do to the policy's is no part of the value.
        if model.policy_adapter is None and policy_logps is not None:
            return StateFeatures(value_logits=value_logits, ref_logps=policy_logps)
        ref_logits = self._block(self._logits, 0 if model.policy_adapter is None else len(self.blocks) - 1)
        return StateFeatures(value_logits=value_logits, ref_logits=ref_logits)
