# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Reading a `VGFConfig`, and other dataclasses beside it, from a command line and a YAML file."""

import argparse
import copy
from typing import Any, get_type_hints

from trl import TrlParser

from vgf_llm.models.config import TransportConfig
from vgf_llm.trainer.config.transport import TRANSPORT_FIELDS, join_transport, read_transport
from vgf_llm.trainer.config.vgf_config import VGFConfig, refuse_removed


class VGFParser(TrlParser):
    """TRL's parser, which takes the fields of `TransportConfig` as options of their own too.

    They may stand beside the other settings (`--step_size 0.5`, `step_size: 0.5` in YAML) or in `transport`
    (`--transport '{"step_size": 0.5}'`, `transport: {step_size: 0.5}`). The command line wins over the YAML file. A
    field that another of the dataclasses has as well is that dataclass's alone.

    Args:
        dataclass_types: As for `TrlParser`; `VGFConfig` or a subclass of it is one of them.
        **kwargs: As for `TrlParser`.

    Example:
        >>> (args,) = VGFParser(VGFConfig).parse_args_and_config(
        ...     ["--output_dir", "out", "--use_cpu", "--bf16", "false", "--step_size", "0.5"]
        ... )
        >>> args.transport.step_size
        0.5
    """

    def __init__(self, dataclass_types: Any = VGFConfig, **kwargs: Any) -> None:
        super().__init__(dataclass_types, **kwargs)
        taken = {action.dest for action in self._actions}
        hints = get_type_hints(TransportConfig)
        group = self.add_argument_group("transport", "Fields of TransportConfig, kept in `transport`.")
        self._flat: dict[str, argparse.Action] = {}
        for name, item in TRANSPORT_FIELDS.items():
            if name in taken:
                continue
            option = copy.copy(item)  # the parser writes into the field that it is given
            option.type = hints[name]
            self._parse_dataclass_field(group, option)
        for action in self._actions:
            if action.dest in TRANSPORT_FIELDS and action.dest not in taken:
                action.default = argparse.SUPPRESS  # so that what was given can be told
                self._flat.setdefault(action.dest, action)
        self._of_file: dict[str, Any] = {}

    def set_defaults_with_config(self, **kwargs: Any) -> list[str]:
        """Takes the settings of a YAML file as defaults; returns those that no dataclass has."""
        for name in kwargs:
            refuse_removed(name)
        flat = {name: kwargs.pop(name) for name in self._flat if name in kwargs}
        self._of_file = {
            # YAML reads 1e-1 as text.
            name: self._get_value(self._flat[name], value) if isinstance(value, str) and name in self._flat else value
            for name, value in join_transport(read_transport(kwargs.pop("transport", None)), flat).items()
        }
        return super().set_defaults_with_config(**kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        """Parses a command line as `argparse` does, with the transport settings in one dict."""
        found, rest = super().parse_known_args(args, namespace)
        for text in rest:
            if text.startswith("--"):
                refuse_removed(text[2:].split("=")[0].replace("-", "_"))
        given = vars(found)
        flat = {name: given.pop(name) for name in self._flat if name in given}
        given["transport"] = {**self._of_file, **join_transport(read_transport(given.get("transport")), flat)} or None
        return found, rest

    def parse_dict(self, args: dict[str, Any], allow_extra_keys: bool = False) -> tuple[Any, ...]:
        """Reads the dataclasses from a dict (and so from JSON and YAML files), which may hold transport settings."""
        flat = {name: value for name, value in args.items() if name in self._flat}
        others = {name: value for name, value in args.items() if name not in flat}
        for name in others:
            refuse_removed(name)
        others["transport"] = join_transport(read_transport(others.get("transport")), flat)
        return super().parse_dict(others, allow_extra_keys)
