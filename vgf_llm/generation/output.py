# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What `VGFModel.generate(return_dict_in_generate=True)` returns."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class VGFGenerateOutput(ModelOutput):
    """Generated sequences with what transport did to them.

    Attributes:
        sequences: `[B, P + T]`, the chosen response of each prompt (`[B * N, P + T]` with `selection="none"`).
        particle_sequences: `[B, N, P + T]`, every particle.
        values: `[B, N]`, one value per particle; a logit for 0/1 rewards, `log pi/mu` for a log-ratio value.
        token_scores: `[B, N, T]`, the value's raw score of every response token.
        kl: `[B, N, T]`, KL to the base spent at every token, in nats, 0 after the end.
        chosen: `[B]`, the index of the chosen particle.
        scores: Processed logits per step, as transformers returns them, when asked for.
        logits: Raw logits per step, as transformers returns them, when asked for.
    """

    sequences: Tensor | None = None
    particle_sequences: Tensor | None = None
    values: Tensor | None = None
    token_scores: Tensor | None = None
    kl: Tensor | None = None
    chosen: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
