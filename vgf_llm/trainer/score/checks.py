# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Checks of reward functions and of what they return; the errors name the function and show the prompt."""

import asyncio
import inspect
import itertools
import logging
import math
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vgf_llm._compat import get_callable_name, get_config_model_id

logger = logging.getLogger(__name__)

# What ends a run when the user asks for it passes through; everything else that a user's code raises is named.
FAILURES = (Exception, asyncio.CancelledError, SystemExit)

# A model id or path, a sequence classifier, or a callable that returns one number (or None) per completion.
RewardFunc = str | nn.Module | Callable[..., Any]


class _Short(reprlib.Repr):
    """Shortens what an error shows, and survives what has no text: numbers too long for one, a failing `__repr__`."""

    def repr1(self, x: Any, level: int) -> str:
        try:
            return super().repr1(x, level)
        except Exception:
            return f"<{type(x).__name__}>"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 300
_SHORT.maxdict = 12
show = _SHORT.repr


def as_list_of_funcs(reward_funcs: RewardFunc | Sequence[RewardFunc] | None) -> list[Any]:
    """Return the reward functions as a new list, or raise `ValueError` or `TypeError` for what cannot be one."""
    several = isinstance(reward_funcs, (list, tuple))
    funcs = list(reward_funcs) if several else [] if reward_funcs is None else [reward_funcs]  # type: ignore[arg-type]
    if not funcs:
        raise ValueError(
            f"No reward source provided: `reward_funcs` is {reward_funcs!r}. Pass a reward function, a reward model, "
            "or a list of them; or a dataset that has logged completions (`completion` and `reward`)."
        )
    for index, func in enumerate(funcs):
        if not isinstance(func, str) and not callable(func):
            raise TypeError(
                f"`reward_funcs[{index}]` must be a callable, a model or a model id, got {show(func)} "
                f"({type(func).__name__})."
            )
        if isinstance(func, nn.Module) and not hasattr(func, "config"):
            raise TypeError(
                f"`reward_funcs[{index}]` is a {type(func).__name__} without a `config`; a module is scored as a "
                "sequence classifier of transformers. Wrap anything else in a function."
            )
    return funcs


def check_weights(reward_weights: Sequence[float] | None, num_funcs: int) -> Tensor:
    """Return the weights `[num_funcs]`, ones for `None`, or raise `ValueError`."""
    if reward_weights is None:
        return torch.ones(num_funcs, dtype=torch.float32)
    if len(reward_weights) != num_funcs:
        raise ValueError(
            f"Number of reward weights ({len(reward_weights)}) must match number of reward functions ({num_funcs}). "
            f"`reward_weights` is {list(reward_weights)}."
        )
    weights = torch.tensor(reward_weights, dtype=torch.float32)
    if not bool(weights.isfinite().all()):
        raise ValueError(f"`reward_weights` must be finite, got {list(reward_weights)}.")
    return weights


def check_labels(config: Any, name: str) -> None:
    """Refuse a classifier of several labels, of which none is said to be the reward; errors call it `name`."""
    count = getattr(config, "num_labels", 1)
    if count != 1:
        labels = list((getattr(config, "id2label", None) or {}).values())
        raise ValueError(
            f"{name} has {count} labels ({show(labels)}), and a reward model has one. Which label pays cannot be told: "
            "pass a function that returns the score of the label you want, or a model with `num_labels=1`."
        )


def keywords_of(func: Any) -> tuple[list[str], set[str] | None]:
    """Required keywords of a callable, and accepted ones; `None` for the latter where anything is accepted."""
    if isinstance(func, (str, nn.Module)):
        return [], None
    try:
        parameters = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):  # built-in callables may have no signature to read
        return [], None
    named = [item for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)]
    required = [item.name for item in named if item.default is item.empty]
    anything = any(item.kind is item.VAR_KEYWORD for item in parameters)
    return required, None if anything else {item.name for item in named}


