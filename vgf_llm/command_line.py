# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The parser of the commands: help that ends with examples. Types of options, and what errors say of names."""

import argparse
import difflib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", quote: str = "") -> str:
    """Returns a sentence, to be put behind an error, about the known name nearest to a wrong one, else `otherwise`.

    Example:
        >>> did_you_mean("--transport_setps", ["--step_size", "--transport_steps"])
        ' Did you mean --transport_steps?'
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {quote}{close[0]}{quote}?" if close else otherwise


def regular_expression(text: str) -> re.Pattern[str]:
    """The type of an option that takes a regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from error


def json_object(text: str) -> dict[str, Any]:
    """The type of an option that takes a JSON object."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} must be a JSON object, such as '{{\"enable_thinking\": false}}'")
    return found


class Parser(argparse.ArgumentParser):
    """An `argparse` parser; each of `examples` is what may stand behind the program's name."""

    def __init__(self, *, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        if examples:
            self.epilog = "examples:\n" + "\n".join(f"  {self.prog} {example}" for example in examples)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses as `argparse` does, and refuses what is left; subcommands do it with their own usage."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            name = rest[0].split("=")[0]
            self.error(f"unrecognized arguments: {' '.join(rest)}.{did_you_mean(name, self._option_string_actions)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Prints the message, not the pages of usage that many options make, and exits with 2."""
        if choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            message += did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
        self.exit(2, f"{self.prog}: error: {message}\n`{self.prog} --help` has the options and examples.\n")
