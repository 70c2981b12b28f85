# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Checks of settings and of tensors; every message names the argument, what arrived and the fix."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

# Whether functions look at the values of tensors, for which a host waits for its accelerator. Left open, functions
# that run once per decoded token do not look, and all others do.
_CHECK_VALUES: ContextVar[bool | None] = ContextVar("vgf_llm_check_values", default=None)


@contextmanager
def value_checks(enabled: bool) -> Iterator[None]:
    """Switches checks of the values of tensors on or off inside the context, in every function of this package.

    Functions that run once per decoded token check values only where this switches it on: to look, the host waits for
    the accelerator. Switch it on to find where a NaN comes from.

    Args:
        enabled: Whether values are checked.

    Yields:
        Nothing.

    Example:
        >>> from vgf_llm.functional import candidate_set
        >>> with value_checks(True):
        ...     candidate_set(torch.tensor([torch.nan, 0.0]), top_k=1, min_prob=0.0)
        Traceback (most recent call last):
        ...
        ValueError: the log-normaliser of logits must be finite, ...
    """
    token = _CHECK_VALUES.set(enabled)
    try:
        yield
    finally:
        _CHECK_VALUES.reset(token)


def checks_values(*, per_token: bool = False) -> bool:
    """Tells whether a function looks at the values of tensors; one that runs per decoded token has to be asked to."""
    enabled = _CHECK_VALUES.get()
    return not per_token if enabled is None else enabled


def check_finite(
    name: str,
    tensor: Tensor,
    fix: str = "look for an overflow or a division by zero upstream",
    *,
    per_token: bool = False,
) -> None:
    """Raises ValueError when `tensor` holds NaN or an infinity, where values are checked."""
    # A finite sum has finite terms and is one pass without a temporary; an infinite one may be an overflow.
    if not checks_values(per_token=per_token) or math.isfinite(tensor.detach().sum()):
        return
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise ValueError(
            f"{name} must be finite, but {bad} of its {tensor.numel()} entries (shape {tuple(tensor.shape)}) are NaN "
            f"or infinite; {fix}."
        )


def shown(value: Any) -> str:
    """A short `repr` of anything, for errors."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"<{type(value).__name__} too long to show>"
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True)
class Range:
    """The finite numbers that a setting may be, and how to say so.

    Args:
        low: Smallest value.
        high: Largest value.
        open_low: Whether `low` itself is excluded.
        open_high: Whether `high` itself is excluded.
        integer: Whether the value must be an integer.
        optional: Whether `None` is allowed.
        hint: Sentence put at the end of the error.

    Example:
        >>> Range(0, 1, open_low=True).check("share", 0.5)
        >>> Range(0, 1, open_low=True).check("share", 0.0)
        Traceback (most recent call last):
        ...
        ValueError: `share` must be a number in (0, 1], got 0.0.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    integer: bool = False
    optional: bool = False
    hint: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raises TypeError for another type, ValueError for a number out of range; both name the setting."""
        if value is None and self.optional:
            return
        hint = f" {self.hint}" if self.hint else ""
        what = ("an integer" if self.integer else "a number") + (" or None" if self.optional else "")
        kind: Any = Integral if self.integer else Real
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(f"`{name}` must be {what}, got {shown(value)} ({type(value).__name__}).{hint}")
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        # A comparison with NaN is false. Counts fit 32 bits, and other numbers what tensors hold.
        if not (above and below and abs(value) <= _LARGEST[self.integer]):
            raise ValueError(f"`{name}` must be {what} {self}, got {shown(value)}.{hint}")

    def read(self, name: str, value: Any) -> Any:
        """Checks a value, and returns it as a number of Python's own, which every file format can hold."""
        self.check(name, value)
        return value if value is None else int(value) if isinstance(value, Integral) else float(value)

    def __str__(self) -> str:
        if self.high == math.inf:
            return "finite" if self.low == -math.inf else f"{'>' if self.open_low else '>='} {self.low:g} and finite"
        return f"in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"


_LARGEST = {True: 2**31 - 1, False: torch.finfo(torch.float32).max}

POSITIVE = Range(0, open_low=True)
NON_NEGATIVE = Range(0)
COUNT = Range(0, integer=True)


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises ValueError unless `value` is one of `allowed`, of the same type.

    Example:
        >>> check_choice("pooling", "max", ("mean", "last"))
        Traceback (most recent call last):
        ...
        ValueError: `pooling` must be one of 'mean', 'last'; got 'max'.
    """
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}; got {shown(value)}.")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...] | torch.Size, like: str) -> None:
    """Raises ValueError when `tensor` has not the shape that the argument `like` asks for."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)} to match {like}, got {tuple(tensor.shape)}.")


def check_rank(name: str, tensor: Tensor, rank: int, shape: str) -> None:
    """Raises ValueError when `tensor` has another number of dimensions than `rank`."""
    if tensor.ndim != rank:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}.")


def check_particle_shape(name: str, particles: Tensor) -> None:
    """Raises unless `particles` is a floating-point tensor of shape [..., N, D] with N >= 1."""
    if not particles.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {particles.dtype}; convert it with .float().")
    if particles.ndim < 2 or particles.shape[-2] < 1:
        raise ValueError(
            f"{name} must have shape [..., N, D] with N >= 1, got {tuple(particles.shape)}; "
            f"unsqueeze(-2) turns one vector a row into N = 1."
        )


def check_particles(name: str, particles: Tensor) -> None:
    """Raises unless `particles` is a finite floating-point tensor of shape [..., N, D] with N >= 1."""
    check_particle_shape(name, particles)
    check_finite(name, particles)
