# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Ranges of numeric settings, with errors that name the setting, what arrived and what is allowed."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """The finite values that a setting may take, and how to say so.

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
        """Raise `TypeError` or `ValueError` naming the setting, unless `value` is allowed."""
        if value is None and self.optional:
            return
        kinds = int if self.integer else (int, float)
        what = ("an integer" if self.integer else "a number") + (" or None" if self.optional else "")
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise TypeError(f"`{name}` must be {what}, got {value!r} ({type(value).__name__}).")
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        if not (math.isfinite(value) and above and below):
            raise ValueError(f"`{name}` must be {what} {self}, got {value!r}. {self.hint}".rstrip())

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'>' if self.open_low else '>='} {self.low:g} and finite"
        return f"in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"
