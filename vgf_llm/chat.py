# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`vgf chat`: a conversation in the terminal, at a budget that a line such as `/budget 2` changes."""

import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase, TextStreamer

from vgf_llm.command_line import did_you_mean
from vgf_llm.generation.prompts import unknown_tokens_note
from vgf_llm.models.config import TransportConfig
from vgf_llm.models.options import TRANSPORT_FIELDS
from vgf_llm.vgf_model import VGFModel

HELP = """\
/budget 2        L * epsilon of the next answers; 0 is the base model
/NAME VALUE      any option of `vgf chat` by its name, such as /num_particles 4 or /temperature 0.7
/settings        what the next answer is generated with
/clear           forget the conversation
/help            these lines
/quit            end, as Ctrl+D does; Ctrl+C stops an answer"""
_SWITCHES = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


class Conversation:
    """Messages so far, and the settings of the next answer.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        encode: Returns `input_ids` and `attention_mask`, `[1, P]`, of messages; raises ValueError for those that it
            refuses.
        kinds: The settings that a line can change, with their types.
        system_prompt: The first message.
        **settings: Arguments of `VGFModel.generate`.

    Raises:
        ValueError: For settings that leave no single answer.
    """

    def __init__(
        self,
        model: VGFModel,
        tokenizer: PreTrainedTokenizerBase,
        encode: Callable[[list[dict[str, str]]], Mapping[str, Tensor]],
        *,
        kinds: Mapping[str, type],
        system_prompt: str | None = None,
        **settings: Any,
    ) -> None:
        self.model, self.tokenizer, self.encode, self.kinds = model, tokenizer, encode, kinds
        self.settings = settings
        self._system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        self.messages = list(self._system)
        self._check(settings)

    @property
    def transport(self) -> TransportConfig:
        """Settings of transport of the next answer."""
        return self._check(self.settings)

    def _check(self, settings: Mapping[str, Any]) -> TransportConfig:
        given = {name: settings[name] for name in TRANSPORT_FIELDS if name in settings}
        transport = replace(self.model.transport, **given)
        if transport.selection == "none":
            raise ValueError("`selection` is 'none', which leaves every particle; a conversation needs one answer.")
        return transport

    def answer(self, text: str) -> str:
        """Generates the answer to a message, printing it, and returns a line about what it cost.

        Raises:
            ValueError: For what the chat template or generation refuses; the message is forgotten then.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        inputs = self.encode(messages)
        alone = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if note := unknown_tokens_note(self.tokenizer, alone):
            print(f"warning: {note}", file=sys.stderr)
        transport = self.transport
        streams = transport.num_particles == 1 and transport.space == "logit"
        output: Any = self.model.generate(
            inputs["input_ids"],
            inputs["attention_mask"],
            streamer=TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True) if streams else None,
            return_dict_in_generate=True,
            **self.settings,
        )
        chosen = int(output.chosen[0])
        length, start = int(output.lengths[0, chosen]), inputs["input_ids"].shape[1]
        ids = output.particle_sequences[0, chosen, start : start + length]
        said = self.tokenizer.decode(ids, skip_special_tokens=True)
        if not streams:
            print(said)
        self.messages = [*messages, {"role": "assistant", "content": said}]
        kl = "" if output.kl is None else f", KL to the base {float(output.kl[0, chosen].sum()):.2f} nats"
        return f"[{_budget(transport)}, {length} tokens{kl}]"

    def command(self, line: str) -> str:
        """Carries out a line that begins with a slash, and returns what it says.

        Raises:
            ValueError: For an unknown command, or a value that its setting does not take.
        """
        name, _, value = line[1:].partition(" ")
        value = value.strip()
        if name == "help":
            return HELP
        if name == "clear":
            self.messages = list(self._system)
            return "The conversation is forgotten."
        if name == "settings":
            given = {name: value for name, value in self.settings.items() if name not in TRANSPORT_FIELDS}
            return "\n".join(f"{name} {value}" for name, value in {**vars(self.transport), **given}.items())
        if name == "budget":
            return self._set_budget(value) if value else _budget(self.transport)
        if name not in self.kinds:
            known = ["/budget", "/settings", "/clear", "/help", "/quit", *(f"/{name}" for name in self.kinds)]
            raise ValueError(f"There is no command /{name}.{did_you_mean(f'/{name}', known, ' /help lists them.')}")
        if value:
            self._change(**{name: _read(name, value, self.kinds[name])})
        return f"{name} {self.settings.get(name, vars(self.transport).get(name, 'as the model has it'))}"

    def _set_budget(self, text: str) -> str:
        budget, step_size = _read("budget", text, float), self.transport.step_size
        if not 0 <= budget < math.inf:
            raise ValueError(f"`budget` must be >= 0 and finite, got {text}.")
        if budget == 0:
            self._change(transport_steps=0)
        else:
            steps = max(1, round(budget / step_size))  # whole steps; the step size makes up the rest
            self._change(transport_steps=steps, step_size=budget / steps)
        now = self.transport
        return f"{_budget(now)}: transport_steps {now.transport_steps}, step_size {now.step_size:g}"

    def _change(self, **given: Any) -> None:
        changed = {**self.settings, **given}
        self._check(changed)
        self.settings = changed


def _budget(transport: TransportConfig) -> str:
    return f"L * epsilon = {transport.transport_steps * transport.step_size:g}"


def _read(name: str, text: str, kind: type) -> Any:
    try:
        return _SWITCHES[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        allowed = ", ".join(_SWITCHES) if kind is bool else "a whole number" if kind is int else "a number"
        raise ValueError(f"`{name}` takes {allowed}, got {text!r}.") from error


def converse(conversation: Conversation) -> None:
    """Reads messages from standard input and prints answers, until `/quit` or the input's end."""
    terminal = sys.stdin.isatty()
    if terminal:
        if importlib.util.find_spec("readline"):
            importlib.import_module("readline")  # arrow keys and history in `input`
        print(f"{_budget(conversation.transport)}. /help lists the commands, Ctrl+D ends.")
    while True:
        try:
            line = input("> " if terminal else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if not line:
            continue
        try:
            print(conversation.command(line) if line.startswith("/") else conversation.answer(line), flush=True)
        except KeyboardInterrupt:
            print("\n[stopped; the message is forgotten]")
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
