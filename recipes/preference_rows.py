# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The rows of the preference recipe's tables: every space over its budgets, its controls, and the base's own rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.methods import Method
from eval.sampling import Draw

# Spaces with what they are called in tables.
SPACES = {
    "logit": "VGF logit",
    "sequence_embedding": "VGF sequence_embedding",
    "sequence_logit": "VGF sequence_logit",
}
_SAMPLING = {"do_sample": True}
# Every step is written as text, its gradient taken there, and each response keeps its best text: a move of many steps
# that becomes text once hardly raises even the proxy here.
_WHOLE = {"rescore": True, "relift": True}
_TOKENS = {"cache_implementation": "static", "disable_compile": True}
# Passes that the gradient of one step costs, in forward passes; random swaps get as many values as that.
GRADIENT_COST = 3


@dataclass(frozen=True)
class Budget:
    """A space with the budgets that are tried in it.

    Attributes:
        space: One of `SPACES`.
        steps: Budgets L, each at least 1.
        settings: Transport settings.
    """

    space: str
    steps: Sequence[int]
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"The budgets of {self.space!r} must be one or more integers >= 1; got {self.steps}.")

    @property
    def title(self) -> str:
        """Its name in tables."""
        return SPACES[self.space]

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `generate` without the number of steps."""
        return {
            **_SAMPLING,
            "space": self.space,
            **(_WHOLE if self.space.startswith("sequence") else _TOKENS),
            **self.settings,
        }

    def draw(self, steps: int, control: str | None = None) -> Draw:
        """How L steps sample, or a control of the same cost."""
        title = f"{self.title} L={steps}" if control is None else f"{self.title} {control} L={steps}"
        options = {**self.options, "transport_steps": steps}
        if control is not None:
            options["control"] = control
        if control == "swaps":
            options["transport_steps"] = GRADIENT_COST * steps
        return Draw(title, options, with_values=True)


def base_rows(counts: Sequence[int], temperatures: Sequence[float]) -> list[Method]:
    """Returns the base's rows: single samples at each temperature, and best-of-N by proxy.

    Args:
        counts: Counts N of the best-of rows.
        temperatures: Temperatures beside 1.
    """
    base = Draw("base", {**_SAMPLING, "space": "sequence_embedding", "transport_steps": 0}, with_values=True)
    most = max(counts)
    rows = [Method("sampled, T=1", "temperature", base, draws=most)]
    for value in sorted(temperatures, reverse=True):
        cooled = Draw(f"T={value:g}", {**_SAMPLING, **_TOKENS, "temperature": value})
        rows.append(Method(f"sampled, T={value:g}", "temperature", cooled, draws=min(most, 4)))
    return rows + [Method(f"best-of-{n}", "best_of_n", base, n, "value") for n in sorted(set(counts))]


def transported_rows(budget: Budget, num_particles: int) -> list[Method]:
    """Returns one particle, and the best of N by proxy, at every budget of a space."""
    rows = []
    for steps in sorted(set(budget.steps)):
        draw = budget.draw(steps)
        for label, n, selection in (
            ("one particle", 1, "single"),
            (f"best of {num_particles}", num_particles, "proxy"),
        ):
            family = f"{budget.title}, {label}"
            rows.append(Method(f"{family}, L={steps}", family, draw, n, selection, steps, num_particles))
    return rows


def control_rows(budget: Budget, steps: int, num_particles: int) -> list[Method]:
    """Returns the controls of a space at one budget, the best of N by proxy of each."""
    names = ("random", "shuffled", "swaps") if budget.space.startswith("sequence") else ("random", "shuffled")
    return [
        Method(
            f"{name}, {budget.title}, best of {num_particles}, L={steps}",
            f"{name} {budget.space}",
            budget.draw(steps, name),
            num_particles,
            "proxy",
            steps,
        )
        for name in names
    ]
