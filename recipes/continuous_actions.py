# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What the demonstrations on continuous actions share beside their networks."""

from typing import Any

import torch
from torch import Tensor, nn


def check_least(settings: Any, least: int, *names: str) -> None:
    """Raises ValueError for a setting below its least value."""
    for name in names:
        if getattr(settings, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(settings, name)}.")


def check_budgets(settings: Any, *names: str) -> None:
    """Raises ValueError for a list of budgets that is empty or holds a negative one."""
    for name in names:
        if not getattr(settings, name) or min(getattr(settings, name)) < 0:
            raise ValueError(f"{name} must be one or more budgets >= 0, got {getattr(settings, name)}.")


def follow(slow: nn.Module, fast: nn.Module, rate: float) -> None:
    """Moves the slow weights towards the fast ones."""
    with torch.no_grad():
        torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), rate)


def as_far_at_random(start: Tensor, moved: Tensor, generator: torch.Generator) -> Tensor:
    """The control of a flow: particles `[..., A]` that go from `start` as far as `moved`, each in a random direction.

    Example:
        >>> start, moved = torch.zeros(2, 3), torch.full((2, 3), 0.1)
        >>> as_far_at_random(start, moved, torch.Generator().manual_seed(0)).norm(dim=-1).allclose(moved.norm(dim=-1))
        True
    """
    length = torch.linalg.vector_norm(moved - start, dim=-1, keepdim=True)
    sense = nn.functional.normalize(torch.randn(start.shape, generator=generator), dim=-1)
    return (start + length * sense).clamp(-1, 1)
