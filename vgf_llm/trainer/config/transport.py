# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Transport settings as they are given to a configuration: nested in `transport`, or beside the other settings."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from vgf_llm.command_line import did_you_mean
from vgf_llm.functional._checks import shown
from vgf_llm.models.config import TransportConfig

TRANSPORT_FIELDS = {item.name: item for item in dataclasses.fields(TransportConfig)}


def read_transport(value: Any) -> dict[str, Any]:
    """Read what was given as `transport`: a `TransportConfig`, a dict of its fields, JSON text of one, or `None`.

    Example:
        >>> read_transport('{"step_size": 0.5}')
        {'step_size': 0.5}
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"`transport` must be a dict or its JSON text, got {shown(value)} ({error}).") from None
    if isinstance(value, TransportConfig):
        return dataclasses.asdict(value)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"`transport` must be a TransportConfig, a dict of its fields or None, got {shown(value)}.")
    for name in value:
        if name not in TRANSPORT_FIELDS:
            otherwise = f" Its fields are {list(TRANSPORT_FIELDS)}."
            raise ValueError(
                f"`transport` has no field {shown(name)}."
                + did_you_mean(str(name), TRANSPORT_FIELDS, otherwise, quote="'")
            )
    return dict(value)


def join_transport(nested: dict[str, Any], flat: dict[str, Any]) -> dict[str, Any]:
    """Put the settings of `transport` and those given under their own names into one dict."""
    for name in nested.keys() & flat.keys():
        if nested[name] != flat[name]:
            raise ValueError(
                f"`{name}` is {shown(flat[name])}, but {shown(nested[name])} in `transport`. Give it once."
            )
    return {**nested, **flat}
