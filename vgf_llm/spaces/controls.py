# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Controls for result tables: directions that cost as much as the value's and know nothing of it."""

import torch
from torch import Tensor

CONTROLS = (None, "random", "shuffled")


def random_like(direction: Tensor, weights: Tensor | None = None) -> Tensor:
    """Draws a direction `[..., D]` of random sense with the norm of `direction`.

    Under `weights` `[..., D]` it is centred and has the standard deviation of `direction` in place of its norm;
    coordinates of weight 0 stay 0.
    """
    noise = torch.randn_like(direction)
    if weights is None:
        return noise * direction.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    def centred(x: Tensor) -> Tensor:
        x = torch.where(weights > 0, x, torch.zeros_like(x))
        return torch.where(weights > 0, x - (weights * x).sum(dim=-1, keepdim=True), torch.zeros_like(x))

    def spread(x: Tensor) -> Tensor:
        return (weights * x.square()).sum(dim=-1, keepdim=True).sqrt()

    noise = centred(noise)
    return noise * spread(centred(direction)) / spread(noise).clamp(min=1e-12)


def shuffled_like(values: Tensor, mask: Tensor) -> Tensor:
    """Permutes the masked entries of each row `[..., K]` at random; entries where `mask` is false keep their place."""
    # Entries off the mask sort behind all others in both orders, and meet themselves there.
    off = torch.where(mask, 0.0, 2.0 + torch.arange(values.shape[-1], device=values.device))
    places, drawn = off.argsort(dim=-1, stable=True), (off + torch.rand_like(off)).argsort(dim=-1)
    return torch.empty_like(values).scatter_(-1, places, values.gather(-1, drawn))