def unique_names(funcs: Sequence[Any]) -> list[str]:
    """Return the names of reward functions in metrics: TRL's, numbered where several functions share one.

    Example:
        >>> unique_names([len, len, max])
        ['len', 'len_2', 'max']
    """
    given = [_name(func) for func in funcs]
    shared = [name for name, count in Counter(given).items() if count > 1]
    names: list[str] = []
    for index, name in enumerate(given):
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        taken = {*names, *given}
        names.append(next(other for other in numbered if other not in taken) if name in given[:index] else name)
    if shared:
        logger.warning(
            "Several reward functions are called %s; metrics name them, in their order, %s. Give a function another "
            "name by its `__name__`.",
            show(shared),
            names,
        )
    return names


def _name(func: Any) -> str:
    if isinstance(func, nn.Module):
        origin = get_config_model_id(func.config) or ""
        return str(origin).rstrip("/").split("/")[-1] or type(func).__name__
    name = func.rstrip("/").split("/")[-1] if isinstance(func, str) else get_callable_name(func)
    return name if isinstance(name, str) and name else type(func).__name__


def check_output(output: Any, name: str, rows: dict[str, list]) -> list[float]:
    """Turn what the reward function `name` returned into one float per completion, NaN for `None`.

    `rows` are the arguments of the call, of which errors show `prompts` and `completions`. A wrong number of rewards,
    NaN and infinity are a `ValueError`, what is no sequence of numbers and `None` is a `TypeError`.
    """
    expected = len(rows["prompts"])
    problem = f"The reward function '{name}' returned {show(output)} ({type(output).__name__})"
    try:
        awaitable = inspect.isawaitable(output)
        numbers = None if awaitable else _entries(output)
    except FAILURES as error:  # of a tensor without data, or of a class of the user's
        shown = f"{type(error).__name__}: {error}"
        raise TypeError(f"{problem}, which cannot be read ({shown}). Return a list of numbers.") from error
    if awaitable:
        if inspect.iscoroutine(output):
            output.close()
        raise TypeError(f"The reward function '{name}' returned an awaitable. Define it with `async def`.")
    if numbers is None:
        raise TypeError(f"{problem}; a list of {expected} numbers (or None) is expected, one per completion.")
    if len(numbers) != expected:
        raise ValueError(
            f"The reward function '{name}' returned {len(numbers)} rewards, but {expected} were expected (one per "
            "prompt-completion pair). Make it return exactly one reward per completion."
        )
    return [_check_reward(reward, name, row, rows) for row, reward in enumerate(numbers)]


def _entries(output: Any) -> list[Any] | None:
    """The entries of an output, `None` where it is no sequence of numbers."""
    kind = getattr(getattr(output, "dtype", None), "kind", "f")
    # Arrays of dates, texts and records would turn into numbers or texts without a word.
    if kind not in "biufO":
        return None
    if hasattr(output, "tolist") and not isinstance(output, memoryview):
        output = output.tolist()
    if not isinstance(output, Sequence) or isinstance(output, (str, bytes, bytearray, memoryview)):
        return None
    # What is there counts, and not what a class of the user's says of its length.
    return list(itertools.islice(output, len(output) + 1))


def _check_reward(reward: Any, name: str, row: int, rows: dict[str, list]) -> float:
    if reward is None:
        return math.nan
    where = f"for prompt {show(rows['prompts'][row])} and completion {show(rows['completions'][row])}"
    try:
        number = reward.item() if isinstance(reward, (np.ndarray, np.generic, Tensor)) else reward
        # float() also reads texts, and NumPy's dates are numbers of nanoseconds.
        text = isinstance(number, (str, bytes, bytearray)) or isinstance(reward, (np.datetime64, np.timedelta64))
        value = None if text else float(number)
    except OverflowError:
        value = math.inf
    except FAILURES:  # `__float__` is the user's code
        value = None
    if value is None:
        raise TypeError(
            f"The reward function '{name}' returned {show(reward)} ({type(reward).__name__}) {where}; a number or None "
            "is expected."
        )
    # Rewards are kept in float32, where larger numbers are infinite.
    if not abs(value) <= torch.finfo(torch.float32).max:
        raise ValueError(
            f"The reward function '{name}' returned {value} {where}. Rewards must be finite; return None where the "
            "function does not apply."
        )
    return value
