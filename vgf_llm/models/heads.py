# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Heads on the last hidden state: Q of a state's candidate tokens.

Every head starts at zero, so that an untrained value transports nothing. Heads are evaluated at candidate rows only:
the cost per token is K rows of width D, not the vocabulary.
"""

import torch
from torch import Tensor, nn


def _trunk(width: int, hidden_size: int | None) -> tuple[nn.Module, int]:
    if hidden_size is None:
        return nn.Identity(), width
    return nn.Sequential(nn.Linear(width, hidden_size), nn.SiLU()), hidden_size


def _zero_linear(width: int, out: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(width, out, bias=bias)
    nn.init.zeros_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _products(query: Tensor, matrix: Tensor, ids: Tensor) -> Tensor:
    """Products `[..., K]` of queries `[..., D]` with the rows `ids` `[..., K]` of a matrix `[V, D]`."""
    # Gathering rows reads D numbers per candidate; beyond V candidates in all, one full product is cheaper.
    if ids.numel() > matrix.shape[0]:
        return (query @ matrix.to(query.dtype).T).gather(-1, ids)
    return torch.einsum("...kd,...d->...k", matrix[ids].to(query.dtype), query)


class QHead(nn.Module):
    """Q(h, v) with one output row per token of the vocabulary.

    Args:
        width: D.
        vocab_size: V.
        hidden_size: Width of a one-layer MLP in front; `None` for a linear head.

    Example:
        >>> head = QHead(8, 100, hidden_size=16)
        >>> head(torch.ones(2, 8), torch.tensor([[1, 2, 3], [4, 5, 6]])).shape
        torch.Size([2, 3])
    """

    def __init__(self, width: int, vocab_size: int, hidden_size: int | None = None) -> None:
        super().__init__()
        self.width, self.vocab_size, self.hidden_size = width, vocab_size, hidden_size
        self.trunk, out = _trunk(width, hidden_size)
        self.out = _zero_linear(out, vocab_size)

    def forward(self, hidden: Tensor, candidate_ids: Tensor) -> Tensor:
        """Maps hidden states `[..., D]` and candidates `[..., K]` to raw values `[..., K]`."""
        features = self.trunk(hidden.to(self.out.weight.dtype))
        return _products(features, self.out.weight, candidate_ids) + self.out.bias[candidate_ids]


class BilinearQHead(nn.Module):
    """Q(h, v) = b(h) + (W h) . E[v] on the frozen output embedding E of the language model.

    It has D^2 parameters whatever the vocabulary, and generalises to tokens that were never sampled through E.

    Args:
        width: D.
        embedding_width: Width of E's rows; the width of the language model that owns E.
        hidden_size: Width of a one-layer MLP in front; `None` for a linear head.

    Example:
        >>> head = BilinearQHead(8, 8)
        >>> head(torch.ones(2, 8), torch.tensor([[1, 2], [3, 4]]), torch.ones(10, 8)).shape
        torch.Size([2, 2])
    """

    def __init__(self, width: int, embedding_width: int, hidden_size: int | None = None) -> None:
        super().__init__()
        self.width, self.embedding_width, self.hidden_size = width, embedding_width, hidden_size
        self.trunk, out = _trunk(width, hidden_size)
        self.baseline = _zero_linear(out, 1)
        self.out = _zero_linear(out, embedding_width, bias=False)

    def forward(self, hidden: Tensor, candidate_ids: Tensor, embedding: Tensor) -> Tensor:
        """Maps hidden states `[..., D]`, candidates `[..., K]` and E `[V, D]` to raw values `[..., K]`."""
        features = self.trunk(hidden.to(self.out.weight.dtype))
        return self.baseline(features) + _products(self.out(features), embedding, candidate_ids)
