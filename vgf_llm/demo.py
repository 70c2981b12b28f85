# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`vgf demo`: a page with one prompt, answered by the base and under transport, at a budget that a slider sets.

`Comparison` generates, the functions after it write what the page shows, and `launch` serves the page (gradio).
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vgf_llm.generation.prompts import unknown_tokens_note
from vgf_llm.vgf_model import VGFModel

# Backgrounds of values above and below 0, and the underline of the KL: told apart with any colour vision.
_ABOVE, _BELOW, _KL = "0, 114, 178", "230, 159, 0", "204, 0, 119"
_CSS = """
.vgf-answer { white-space: pre-wrap; line-height: 2; overflow-wrap: anywhere; }
.vgf-answer span, .vgf-note span { padding: 1px 0; border-bottom: 3px solid transparent; }
.vgf-note { font-size: 90%; opacity: 0.8; }
.vgf-warning { border-left: 4px solid rgb(230, 159, 0); padding-left: 8px; }
table.vgf-particles { width: 100%; font-size: 90%; }
table.vgf-particles, table.vgf-particles * { border-color: var(--border-color-primary) !important; }
table.vgf-particles :is(td, th) { padding: 4px 8px; text-align: left; vertical-align: top; }
table.vgf-particles td:last-child { white-space: pre-wrap; overflow-wrap: anywhere; }
table.vgf-particles tr.chosen { background: rgba(0, 114, 178, 0.12); }
"""


@dataclass(frozen=True)
class Particle:
    """One response and its numbers."""

    pieces: tuple[str, ...]  # the text of each token; joined they are the response
    scores: tuple[float, ...]  # the value's raw score of each token
    kl: tuple[float, ...]  # KL to the base spent at each token, in nats
    value: float
    chosen: bool  # whether its value is the highest among the particles


