# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Hooks around a model's forward, for as long as a context lasts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def forward_hooks(model: nn.Module, before: Callable[..., Any], after: Callable[..., Any]) -> Iterator[None]:
    """Calls `before` ahead of every forward of a model and `after` behind it.

    Args:
        model: The model.
        before: A forward pre-hook with keyword arguments: `(module, args, kwargs)`.
        after: A forward hook with keyword arguments: `(module, args, kwargs, output)`.

    Yields:
        Nothing; the hooks are removed at the end, also after an error.

    Example:
        >>> import torch
        >>> calls, model = [], nn.Linear(2, 1)
        >>> with forward_hooks(model, lambda *call: calls.append("before"), lambda *call: calls.append("after")):
        ...     output = model(torch.zeros(1, 2))
        >>> calls
        ['before', 'after']
    """
    handles = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
