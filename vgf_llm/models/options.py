# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The fields of `TransportConfig` as options: of `generate`, of a command line, of a request to a server."""

import inspect
import re
from dataclasses import dataclass
from typing import get_args, get_type_hints

from vgf_llm.models.config import TransportConfig


@dataclass(frozen=True)
class TransportOption:
    """One setting of transport."""

    kind: type  # `int`, `float`, `bool` or `str`; what `None` stands for is the saved model's own
    text: str  # what it means, a sentence or two


def _options() -> dict[str, TransportOption]:
    # What the docstring's section of arguments says about each.
    section = (inspect.getdoc(TransportConfig) or "").split("Args:\n", 1)[1].split("\n\n", 1)[0]
    texts = dict(re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, re.MULTILINE))
    options = {}
    for name, hint in get_type_hints(TransportConfig).items():
        kind = (get_args(hint) or (hint,))[0]  # of an optional one, what it is if it is given
        options[name] = TransportOption(kind, " ".join(texts[name].split()).replace("`", ""))
    return options


TRANSPORT_OPTIONS = _options()
TRANSPORT_FIELDS = tuple(TRANSPORT_OPTIONS)
