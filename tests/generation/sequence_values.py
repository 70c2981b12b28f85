# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Hand-made sequence values and models for the tests of whole-response transport."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.layouts import VOCAB, tiny_model, vgf_model
from vgf_llm.models import DifferentiableValue, SequenceValue, VGFModel


class MeanFeature(DifferentiableValue):
    """The mean over response tokens of one number per token: linear in the embeddings.

    `scores` says what each token is worth; the embeddings are one-hot rows, so that a value in embedding space is a
    sum of what the tokens are worth.
    """

    def __init__(self, scores: Tensor, context: int | None = None) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(len(scores)), requires_grad=False)
        self.weights = nn.Parameter(scores.float().unsqueeze(-1), requires_grad=False)  # [V, 1]
        self.context = context
        self.calls = 0

    @property
    def embedding(self) -> Tensor:
        return self.matrix

    @property
    def max_length(self) -> int | None:
        return self.context

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, response_mask: Tensor) -> Tensor:
        self.calls += 1
        weights = response_mask / response_mask.sum(dim=-1, keepdim=True)
        return torch.einsum("rs,rsh->rh", weights, inputs_embeds @ self.weights)


def token_value() -> MeanFeature:
    """Counts every fourth token as 1."""
    return MeanFeature((torch.arange(VOCAB) % 4 == 3).float())


def learned_value(layout: str = "llama", num_members: int = 2, pooling: str = "mean") -> SequenceValue:
    """A random `SequenceValue` over a backbone of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return SequenceValue(tiny_model(layout, seed=5), num_members, pooling).eval()


def sequence_model(layout: str = "llama", value: Any = None, **overrides: Any) -> VGFModel:
    """A `VGFModel` over a tiny base with a sequence value."""
    model = vgf_model(tiny_model(layout, **overrides))
    model.sequence_value = value if value is not None else learned_value()
    return model.eval()
