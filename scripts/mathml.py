# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A Markdown extension for `mkdocs.yml`: what `pymdownx.arithmatex` has found as equations is written as MathML.

MathML needs no script and no font from elsewhere, so that equations show without a network.
"""

import html
import re

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.postprocessors import Postprocessor

_EQUATION = re.compile(r"<(span|div) class=\"arithmatex\">\\([(\[])(.*?)\\[)\]]</\1>", re.DOTALL)


class _Equations(Postprocessor):
    def run(self, text: str) -> str:
        return _EQUATION.sub(_mathml, text)


def _mathml(match: re.Match[str]) -> str:
    equation = convert(html.unescape(match[3]).strip(), display="block" if match[2] == "[" else "inline")
    # Names of functions come as identifiers, which browsers put against what stands beside them.
    return re.sub(r"<mi>(log|exp)</mi>", r'<mo lspace="0.17em" rspace="0.08em">\1</mo>', equation)


class MathML(Extension):
    """Runs after arithmatex and after raw HTML is back in its place."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.postprocessors.register(_Equations(md), "mathml", 0)


def makeExtension(**kwargs: str) -> MathML:
    return MathML(**kwargs)
