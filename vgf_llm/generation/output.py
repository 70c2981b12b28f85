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
        values: `[B, N]`, one value per particle; a logit for 0/1 rewards, `log pi/mu` for a log-ratio value, the
            ensemble's lower bound for a sequence value.
        token_scores: `[B, N, T]`, the value's raw score of every response token; `None` for a sequence value.
        kl: `[B, N, T]`, KL to the base spent at every token, in nats, 0 after the end; `None` for whole responses whose
            tokens were not decoded (`control="swaps"`).
        lengths: `[B, N]`, tokens of each response, the one that ended it included. What stands behind them is padding,
            or what the policy wrote on where nothing but a criterion of the caller's ended a response.
        finished: `[B, N]`, true where a response ended by itself (an end token, a stop string, a criterion); false
            where the limit of length or time cut it.
        chosen: `[B]`, the index of the chosen particle.
        num_steps: Steps that a sequence space took, summed over blocks.
        stop_reason: Why it took no more: `"num_steps"`, `"stationary"` (no particle moves), `"no_change"` (the text
            has changed, and two steps in a row changed no token) or `"max_kl"` (every response is at its cap).
        kept_steps: `[B, N]`, the step whose text was kept, 0 for the sample itself; of the last block in block mode.
        tokens_changed: `[B, N]`, the fraction of a response's tokens that differ from the sample it was moved from.
        value_calls: Forwards of the sequence value, each of all particles.
        scores: Processed logits per step, as transformers returns them, when asked for.
        logits: Raw logits per step, as transformers returns them, when asked for.
    """

    sequences: Tensor | None = None
    particle_sequences: Tensor | None = None
    values: Tensor | None = None
    token_scores: Tensor | None = None
    kl: Tensor | None = None
    lengths: Tensor | None = None
    finished: Tensor | None = None
    chosen: Tensor | None = None
    num_steps: int | None = None
    stop_reason: str | None = None
    kept_steps: Tensor | None = None
    tokens_changed: Tensor | None = None
    value_calls: int | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
