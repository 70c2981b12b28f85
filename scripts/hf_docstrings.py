# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A griffe extension for `mkdocs.yml`: the markup of Hugging Face's docstrings, as plain Google style.

The trainer and its configuration are documented as TRL documents its own; mkdocstrings reads Google style.
"""

import re
from typing import Any

import griffe

_ARGUMENT = re.compile(r"^( +\w+) \((.*)\):$", re.MULTILINE)  # name (`str`, *optional*, defaults to `"auto"`):
_GROUP = re.compile(r"^ +> Parameters that control .*\n\n", re.MULTILINE)
_REFERENCE = re.compile(r"\[`~?(?:\w+\.)*(\w+)`\]")  # [`~trl.GRPOTrainer`]
_NOTE = re.compile(r"^> \[!NOTE\]\n((?:> .*\n)+)", re.MULTILINE)


def google_style(text: str) -> str:
    """Returns a docstring without references, groups and alerts that only Hugging Face's builder reads."""
    text = _GROUP.sub("", _REFERENCE.sub(r"`\1`", text))
    text = _NOTE.sub(lambda note: "Note:\n" + note[1].replace("> ", "    "), text)
    return _ARGUMENT.sub(lambda argument: f"{argument[1]} ({re.sub('[`*]', '', argument[2])}):", text)


class HuggingFaceDocstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = google_style(obj.docstring.value)
