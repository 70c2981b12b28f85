# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Several reward functions as one, for places that take one: a value to learn, a score to keep the best by."""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

RewardFunction = Callable[..., Sequence[float | None]]


class WeightedMixture:
    """The weighted sum of reward functions, itself a reward function.

    A function that returns None (or NaN) for a row is left out of that row's sum, as TRL's trainers do with several
    reward functions; a row that no function scores is None.

    Args:
        reward_funcs: Reward functions with the signature of TRL's trainers.
        weights: One number per function; 1 each by default.
        name: Name in the trainer's metrics.

    Raises:
        ValueError: There is no function, or the weights do not fit them.
        TypeError: A function is not callable, or asynchronous.

    Example:
        >>> def length(completions, **kwargs):
        ...     return [float(len(text)) for text in completions]
        >>> def short(completions, **kwargs):
        ...     return [None if not text else float(len(text) < 3) for text in completions]
        >>> WeightedMixture([length, short], weights=[0.1, 1.0])(completions=["", "ab", "abcd"])
        [0.0, 1.2, 0.4]
    """

    def __init__(
        self,
        reward_funcs: Sequence[RewardFunction],
        weights: Sequence[float] | None = None,
        name: str = "weighted_mixture",
    ) -> None:
        if not reward_funcs:
            raise ValueError("reward_funcs is empty; give at least one reward function.")
        for func in reward_funcs:
            if not callable(func):
                raise TypeError(
                    f"reward_funcs must be callables; got {type(func).__name__}. A model or its name goes into "
                    "reward_models.classifier.ClassifierReward."
                )
            if inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(type(func).__call__):
                raise TypeError(
                    f"The reward function {_name(func)!r} is asynchronous, which a mixture does not wait for. Give it "
                    "to the trainer in `reward_funcs` with a weight in `reward_weights`."
                )
        weights = [1.0] * len(reward_funcs) if weights is None else [float(weight) for weight in weights]
        if len(weights) != len(reward_funcs) or not all(map(math.isfinite, weights)):
            raise ValueError(f"weights must be {len(reward_funcs)} finite numbers, one per function; got {weights}.")
        self.reward_funcs = list(reward_funcs)
        names = [_name(func) for func in reward_funcs]
        # Functions of one name are numbered, so that each has a metric of its own.
        counts = [names[: index + 1].count(func_name) for index, func_name in enumerate(names)]
        self.reward_func_names = [n if count == 1 else f"{n}_{count}" for n, count in zip(names, counts, strict=True)]
        self.weights = weights
        self.__name__ = name

    def __call__(self, *, log_metric: Callable[[str, float], None] | None = None, **kwargs: Any) -> list[float | None]:
        """Scores completions.

        Args:
            log_metric: Given by the trainer; the mean of each function is logged as `<mixture>/<function>/mean`.
            **kwargs: What the trainer hands over, given to every function.

        Returns:
            One sum per completion, None where no function returned a number.

        Raises:
            ValueError: A function returns another number of rewards than the others.
        """
        columns: list[list[float | None]] = []
        for func, func_name in zip(self.reward_funcs, self.reward_func_names, strict=True):
            rewards = [None if reward is None or math.isnan(reward) else float(reward) for reward in func(**kwargs)]
            if columns and len(rewards) != len(columns[0]):
                raise ValueError(
                    f"The reward function {func_name!r} returned {len(rewards)} rewards, "
                    f"{self.reward_func_names[0]!r} {len(columns[0])}. Return one per completion, None to skip a row."
                )
            scored = [reward for reward in rewards if reward is not None]
            if log_metric is not None and scored:
                log_metric(f"{self.__name__}/{func_name}/mean", sum(scored) / len(scored))
            columns.append(rewards)
        return [self._combine(row) for row in zip(*columns, strict=True)]

    def _combine(self, rewards: tuple[float | None, ...]) -> float | None:
        terms = [w * reward for w, reward in zip(self.weights, rewards, strict=True) if reward is not None]
        return sum(terms) if terms else None


def _name(func: RewardFunction) -> str:
    while isinstance(func, partial):
        func = func.func
    return getattr(func, "__name__", type(func).__name__)
