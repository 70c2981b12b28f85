# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""TRL's adaptive coefficient of an entropy bonus (Skywork-OR1, arXiv 2505.22312)."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass
class EntropyControl:
    """Moves the coefficient by a fixed amount per optimizer step: up where the entropy is at its target or below.

    Attributes:
        args: The configuration, which has the target, the amount and the bounds.
        last: Mean entropy per token of the last optimizer step, in nats; above every target before the first.
        total: Sum of the entropies of the present step's tokens.
        count: Number of these tokens.
    """

    args: Any
    last: float = math.inf
    total: float = 0.0
    count: float = 0.0

    def applied(self, coef: float) -> float:
        """The coefficient that the losses of this step take: 0 above the target, where it adapts."""
        return 0.0 if self.args.use_adaptive_entropy and self.last > self.args.entropy_target else coef

    def add(self, total: float, count: float) -> None:
        """Adds what all processes measured on one micro-batch."""
        self.total, self.count = self.total + total, self.count + count

    def step(self, coef: float) -> float:
        """Ends an optimizer step; returns the next one's coefficient. A step without tokens repeats the last one."""
        args = self.args
        if self.count:
            self.last = self.total / self.count
        self.total = self.count = 0.0
        if not args.use_adaptive_entropy:
            return coef
        if self.last <= args.entropy_target:
            return min(coef + args.entropy_coef_delta, args.entropy_coef_max)
        return max(coef - args.entropy_coef_delta, args.entropy_coef_min)
