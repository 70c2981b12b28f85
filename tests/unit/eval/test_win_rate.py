# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Win rates: both orders, ties, judges that prefer a position, and bad verdicts."""

from collections.abc import Sequence
from typing import Any

import pytest

from eval.win_rate import RewardModelJudge, win_rate


def longer(prompts: Sequence[Any], pairs: Sequence[tuple[str, str]]) -> list[int]:
    return [-1 if len(a) == len(b) else int(len(b) > len(a)) for a, b in pairs]


def test_wins_losses_and_ties_by_hand() -> None:
    result = win_rate(longer, list("pqrs"), ["aaa", "a", "aa", "aaaa"], ["a", "aaa", "bb", "b"])
    assert (result.wins, result.losses, result.ties) == (2, 1, 1)
    assert result.interval.mean == (1 + 0 + 0.5 + 1) / 4
    assert result.position_bias == 0
    assert result.interval.low < result.interval.mean < result.interval.high


def test_sides_exchanged_give_the_opposite_rate() -> None:
    first, second = ["aaa", "a", "aa"], ["a", "aaa", "b"]
    forth, back = win_rate(longer, list("pqr"), first, second), win_rate(longer, list("pqr"), second, first)
    assert forth.interval.mean == pytest.approx(1 - back.interval.mean)


def test_a_judge_that_prefers_a_position_decides_nothing() -> None:
    def second(prompts: Sequence[Any], pairs: Sequence[tuple[str, str]]) -> list[int]:
        return [1] * len(pairs)

    result = win_rate(second, list("pq"), ["a", "b"], ["c", "d"])
    assert (result.interval.mean, result.ties, result.position_bias) == (0.5, 2, -1.0)
    alone = win_rate(second, list("pq"), ["a", "b"], ["c", "d"], swap=False)
    assert (alone.interval.mean, alone.losses, alone.position_bias) == (0.0, 2, None)


def test_one_order_won_and_one_tied_is_three_quarters() -> None:
    def judge(prompts: Sequence[Any], pairs: Sequence[tuple[str, str]]) -> list[int]:
        return [0 if pair[0] == "good" else -1 for pair in pairs]

    result = win_rate(judge, ["p"], ["good"], ["bad"])
    assert (result.interval.mean, result.wins) == (0.75, 1)


def test_a_reward_judge_has_a_margin_and_reads_conversations() -> None:
    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        return [float(len(c if isinstance(c, str) else c[0]["content"])) for c in completions]

    assert RewardModelJudge(reward, margin=1)(["p"] * 3, [("aaa", "aa"), ("aaa", "a"), ("a", "aaa")]) == [-1, 0, 1]
    chat = [{"role": "user", "content": "p"}]
    assert RewardModelJudge(reward)([chat], [("a", "aa")]) == [1]
    with pytest.raises(ValueError, match="`margin` must be >= 0, got -1"):
        RewardModelJudge(reward, margin=-1)


def test_bad_verdicts_and_sides_are_refused() -> None:
    with pytest.raises(ValueError, match=r"it returned 1, among them \[2\]"):
        win_rate(lambda prompts, pairs: [2], ["p"], ["a"], ["b"])
    with pytest.raises(ValueError, match="each of 2 pairs; it returned 1"):
        win_rate(lambda prompts, pairs: [0], ["p", "q"], ["a", "b"], ["c", "d"])
    with pytest.raises(ValueError, match="as many prompts as responses: 1, 2 and 1 came"):
        win_rate(longer, ["p"], ["a", "b"], ["c"])
