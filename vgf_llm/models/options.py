# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The fields of `TransportConfig` as options: of `generate`, of a command line, of a request to a server."""

import inspect
import re
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vgf_llm.models.config import TransportConfig


@dataclass(frozen=True)
class TransportOption:
    """One setting of transport."""

    kind: type  # `int`, `float`, `bool` or `str`; what `None` stands for is the saved model's own
    text: str  # What it means, a sentence or two


def _options() -> dict[str, TransportOption]:
    hints = get_type_hints(TransportConfig)
    texts = _texts(inspect.getdoc(TransportConfig) or "")
    return {item.name: TransportOption(_kind(hints[item.name]), texts[item.name]) for item in fields(TransportConfig)}


def _kind(hint: Any) -> type:
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    if get_origin(hint) is Literal:
        return type(kinds[0])
    return kinds[0] if kinds else hint


def _texts(doc: str) -> dict[str, str]:
    """What the section of arguments in a docstring says about each."""
    section = doc.split("Args:\n", 1)[1].split("\n\n", 1)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).replace("`", "") for name, text in entries}


TRANSPORT_OPTIONS = _options()
TRANSPORT_FIELDS = tuple(TRANSPORT_OPTIONS)
