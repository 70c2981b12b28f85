# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Win rate of one set of responses over another by a judge, with ties, both orders, and bootstrap intervals.

    python -m eval.win_rate --samples outputs/eval --first "VGF logit L=4 x8" --second "base x8" \
        --reward_model path/to/classifier

A judge is any callable `judge(prompts, pairs)` that returns one verdict per pair: 0 if the first response is better, 1
if the second is, -1 if neither. TRL's pairwise judges have this form, as does `RewardModelJudge`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from eval.metrics import Interval, bootstrap_interval
from eval.store import META_NAME, SampleStore
from eval.tasks import TaskOptions, load_task
from vgf_llm.trainer.score.rewards import RewardRunner

Judge = Callable[[list[Any], list[tuple[str, str]]], Sequence[int]]
FIRST, SECOND, TIE = 0, 1, -1


@dataclass(frozen=True)
class WinRate:
    """The outcome of a comparison.

    Attributes:
        interval: Win rate of the first side, a tie as half a win, with a bootstrap interval over prompts.
        wins: Prompts won in both orders, or in the one order that was asked.
        losses: Prompts lost likewise.
        ties: Prompts with a tie, or with verdicts that depend on the order.
        position_bias: How much more often the response shown first wins, -1 to 1; `None` if one order was asked.
    """

    interval: Interval
    wins: int
    losses: int
    ties: int
    position_bias: float | None


