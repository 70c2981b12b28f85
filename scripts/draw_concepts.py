# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Draws the figures of docs/concepts.md as SVG files, by `python scripts/draw_concepts.py`.

The bars are computed by `vgf_llm.functional`; a test compares the files with what this script draws.
"""

from pathlib import Path

import torch

from vgf_llm.functional import flow_direction, simplex_flow

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
INK, GREY, BLUE, LIGHT, ORANGE = "#222222", "#777777", "#3f51b5", "#e8eaf6", "#ef6c00"

# Next-token probabilities of an example: the base and the model behind its log-ratio value.
TOKENS = ("12", "15", "9", "7")
BASE, TRAINED = torch.tensor([0.45, 0.30, 0.15, 0.10]).double(), torch.tensor([0.25, 0.55, 0.15, 0.05]).double()


def text(x: float, y: float, words: str, size: int = 14, anchor: str = "middle", fill: str = INK) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{fill}">{words}</text>'


def box(x: float, y: float, width: float, height: float, *lines: str, fill: str = LIGHT) -> str:
    """A box with its lines of text in the middle."""
    frame = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{BLUE}"/>'
    top = y + height / 2 + 5 - 9 * (len(lines) - 1)
    return frame + "".join(text(x + width / 2, top + 18 * row, line) for row, line in enumerate(lines))


def arrow(*points: tuple[float, float], fill: str = INK) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{fill}" stroke-width="1.5" marker-end="url(#head)"/>'


def svg(width: int, height: int, title: str, *parts: str) -> str:
    head = '<path d="M0,0 L8,4 L0,8 z" fill="#222222"/>'
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" font-family="sans-serif" role="img">',
            f"<title>{title}</title>",
            f'<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">{head}</marker>'
            "</defs>",
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        )
    )


def value() -> str:
    """What training makes of rewards, and what decoding makes of the value."""
    return svg(
        760,
        250,
        "Training fits a value to rewards; decoding tilts the base by the value, as far as the budget says",
        text(20, 28, "training", 15, "start", GREY),
        box(20, 40, 130, 60, "prompts"),
        box(190, 40, 150, 60, "completions of", "base and value"),
        box(380, 40, 130, 60, "rewards"),
        box(550, 40, 190, 60, "value Q(state, token)", "log pi_theta - log mu"),
        arrow((150, 70), (188, 70)),
        arrow((340, 70), (378, 70)),
        arrow((510, 70), (548, 70)),
        arrow((640, 40), (640, 12), (265, 12), (265, 38)),
        text(450, 28, "the next round", 12, fill=GREY),
        text(20, 148, "decoding", 15, "start", GREY),
        box(20, 160, 200, 60, "base's next-token", "probabilities mu"),
        box(280, 160, 230, 60, "mu * exp(L * epsilon * Q)", "over the base's candidates"),
        box(570, 160, 170, 60, "sampled token"),
        arrow((220, 190), (278, 190)),
        arrow((510, 190), (568, 190)),
        arrow((645, 100), (645, 130), (395, 130), (395, 158)),
        text(395, 240, "L * epsilon: the budget of this call", 13, fill=ORANGE),
    )


def budget() -> str:
    """One next-token distribution at four budgets."""
    parts = [text(16, 22, "next-token probabilities of one state, at four budgets L * epsilon", 14, "start")]
    score = TRAINED.log() - BASE.log()
    for column, (steps, label) in enumerate(((0, "0: the base"), (2, "0.5"), (4, "1: the trained model"), (8, "2"))):
        left = 20 + 185 * column
        probabilities = simplex_flow(BASE.log(), score, step_size=0.25, num_steps=steps).exp()
        parts.append(text(left + 80, 215, label, 14, fill=ORANGE))
        for row, (token, p) in enumerate(zip(TOKENS, probabilities.tolist(), strict=True)):
            x, height = left + 40 * row, 130 * p / 0.8
            colour = BLUE if token == "15" else "#9fa8da"
            parts.append(f'<rect x="{x}" y="{175 - height:.1f}" width="32" height="{height:.1f}" fill="{colour}"/>')
            parts.append(text(x + 16, 170 - height, f"{p:.2f}", 11) + text(x + 16, 192, token, 13))
    return svg(760, 230, "A next-token distribution at the budgets 0, 0.5, 1 and 2", *parts)


def spaces() -> str:
    """Particles token by token, and whole responses that move together."""
    parts = [
        text(20, 26, 'space="logit": each token, as it is sampled', 14, "start"),
        *(box(20 + 88 * i, 60, 72, 40, word) for i, word in enumerate(("so", "12 + 3", "= 15", "?"))),
        *(arrow((92 + 88 * i, 80), (106 + 88 * i, 80)) for i in range(3)),
        *(arrow((56 + 88 * i, 150), (56 + 88 * i, 104)) for i in range(4)),
        *(text(56 + 88 * i, 168, "mu * exp(...)", 11) for i in range(4)),
        text(20, 205, "A particle is one response. Its distribution is", 12, "start", GREY),
        text(20, 222, "moved at every token, before the token is sampled.", 12, "start", GREY),
        text(420, 26, 'space="sequence_embedding": N whole responses', 14, "start"),
    ]
    start = torch.tensor([[455.0, 150.0], [500.0, 95.0], [530.0, 165.0], [575.0, 120.0]]).double()
    goal = torch.tensor([690.0, 80.0]).double()
    moved = start
    for _ in range(3):
        moved = moved + 34 * flow_direction(moved, (goal - moved) / 60, alpha=1.0, bandwidth=60.0)
    for (x0, y0), (x1, y1) in zip(start.tolist(), moved.tolist(), strict=True):
        parts += [f'<circle cx="{x0:.1f}" cy="{y0:.1f}" r="6" fill="#9fa8da"/>', arrow((x0, y0), (x1, y1))]
    parts += [
        f'<circle cx="{goal[0]:g}" cy="{goal[1]:g}" r="26" fill="none" stroke="{ORANGE}" stroke-dasharray="4 3"/>',
        text(690, 46, "higher value", 12, fill=ORANGE),
        text(420, 205, "A particle is one finished response. The N responses of a", 12, "start", GREY),
        text(420, 222, "prompt move along the value's gradient and become text again.", 12, "start", GREY),
    ]
    return svg(800, 240, "Particles of the spaces: next-token distributions, and whole responses", *parts)


FIGURES = {"concept_value.svg": value, "concept_budget.svg": budget, "concept_spaces.svg": spaces}


def main() -> None:
    for name, draw in FIGURES.items():
        (IMAGES / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
