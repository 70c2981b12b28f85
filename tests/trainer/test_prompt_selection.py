# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Prompts chosen by earlier outcomes: the order, what of it is logged and kept, and what it refuses."""

import pytest
import torch

from tests.trainer import tiny
from tests.trainer.test_resume import start
from vgf_llm.trainer.choose.schedule import UnsolvedFirst

SOLVED, FAILED = [0.0, 1.0], [0.0, 0.0]


def test_all_are_tried_before_failures_are_tried_again():
    prompts = UnsolvedFirst(6, seed=0)
    seen = []
    for _ in range(3):
        chosen = prompts.choose(2)
        prompts.record(chosen, torch.tensor([SOLVED, FAILED]))
        seen.append(chosen)
    assert sorted(index for chosen in seen for index in chosen) == list(range(6))
    assert prompts.solved_fraction == 0.5
    failed = {chosen[1] for chosen in seen}
    again = prompts.choose(3)
    assert {*again} == failed
    prompts.record(again, torch.tensor([SOLVED, FAILED, [float("nan"), float("nan")]]))
    assert {*prompts.choose(2)} == {*again[1:]}  # a completion without a reward is no success
    for _ in range(2):
        prompts.record(again, torch.tensor([SOLVED] * 3))
    assert prompts.solved_fraction == 1
    assert {*prompts.choose(3)} == {*range(6)} - failed  # then the least tried of all


def test_prompts_that_were_asked_for_count_as_tried():
    prompts, told = UnsolvedFirst(6, seed=0), UnsolvedFirst(6, seed=0)
    first = prompts.choose(2)
    second = prompts.choose(2, [first])
    third = prompts.choose(2, [first, second])
    assert sorted([*first, *second, *third]) == list(range(6))
    for chosen in (first, second):
        told.record(chosen, torch.tensor([FAILED, FAILED]))
    assert told.choose(2) == third and told.choose(6) == prompts.choose(6, [first, second])
    assert prompts.choose(2) == first, "nothing was recorded"
    few, told = UnsolvedFirst(3, seed=0), UnsolvedFirst(3, seed=0)
    repeated = few.choose(4)  # more than there are: one prompt twice, and so it is the most tried
    told.record(repeated, torch.tensor([FAILED] * 4))
    assert few.choose(3, [repeated])[-1] == repeated[0] and few.choose(3, [repeated]) == told.choose(3)


def test_the_seed_decides_among_equals():
    def order(seed):
        return UnsolvedFirst(50, seed).choose(50)

    assert order(0) == order(0) != order(1)
    assert sorted(order(1)) == list(range(50))


def test_more_prompts_than_there_are():
    assert sorted(UnsolvedFirst(2, seed=0).choose(5)) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])


def test_a_record_survives_its_state():
    first = UnsolvedFirst(5, seed=3)
    first.record(first.choose(3), torch.tensor([SOLVED, FAILED, FAILED]))
    second = UnsolvedFirst(5, seed=3)
    second.load(first.state())
    assert second.choose(5) == first.choose(5)
    assert second.state() == first.state()
    with pytest.raises(ValueError, match="outcomes of 5 prompts, but `train_dataset` has 4"):
        UnsolvedFirst(4, seed=3).load(first.state())


def test_a_run_samples_failures_again(tmp_path):
    tried = []

    def reward(completion_ids, index, **kwargs):
        tried.append({*index})
        return [float(i % 3 == 0) for i in index]

    run = tiny.trainer(tmp_path, reward, train_dataset=tiny.prompts(24), prompt_selection="unsolved", max_steps=20)
    run.train()
    first, later = tried[:12], tried[12:]  # two prompts a step
    assert sorted(i for indices in first for i in indices) == list(range(24))
    assert len(later) == 8
    assert sum(map(len, later)) == 16 == len(set.union(*later))
    assert all(i % 3 for indices in later for i in indices)
    assert tiny.history(run, "prompts/solved")[-1] == pytest.approx(8 / 24)


def test_a_checkpoint_belongs_to_its_selection(tmp_path):
    settings = {"reward_funcs": tiny.mostly_high, "max_steps": 3}
    start(tmp_path, prompt_selection="unsolved", **settings)
    with pytest.raises(ValueError, match=r"saved with `prompt_selection='unsolved'`, but it is 'dataset' now"):
        start(tmp_path, resume=True, **{**settings, "max_steps": 6})


def never(**kwargs):
    pytest.fail("completions were sampled before the error")


def test_what_outcomes_cannot_choose_among_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"chooses among all prompts .* `train_dataset` is IterableDataset"):
        tiny.trainer(tmp_path, never, train_dataset=tiny.prompts().to_iterable_dataset(), prompt_selection="unsolved")
    with pytest.raises(ValueError, match=r"read and not sampled, .* `prompt_selection`"):
        tiny.trainer(tmp_path, None, train_dataset=tiny.pairs(), num_generations=2, prompt_selection="unsolved")
    with pytest.raises(ValueError, match=r"`prompt_selection='unsolved'` counts .* by a reward of 1, and .* from 0"):
        tiny.trainer(tmp_path, tiny.high_tokens, prompt_selection="unsolved").train()
