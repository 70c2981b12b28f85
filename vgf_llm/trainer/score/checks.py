# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Checks of reward functions and of what they return, and the errors that name the function and show the prompt."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vgf_llm._compat import get_callable_name, get_config_model_id

# A model id or path, a sequence classifier, or a callable that returns one number (or None) per completion.
RewardFunc = str | nn.Module | Callable[..., Any]

CALL_ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
_SHOWN_CHARACTERS = 500


def as_list_of_funcs(reward_funcs: RewardFunc | list[RewardFunc] | None) -> list[Any]:
    """Return the reward functions as a new list, or raise `ValueError` or `TypeError` for what cannot be one."""
    funcs = [] if reward_funcs is None else list(reward_funcs) if isinstance(reward_funcs, list) else [reward_funcs]
    if not funcs:
        raise ValueError(
            f"No reward source provided: `reward_funcs` is {reward_funcs!r}. Pass a reward function, a reward model, "
            "or a list of them."
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
        accepted = keywords_of(func)[1]
        refused = [] if accepted is None else [name for name in CALL_ARGUMENTS if name not in accepted]
        if refused:
            raise TypeError(
                f"The reward function '{func_name(func)}' does not accept the argument(s) {refused} that reward "
                "functions are called with. Add `**kwargs` to its signature."
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


def keywords_of(func: Any) -> tuple[list[str], set[str] | None]:
    """Required keywords of a callable, and accepted ones; `None` for the latter where anything is accepted."""
    if isinstance(func, (str, nn.Module)):
        return [], None
    try:
        parameters = inspect.signature(func).parameters.values()
    except ValueError:  # built-in callables may have no signature to read
        return [], None
    named = [item for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)]
    required = [item.name for item in named if item.default is item.empty]
    anything = any(item.kind is item.VAR_KEYWORD for item in parameters)
    return required, None if anything else {item.name for item in named}


def func_name(func: Any) -> str:
    """Return the name of a reward function in metrics, which is TRL's."""
    if isinstance(func, nn.Module):
        return get_config_model_id(func.config).split("/")[-1]
    return get_callable_name(func)


def check_output(output: Any, name: str, rows: dict[str, list]) -> list[float]:
    """Turn what a reward function returned into floats, NaN for `None`.

    Args:
        output: Sequence, array or tensor of numbers and `None`.
        name: Name of the function.
        rows: Arguments of the call, one value per completion; `prompts` and `completions` are shown in errors.

    Returns:
        One float per completion.

    Raises:
        ValueError: If the number of rewards is wrong, or one is NaN or infinite.
        TypeError: If `output` is no sequence of numbers and `None`.

    Example:
        >>> check_output([1, None], "f", {"prompts": ["a", "b"], "completions": ["c", "d"]})
        [1.0, nan]
    """
    expected = len(rows["prompts"])
    if inspect.isawaitable(output):
        if inspect.iscoroutine(output):
            output.close()
        raise TypeError(f"The reward function '{name}' returned an awaitable. Define it with `async def`.")
    if hasattr(output, "tolist"):  # tensors and arrays
        output = output.tolist()
    if isinstance(output, (str, bytes)) or not isinstance(output, Sequence):
        raise TypeError(
            f"The reward function '{name}' returned {show(output)} ({type(output).__name__}); a list of {expected} "
            "numbers (or None) is expected, one per completion."
        )
    if len(output) != expected:
        raise ValueError(
            f"The reward function '{name}' returned {len(output)} rewards, but {expected} were expected (one per "
            "prompt-completion pair). Make it return exactly one reward per completion."
        )
    return [_check_reward(reward, name, row, rows) for row, reward in enumerate(output)]


def _check_reward(reward: Any, name: str, row: int, rows: dict[str, list]) -> float:
    if reward is None:
        return math.nan
    where = f"prompt {show(rows['prompts'][row])} and completion {show(rows['completions'][row])}"
    try:
        value = float(reward)
    except (TypeError, ValueError):
        value = None
    if value is None or isinstance(reward, str):  # float() also reads text
        raise TypeError(
            f"The reward function '{name}' returned {show(reward)} ({type(reward).__name__}) for {where}; a number or "
            "None is expected."
        )
    # Rewards are kept in float32, where larger numbers are infinite.
    if not abs(value) <= torch.finfo(torch.float32).max:
        raise ValueError(
            f"The reward function '{name}' returned {value} for {where}. Rewards must be finite; return None where the "
            "function does not apply."
        )
    return value


def call_func(func: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call a synchronous reward function; one that yields its rewards is run to the end, so that it raises here."""
    output = func(**arguments)
    return list(output) if inspect.isgenerator(output) else output


def find_failing_row(func: Any, rows: dict[str, list], shared: dict[str, Any]) -> int | None:
    """The first row that fails alone. Logging is off, so that nothing is logged twice."""
    silent = {**shared, "log_extra": ignore, "log_metric": ignore}
    for row in range(len(rows["prompts"])):
        try:
            call_func(func, {**{name: [values[row]] for name, values in rows.items()}, **silent})
        except Exception:  # the one that is looked for
            return row
    return None


def describe_failure(name: str, error: Exception, rows: dict[str, list], culprit: int | None) -> str:
    """Say which function failed, how, and on what: one completion if `culprit` is known, else the batch."""
    if culprit is None:
        where = f"First prompt of the batch of {len(rows['prompts'])}: {show(rows['prompts'][0])}"
    else:
        where = (
            f"It fails on completion {culprit} of the batch. Prompt: {show(rows['prompts'][culprit])} Completion: "
            f"{show(rows['completions'][culprit])}"
        )
    return f"The reward function '{name}' raised {type(error).__name__}: {error}. {where}"


def show(value: Any) -> str:
    """Return the representation of a value for an error message, shortened."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}... ({len(text)} characters)"


def ignore(*args: Any) -> None:
    """Take the place of a logging function that was not given."""
