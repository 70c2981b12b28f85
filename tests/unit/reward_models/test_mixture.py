# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Weighted sums of rewards, with the rows that functions skip."""

import math
from typing import Any

import pytest

from reward_models import WeightedMixture, get_repetition_reward, thinking_reward


def length(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def only_b(completions: list[str], **kwargs: Any) -> list[float | None]:
    return [1.0 if "b" in text else None for text in completions]


def nothing(completions: list[str], **kwargs: Any) -> list[float]:
    return [math.nan for _ in completions]


def test_weighted_sum_leaves_out_what_is_not_scored() -> None:
    assert WeightedMixture([length, only_b], weights=[0.5, -2.0])(completions=["a", "ab"]) == [0.5, -1.0]
    assert WeightedMixture([only_b, nothing])(completions=["a", "ab"]) == [None, 1.0]
    assert WeightedMixture([nothing])(completions=["a"]) == [None]
    assert WeightedMixture([length])(completions=[]) == []


def test_it_is_what_the_trainer_computes_from_the_parts() -> None:
    from vgf_llm.trainer.score.rewards import RewardRunner, combine

    texts = ["a", "ab", "abb"]
    parts = RewardRunner([length, only_b], reward_weights=[0.5, 2.0])
    whole = RewardRunner(WeightedMixture([length, only_b], weights=[0.5, 2.0]))
    arguments = ([{}] * 3, ["p"] * 3, texts, [[1]] * 3)
    assert combine(parts(*arguments), parts.reward_weights).tolist() == whole(*arguments)[:, 0].tolist()
    assert whole.reward_func_names == ["weighted_mixture"]


def test_parts_are_logged_and_columns_handed_over() -> None:
    seen: dict[str, float] = {}

    def column(completions: list[str], bonus: list[float], **kwargs: Any) -> list[float]:
        return bonus

    mixture = WeightedMixture([length, only_b, nothing, column], name="mix")
    assert mixture(prompts=["p"] * 2, completions=["a", "ab"], bonus=[3.0, 5.0], log_metric=seen.__setitem__) == [
        4.0,
        8.0,
    ]
    assert seen == {"mix/length/mean": 1.5, "mix/only_b/mean": 1.0, "mix/column/mean": 4.0}


def test_bad_arguments() -> None:
    async def later(completions: list[str], **kwargs: Any) -> list[float]:
        return [0.0]

    class Later:
        async def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
            return [0.0]

    with pytest.raises(ValueError, match="reward_funcs is empty"):
        WeightedMixture([])
    for weights in ([1.0], [1.0, math.inf], [1.0, math.nan]):
        with pytest.raises(ValueError, match="weights must be 2 finite numbers"):
            WeightedMixture([length, only_b], weights=weights)
    with pytest.raises(TypeError, match=r"must be callables; got str.*ClassifierReward"):
        WeightedMixture(["model"])
    for func in (later, Later()):
        with pytest.raises(TypeError, match="asynchronous"):
            WeightedMixture([func])
    with pytest.raises(ValueError, match="returned 1 rewards, 'length' 2"):
        WeightedMixture([length, lambda completions, **kwargs: [0.0]])(completions=["a", "b"])


def test_thinking_reward_takes_both_completion_forms() -> None:
    right, wrong = "<think>\nhm\n</think>\n4", "<think>hm 4"
    chats = [[{"role": "assistant", "content": text}] for text in (right, wrong)]
    assert thinking_reward([right, wrong, *chats], prompts=["?"] * 4) == [1.0, 0.0, 1.0, 0.0]


def test_repetition_reward() -> None:
    reward = get_repetition_reward(ngram_size=2, max_penalty=-2.0)
    # one of three pairs of tokens repeats in the second, two of three in the last
    assert reward(completion_ids=[[1], [1, 2, 1, 2], [1, 1, 1, 1]]) == pytest.approx([0.0, -2 / 3, -4 / 3])
    with pytest.raises(ValueError, match="ngram_size must be at least 1; got 0"):
        get_repetition_reward(0)
    with pytest.raises(ValueError, match="max_penalty must be at most 0; got"):
        get_repetition_reward(2, 1.0)
