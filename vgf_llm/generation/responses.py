# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""One run of a language model's own `generate`, and what is known of its responses afterwards."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from vgf_llm.generation.ends import Ends, record_ends, response_mask
from vgf_llm.generation.prefill import SharedPrefill
from vgf_llm.generation.processor import TransportProcessor
from vgf_llm.generation.shallow import shallow_copy
from vgf_llm.models.language_model import backbone_name


@dataclass(frozen=True)
class Responses:
    """R responses as `generate` left them."""

    sequences: Tensor  # `[R, P + T]`
    prompt_length: int  # P
    ends: Ends  # their lengths, whether they finished, and the criteria that ended them
    transport: TransportProcessor | None = None  # what moved them, with its records; `None` where nothing did
    scores: tuple[Tensor, ...] | None = None  # processed logits per step, when asked for
    logits: tuple[Tensor, ...] | None = None  # raw logits per step, when asked for

    @property
    def tokens(self) -> Tensor:
        """`[R, T]`."""
        return self.sequences[:, self.prompt_length :]

    @property
    def mask(self) -> Tensor:
        """`[R, T]`, 1 on tokens of the response."""
        return response_mask(self.ends.lengths, self.tokens.shape[1])

    @property
    def kl(self) -> Tensor:
        """`[R, T]`, KL to the base spent at every token, in nats."""
        if self.transport is None:
            return torch.zeros_like(self.tokens, dtype=torch.float32)
        return self.transport.token_kl(self.mask)


def run_generate(
    language_model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    defaults: GenerationConfig,
    num_particles: int,
    last: LogitsProcessor | None = None,
    **kwargs: Any,
) -> Responses:
    """Runs `generate` on a copy of the model's object, so that nothing of it stays on the model.

    `num_particles` adjacent rows share a prompt, which is read once. `defaults` take the place of the model's own
    generation defaults, and `last` runs behind all other processors but temperature, top-k and top-p.
    """
    transport = last if isinstance(last, TransportProcessor) else None
    copied = shallow_copy(language_model, "" if transport is None else backbone_name(language_model))
    copied.generation_config = defaults
    SharedPrefill(num_particles).install(copied)
    if transport is not None:
        transport.install(copied)
    if last is not None:
        kwargs["logits_processor"] = LogitsProcessorList([*(kwargs.get("logits_processor") or []), last])
    ends = record_ends(copied)
    config: GenerationConfig | None = copy.deepcopy(kwargs.pop("generation_config", None))
    # What transformers compiles for a static cache is kept on the model, and would be compiled anew for every copy.
    settings = {"return_dict_in_generate": True, "disable_compile": kwargs.pop("disable_compile", True)}
    if config is None:
        kwargs.update(settings)
    else:  # transformers warns of settings beside a configuration
        config.update(**settings)
    raw: Any = copied.generate(input_ids, attention_mask=attention_mask, generation_config=config, **kwargs)
    return Responses(raw.sequences, input_ids.shape[1], ends, transport, raw.scores, raw.logits)
