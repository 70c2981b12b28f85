# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Checks of single settings by their annotations and by `tables`. Every error names the setting."""

import dataclasses
import json
import math
import os
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from transformers import TrainingArguments

from vgf_llm.functional._checks import shown
from vgf_llm.trainer.config.tables import CHOICES, RANGES

_SCALARS = {bool: "True or False", int: "an integer", float: "a number", str: "text", NoneType: "None"}
_INHERITED = {item.name for item in dataclasses.fields(TrainingArguments)}
# transformers takes more than it says: lists and True of the former, True of the latter.
_WIDER = ("fsdp", "hub_token")
_DICTS = (
    "model_init_kwargs", "generation_kwargs", "chat_template_kwargs", "transformers_continuous_batching_config",
    "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs", "lr_scheduler_kwargs",
)  # fmt: skip
_REMOVED_CHOICES = {
    ("value_parametrization", "v_head"): " The value of states ('v_head') was removed with transport in the space of "
    "hidden states, which gained nothing in the project's measurements; 'log_ratio', 'bilinear' and 'vocab' are values "
    "of tokens.",
}


def check_fields(config: Any) -> None:
    """Check type and range of every setting of a configuration, before anything is made of them.

    Integers given for numbers of its own and of GRPOConfig become floats.
    """
    annotations = get_type_hints(type(config))
    for item in dataclasses.fields(config):
        name, value = item.name, getattr(config, item.name)
        hint = annotations[name]
        kinds = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
        if name in RANGES:
            value = RANGES[name].read(name, value)
            setattr(config, name, value)
        elif name in CHOICES:
            check_field(name, value)
        elif name in _DICTS:
            _check_dict(name, value)
        elif name in config._VALID_DICT_FIELDS:
            _check_dict_or_file(name, value)
        elif name == "reward_weights":
            _check_weights(name, value)
        elif enums := [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)]:
            _check_member(name, value, enums[0])
        elif kinds <= _SCALARS.keys() and name not in _WIDER:
            _check_scalar(name, value, kinds)
        # transformers' samplers take a temperature of 1.0, but not of 1.
        if float in kinds and type(value) is int and name not in _INHERITED:
            setattr(config, name, float(value))


def check_field(name: str, value: Any, *, like: str | None = None) -> None:
    """Check a value by the tables of ranges and choices, by the entry of the setting `like` if that is another one."""
    like = like or name
    if like in RANGES:
        RANGES[like].check(name, value)
    elif not isinstance(value, (str, NoneType)) or value not in CHOICES[like]:
        why = _REMOVED_CHOICES.get((like, value), "") if isinstance(value, str) else ""
        raise ValueError(f"`{name}` must be one of {list(CHOICES[like])}, got {shown(value)}.{why}")


def _check_scalar(name: str, value: Any, kinds: set[type]) -> None:
    """Refuses a value of none of the types; bool is no int, an int is a number, and a path is text."""
    allowed = kinds | ({int} if float in kinds else set()) | ({os.PathLike} if str in kinds else set())
    fits = bool in kinds if isinstance(value, bool) else isinstance(value, tuple(allowed))
    if not fits:
        what = " or ".join(text for kind, text in _SCALARS.items() if kind in kinds)
        raise TypeError(f"`{name}` must be {what}, got {shown(value)} ({type(value).__name__}).")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"`{name}` must be within 64 bits, got {shown(value)}.")


def _check_member(name: str, value: Any, enum: type[Enum]) -> None:
    try:
        enum(value)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` must be one of {[member.value for member in enum]}, got {shown(value)}.") from None


def _check_dict(name: str, value: Any) -> None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"`{name}` must be a dict or its JSON text, got {shown(value)} ({error}).") from None
    if value is not None and not (isinstance(value, dict) and all(isinstance(key, str) for key in value)):
        raise TypeError(f"`{name}` must be a dict with names as keys, or None, got {shown(value)}.")


def _check_dict_or_file(name: str, value: Any) -> None:
    if isinstance(value, str) and value.startswith("{"):
        _check_dict(name, value)
    elif isinstance(value, (int, float, complex, bytes, list, tuple)):  # an open file, to Python, some of them
        raise TypeError(f"`{name}` must be a dict, its JSON text, the path of a file or None, got {shown(value)}.")


def _check_weights(name: str, value: Any) -> None:
    numbers = isinstance(value, (list, tuple)) and all(
        isinstance(weight, (int, float)) and not isinstance(weight, bool) for weight in value
    )
    if value is not None and not numbers:
        raise TypeError(f"`{name}` must be a list of numbers, one per reward function, or None, got {shown(value)}.")
    if value is not None and not all(abs(weight) < math.inf for weight in value):
        raise ValueError(f"`{name}` must be finite, got {shown(value)}.")