class Comparison:
    """Answers to prompts at several budgets; the same question twice is computed once.

    Budgets differ in L alone: the step size and the other settings of transport are the model's own. Responses are
    moved token by token (`space="logit"`), and of several the one of the highest value is chosen (`selection="value"`).

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        encode: Returns `input_ids` and `attention_mask`, `[1, P]`, of a prompt; raises ValueError for one it refuses.
        **options: Further arguments of `VGFModel.generate`, such as `max_new_tokens`.
    """

    def __init__(
        self,
        model: VGFModel,
        tokenizer: PreTrainedTokenizerBase,
        encode: Callable[[str], Mapping[str, Tensor]],
        **options: Any,
    ) -> None:
        self.model, self.tokenizer, self.encode, self.options = model, tokenizer, encode, options
        own = model.transport.transport_steps or 4
        # The budgets of the curve: the base, and half, once, twice and four times the model's own L.
        self.budgets = sorted({0, own // 2, own, 2 * own, 4 * own})
        self.particles = lru_cache(maxsize=256)(self._particles)

    def _particles(self, prompt: str, transport_steps: int, num_particles: int, seed: int) -> tuple[Particle, ...]:
        inputs = self.encode(prompt)
        torch.manual_seed(seed)
        output: Any = self.model.generate(
            inputs["input_ids"],
            inputs["attention_mask"],
            transport_steps=transport_steps,
            num_particles=num_particles,
            space="logit",
            selection="value",
            do_sample=True,
            return_dict_in_generate=True,
            **self.options,
        )
        start, found = inputs["input_ids"].shape[1], []
        for index, length in enumerate(output.lengths[0].tolist()):
            ids = output.particle_sequences[0, index, start : start + length].tolist()
            scores, kl = (x[0, index, :length].float().tolist() for x in (output.token_scores, output.kl))
            value, chosen = float(output.values[0, index]), index == int(output.chosen[0])
            found.append(Particle(_pieces(self.tokenizer, ids), tuple(scores), tuple(kl), value, chosen))
        return tuple(found)

    def note(self, prompt: str) -> str:
        """Returns a line about the prompt's unknown tokens, empty without any."""
        return unknown_tokens_note(self.tokenizer, self.encode(prompt)["input_ids"][0].tolist())

    def curve(self, prompt: str, transport_steps: int, num_particles: int, seed: int) -> pd.DataFrame:
        """Returns columns `L`, `value` and `KL` (of a response, in nats), each the mean of the particles."""
        rows = []
        for steps in sorted({*self.budgets, transport_steps}):
            found = self.particles(prompt, steps, num_particles, seed)
            rows.append((steps, fmean(one.value for one in found), fmean(sum(one.kl) for one in found)))
        return pd.DataFrame(rows, columns=["L", "value", "KL"])


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """The text that each token adds; a character of several tokens stands at the last of them."""
    pieces, before = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        whole = end == len(ids) or not text.endswith("\ufffd")
        pieces.append(text[len(before) :] if whole else "")
        before = text if whole else before
    return tuple(pieces)


def answer_html(title: str, particle: Particle, shown: Sequence[Particle]) -> str:
    """Returns a response, each token with a background by its value and an underline by its KL.

    Full colour is the largest number of the responses in `shown`, so that their colours compare.
    """
    most_value = max((abs(x) for one in shown for x in one.scores), default=0) or 1
    most_kl = max((x for one in shown for x in one.kl), default=0) or 1
    spans = []
    for piece, score, kl in zip(particle.pieces, particle.scores, particle.kl, strict=True):
        back = _rgba(_ABOVE if score > 0 else _BELOW, 0.6 * abs(score) / most_value)
        style = f"background: {back}; border-bottom-color: {_rgba(_KL, kl / most_kl)}"
        text = escape(piece).replace("\n", "\u21b5\n")
        spans.append(f'<span style="{style}" title="value {score:+.3f}, KL {kl:.3f} nats">{text}</span>')
    numbers = f"value {particle.value:.3f}, KL to the base {sum(particle.kl):.3f} nats, {len(spans)} tokens"
    head = f'<h3>{escape(title)}</h3><div class="vgf-note">{numbers}</div>'
    return f'{head}<div class="vgf-answer">{"".join(spans)}</div>'


def particles_html(title: str, particles: Sequence[Particle]) -> str:
    """Returns a table of the responses, the highest value first and the chosen one marked."""
    rows = [
        f'<tr class="{"chosen" if one.chosen else ""}"><td>{one.value:.3f}</td><td>{sum(one.kl):.3f}</td>'
        f"<td>{escape(''.join(one.pieces))}</td></tr>"
        for one in sorted(particles, key=lambda one: (-one.value, not one.chosen))
    ]
    head = "<tr><th>value</th><th>KL</th><th>response</th></tr>"
    return f'<h3>{escape(title)}</h3><table class="vgf-particles">{head}{"".join(rows)}</table>'


def _rgba(colour: str, opacity: float) -> str:
    return f"rgba({colour}, {min(max(opacity, 0.0), 1.0):.2f})"


_LEGEND = (
    f'<div class="vgf-note">A token\'s value: <span style="background: {_rgba(_ABOVE, 0.6)}">above 0</span>, '
    f'<span style="background: {_rgba(_BELOW, 0.6)}">below 0</span>. KL to the base that it spent: <span '
    f'style="border-bottom-color: {_rgba(_KL, 1)}">underlined</span>. Full colour is the largest of both answers. '
    "Hold the pointer over a token to read its numbers.</div>"
)


def import_gradio() -> Any:
    """Returns gradio, its telemetry off; raises ImportError, with the extra to install, if it is not there."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        import gradio
    except ImportError as error:
        raise ImportError('The demo needs gradio: pip install "vgf-llm[demo]".') from error
    return gradio


def check_address(host: str, port: int | None) -> None:
    """Raises ValueError for an address that a server cannot listen on, such as a port that is in use."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended is no obstacle
            probe.bind((host, port or 0))
    except (OSError, OverflowError) as error:
        where = f"`--host` {host}" if port is None else f"`--port` {port} of `--host` {host}"
        raise ValueError(
            f"A server cannot listen on {where}: {error}. Name another, or leave both out: the page then takes the "
            "first free port from 7860 on, on this machine alone."
        ) from error


def build_page(comparison: Comparison, name: str, prompt: str = "") -> Any:
    """Returns the page as gradio's `Blocks`; `name` is that of the model, `prompt` what stands in the box at first."""
    gr = import_gradio()
    own = comparison.model.transport

    def show(prompt: str, *numbers: float) -> Iterator[tuple[Any, ...]]:
        if not prompt:
            yield "", "", "", None, None, "", ""
            return
        steps, count, seed = map(int, numbers)
        try:
            note = comparison.note(prompt)
            base, moved = (comparison.particles(prompt, each, count, seed) for each in (0, steps))
            shown = [one for one in (*base, *moved) if one.chosen]
            warning = f'<div class="vgf-warning">{escape(note)}</div>' if note else ""
            titles = "Base, L = 0", f"Transported, L = {steps}"
            answers = [warning, *(answer_html(title, one, shown) for title, one in zip(titles, shown, strict=True))]
            tables = [particles_html(f"Particles: {x}", y) for x, y in zip(titles, (base, moved), strict=True)]
            yield *answers, gr.skip(), gr.skip(), *tables
            curve = comparison.curve(prompt, steps, count, seed)
        except ValueError as error:  # what the template or generation refuses
            raise gr.Error(str(error)) from error
        yield *answers, curve, curve, *tables

    with gr.Blocks(title=f"vgf demo: {name}", analytics_enabled=False) as page:
        gr.HTML(f"<h2>{escape(name)}</h2>")
        with gr.Row(equal_height=True):
            with gr.Column(scale=3):
                box = gr.Textbox(prompt, label="Prompt", lines=5, elem_id="prompt")
                button = gr.Button("Answer", variant="primary")
            with gr.Column(scale=2):
                label = f"Step budget L, at step size {own.step_size:g}; 0 is the base"
                most = comparison.budgets[-1]
                steps = gr.Slider(0, most, own.transport_steps, step=1, label=label, elem_id="steps")
                label = "Particles N; the one of the highest value answers"
                count = gr.Slider(1, 16, 4, step=1, label=label, elem_id="particles")
                seed = gr.Number(0, label="Seed of the sampling", precision=0, minimum=0, elem_id="seed")
        outputs = [gr.HTML(elem_id="note")]
        with gr.Row():
            outputs += [gr.HTML(elem_id=name) for name in ("base", "transported")]
        gr.HTML(_LEGEND)
        with gr.Row():
            for column, title in (("value", "Value over L"), ("KL", "KL to the base over L, in nats")):
                title += " (mean of the particles)"
                outputs.append(gr.LinePlot(x="L", y=column, title=title, height=240, elem_id=f"curve-{column}"))
        with gr.Row():
            outputs += [gr.HTML(elem_id=name) for name in ("base-particles", "transported-particles")]
        triggers = [page.load, button.click, steps.change, count.change, seed.change]
        inputs = [box, steps, count, seed]
        gr.on(triggers, show, inputs, outputs, trigger_mode="always_last", show_progress="minimal")
    return page


def launch(page: Any, *, host: str, port: int | None, share: bool) -> None:
    """Serves a page until it is interrupted; without a port at the first free one from 7860 on."""
    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}  # the reader's own
    theme = import_gradio().themes.Default(primary_hue="indigo", **fonts)
    options = {"quiet": True, "ssr_mode": False, "footer_links": [], "prevent_thread_lock": True}
    _, local, public = page.launch(server_name=host, server_port=port, share=share, theme=theme, css=_CSS, **options)
    print(f"vgf demo: {public or local} (Ctrl+C ends it)", flush=True)
    page.block_thread()