class RewardModelJudge:
    """Prefers the response of higher reward.

    Args:
        reward: A sequence classifier (path, hub id or model) or a reward function in TRL's signature.
        margin: Rewards that differ by no more than this are a tie.
        device: Where a classifier runs.
        chat_template_kwargs: Switches of the chat template, for classifiers that read conversations.

    Example:
        >>> judge = RewardModelJudge(lambda completions, **kwargs: [float(len(text)) for text in completions])
        >>> judge(["p", "p"], [("long", "no"), ("same", "size")])
        [0, -1]
    """

    def __init__(
        self,
        reward: Any,
        *,
        margin: float = 0.0,
        device: str = "cpu",
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if margin < 0:
            raise ValueError(f"`margin` must be >= 0, got {margin}.")
        self._runner = RewardRunner(reward, device=device, chat_template_kwargs=chat_template_kwargs)
        self.margin = margin

    def __call__(self, prompts: list[Any], pairs: list[tuple[str, str]]) -> list[int]:
        """Returns one verdict per pair."""
        scores = []
        for side in range(2):
            texts: list[Any] = [pair[side] for pair in pairs]
            if isinstance(prompts[0], list):
                texts = [[{"role": "assistant", "content": text}] for text in texts]
            scores.append(self._runner([{}] * len(pairs), prompts, texts, [[] for _ in pairs]).sum(dim=-1))
        lead = (scores[0] - scores[1]).tolist()
        return [TIE if abs(x) <= self.margin else FIRST if x > 0 else SECOND for x in lead]


def win_rate(
    judge: Judge,
    prompts: Sequence[Any],
    first: Sequence[str],
    second: Sequence[str],
    *,
    swap: bool = True,
    confidence: float = 0.95,
    seed: int = 0,
) -> WinRate:
    """Compares two responses per prompt.

    With `swap` every pair is judged in both orders. A prompt counts as won if both verdicts say so, and as half a win
    each way if they disagree, so that a judge that prefers a position gains nothing by it.

    Args:
        judge: The judge.
        prompts: B prompts.
        first: B responses of the side whose rate is returned.
        second: B responses of the other side.
        swap: Whether both orders are judged.
        confidence: Of the bootstrap interval.
        seed: Seed of the bootstrap.

    Returns:
        A `WinRate`.

    Raises:
        ValueError: For sides of different lengths, no prompts, or verdicts other than 0, 1 and -1.

    Example:
        >>> result = win_rate(lambda prompts, pairs: [0] * len(pairs), ["p", "q"], ["a", "b"], ["c", "d"])
        >>> result.interval.mean, result.ties, result.position_bias  # a judge that always takes the first
        (0.5, 2, 1.0)
    """
    if not len(prompts) == len(first) == len(second) or not prompts:
        raise ValueError(f"Need as many prompts as responses: {len(prompts)}, {len(first)} and {len(second)} came.")
    forward = _verdicts(judge, prompts, list(zip(first, second, strict=True)))
    points = torch.tensor([{FIRST: 1.0, SECOND: 0.0, TIE: 0.5}[v] for v in forward], dtype=torch.float64)
    bias = None
    if swap:
        backward = _verdicts(judge, prompts, list(zip(second, first, strict=True)))
        swapped = torch.tensor([{FIRST: 0.0, SECOND: 1.0, TIE: 0.5}[v] for v in backward], dtype=torch.float64)
        shown_first = [(v == FIRST) - (v == SECOND) for v in (*forward, *backward)]
        bias = sum(shown_first) / len(shown_first)
        points = (points + swapped) / 2
    wins, losses = int((points > 0.5).sum()), int((points < 0.5).sum())
    # One order won and the other tied counts as three quarters; opposite verdicts are half.
    return WinRate(
        interval=bootstrap_interval(points, confidence=confidence, seed=seed),
        wins=wins,
        losses=losses,
        ties=len(points) - wins - losses,
        position_bias=bias,
    )


def _verdicts(judge: Judge, prompts: Sequence[Any], pairs: list[tuple[str, str]]) -> list[int]:
    verdicts = [int(verdict) for verdict in judge(list(prompts), pairs)]
    if len(verdicts) != len(pairs) or any(verdict not in (FIRST, SECOND, TIE) for verdict in verdicts):
        raise ValueError(
            f"The judge must return one of 0 (first), 1 (second) or -1 (tie) for each of {len(pairs)} pairs; "
            f"it returned {len(verdicts)}, among them {sorted(set(verdicts))[:5]}."
        )
    return verdicts


def _responses(store: SampleStore, draw: str, seed: int) -> dict[int, str]:
    """The first response of a draw to every problem."""
    found = {key[2]: r["response"] for key, r in store.records.items() if key[:2] == (draw, seed) and key[3] == 0}
    if not found:
        draws = sorted({f"{key[0]} (seed {key[1]})" for key in store.records})
        raise ValueError(f"There are no samples of {draw!r} with seed {seed}; those there are: {', '.join(draws)}.")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Compares two draws of a results folder; returns 0, or 1 after an error that was printed."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.win_rate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", required=True, help="results folder of eval.run")
    parser.add_argument("--first", required=True, help="draw whose win rate is asked for")
    parser.add_argument("--second", required=True, help="draw it is compared with")
    parser.add_argument("--reward_model", required=True, help="classifier that judges; better one unseen in training")
    parser.add_argument("--margin", type=float, default=0.0, help="differences up to this are ties")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    args = parser.parse_args(argv)
    try:
        meta = Path(args.samples) / META_NAME
        if not meta.is_file():
            raise FileNotFoundError(f"{args.samples!r} is no results folder of eval.run: it has no {META_NAME}.")
        settings = json.loads(meta.read_text(encoding="utf-8"))["settings"]
        store = SampleStore(args.samples, settings)
        sides = [_responses(store, draw, args.seed) for draw in (args.first, args.second)]
        problems = sorted(sides[0].keys() & sides[1].keys())
        options = {name: settings[name] for name in TaskOptions.__dataclass_fields__ if name in settings}
        task = load_task(settings["task"], TaskOptions(**options))
        if task.marks["problems"] != settings["problems"]:
            raise ValueError(
                f"The problems of {args.samples!r} are {settings['problems']!r}; its settings load "
                f"{task.marks['problems']!r} now, so prompts and responses would not belong together."
            )
        prompts = task.problems["prompt"]
        switches = task.chat_template_kwargs
        judge = RewardModelJudge(args.reward_model, margin=args.margin, chat_template_kwargs=switches)
        texts = [[side[i] for i in problems] for side in sides]
        result = win_rate(judge, [prompts[i] for i in problems], *texts)
    except (ValueError, OSError) as error:
        print(f"eval.win_rate: error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(result), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
