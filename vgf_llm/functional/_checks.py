# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Input checks shared by the functions of this package; every message names the argument and the fix."""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

_LARGEST_INTEGER = 2**31 - 1
_LARGEST_FLOAT = torch.finfo(torch.float32).max


def shown(value: Any, limit: int = 80) -> str:
    """Returns `repr(value)` for an error, of bounded length, whatever the value."""
    try:
        text = repr(value)
    except ValueError:  # integers of thousands of digits have no text
        text = f"<{type(value).__name__} of {value.bit_length()} bits>"
    return text if len(text) <= limit else f"{text[:limit]}..."


@dataclass(frozen=True)
class Range:
    """The finite values that a setting may take, and how to say so.

    Without `high`, integers go up to 2**31 - 1 and other numbers up to what float32 holds.

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

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    integer: bool = False
    optional: bool = False
    hint: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raises TypeError or ValueError naming the setting, unless `value` is allowed."""
        if value is None and self.optional:
            return
        kinds = int if self.integer else (int, float)
        what = ("an integer" if self.integer else "a number") + (" or None" if self.optional else "")
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise TypeError(f"`{name}` must be {what}, got {shown(value)} ({type(value).__name__}).")
        # Comparisons alone: converting a large integer to a float overflows. NaN fails all of them.
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= min(self.high, self._largest)
        if not (above and below):
            raise ValueError(f"`{name}` must be {what} {self}, got {shown(value)}. {self.hint}".rstrip())

    @property
    def _largest(self) -> float:
        bounded = not math.isinf(self.high)
        return self.high if bounded else _LARGEST_INTEGER if self.integer else _LARGEST_FLOAT

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"{'>' if self.open_low else '>='} {self.low:g} and {'< 2**31' if self.integer else 'finite'}"
        return f"in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"


def check_finite(name: str, tensor: Tensor, fix: str = "look for an overflow or a division by zero upstream") -> None:
    """Raises ValueError when `tensor` holds NaN or an infinity."""
    # A finite sum has finite terms and is one pass without a temporary; an infinite one may be an overflow.
    if math.isfinite(tensor.detach().sum()):
        return
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise ValueError(
            f"{name} must be finite, but {bad} of its {tensor.numel()} entries (shape {tuple(tensor.shape)}) are NaN "
            f"or infinite; {fix}."
        )


def check_number(
    name: str, value: float, *, low: float = 0.0, high: float = math.inf, low_open: bool = False, fix: str = ""
) -> None:
    """Raises TypeError unless `value` is a real number, ValueError unless it is finite and in [low, high].

    With `low_open` the interval is (low, high].
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} ({value!r}); pass a float.")
    inside = math.isfinite(value) and (low < value if low_open else low <= value) and value <= high
    if not inside:
        interval = f"{'(' if low_open else '['}{low:g}, {'inf)' if math.isinf(high) else f'{high:g}]'}"
        raise ValueError(f"{name} must be a finite number in {interval}, got {value!r}{f'; {fix}' if fix else ''}.")


def check_count(name: str, value: int, *, low: int = 0) -> None:
    """Raises TypeError unless `value` is an integer, ValueError unless it is at least `low`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__} ({value!r}); pass a whole number >= {low}.")
    if value < low:
        raise ValueError(f"{name} must be an int >= {low}, got {value}.")


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
