# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Success rates: the policies of all seeds act in one forward, for several environments of each."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from eval.metrics import student_quantile
from recipes.offline_rl.agents import Policy

FIRST_START = 10_000
"""Seed of the first start; the starts are the same for every policy and seed of training."""


class Pool:
    """Environments that are stepped together, the same number for every seed of training.

    Args:
        make: Makes an environment.
        seeds: S.
        slots: W, environments of each seed.
    """

    def __init__(self, make: Callable[[], Any], seeds: int, slots: int) -> None:
        self.environments = [[make() for _ in range(slots)] for _ in range(seeds)]

    def success(self, policy: Policy, episodes: int) -> list[float]:
        """The share of episodes that reach the goal, for each seed [S]."""
        seeds, slots = len(self.environments), len(self.environments[0])
        generator = torch.Generator().manual_seed(FIRST_START)
        begun, solved = [0] * seeds, [0] * seeds
        observations: dict[tuple[int, int], Any] = {}
        places = [(seed, slot) for slot in range(slots) for seed in range(seeds)]
        for place in places:
            self._begin(place, begun, episodes, observations)
        width = len(next(iter(observations.values())))
        while observations:
            inputs = np.zeros((seeds, slots, width), dtype=np.float32)
            for place, observation in observations.items():
                inputs[place] = observation
            actions = policy(torch.from_numpy(inputs), generator).numpy()
            for seed, slot in list(observations):
                following, _, terminated, truncated, info = self.environments[seed][slot].step(actions[seed, slot])
                observations[seed, slot] = following
                if info["success"] or terminated or truncated:
                    solved[seed] += bool(info["success"])
                    self._begin((seed, slot), begun, episodes, observations)
        return [count / episodes for count in solved]

    def _begin(
        self, place: tuple[int, int], begun: list[int], episodes: int, observations: dict[tuple[int, int], Any]
    ) -> None:
        """Starts the next episode of a seed, or takes the place out."""
        observations.pop(place, None)
        seed, slot = place
        if begun[seed] < episodes:
            start = FIRST_START + begun[seed]
            np.random.seed(start)  # the environments draw from NumPy's global generator
            observations[place], _ = self.environments[seed][slot].reset(seed=start)
            begun[seed] += 1


def interval(rates: list[float]) -> str:
    """Mean over seeds in percent, with the half width of its 95 % interval by Student's t.

    Example:
        >>> interval([0.5, 0.7])
        '60 ± 127'
    """
    values = 100 * torch.tensor(rates, dtype=torch.float64)
    if len(rates) == 1:
        return f"{float(values[0]):.0f}"
    reach = student_quantile(0.95, len(rates) - 1) * float(values.std()) / len(rates) ** 0.5
    return f"{float(values.mean()):.0f} ± {reach:.0f}"
