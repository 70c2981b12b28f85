# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What is kept of rounds: the outcomes of prompts, and the split of a pass over micro-steps and processes."""

import itertools

import pytest
import torch

from vgf_llm.trainer.choose.schedule import Schedule, UnsolvedFirst
from vgf_llm.trainer.keep.buffer import RolloutGroup
from vgf_llm.trainer.keep.outcomes import PromptOutcomes
from vgf_llm.trainer.keep.rounds import ValueRounds, is_held_out


def group(prompt, rewards, step=0):
    return RolloutGroup([prompt], [[prompt, i] for i in range(len(rewards))], rewards, step=step)


def rounds(processes=1, **settings):
    given = {"groups_per_round": 4, "steps_per_round": 2, "replay_ratio": 0.0, **settings}
    return ValueRounds(**given, num_processes=processes)


def everything(group):
    return range(len(group))


def successes(group):
    return (group.rewards == 1).nonzero().flatten().tolist()


def test_a_prompt_has_a_contrast_once_its_rewards_differed_in_whatever_rounds():
    outcomes = PromptOutcomes()
    assert not outcomes.has_contrast([5])
    for rewards, expected in (([1.0, 1.0], False), ([float("nan")], False), ([0.0, 0.0], True), ([1.0], True)):
        outcomes.record([5], torch.tensor(rewards))
        assert outcomes.has_contrast([5]) == expected
    assert not outcomes.has_contrast([6])
    assert outcomes.differ
    again = PromptOutcomes()
    again.load(outcomes.state())
    assert again.has_contrast(torch.tensor([5], dtype=torch.int32))


def test_rewards_of_a_run_differ_once_those_of_two_prompts_do():
    outcomes = PromptOutcomes()
    seen = []
    for prompt, rewards in ((5, [1.0, 1.0]), (6, [float("nan")]), (6, [1.0]), (7, [0.0])):
        outcomes.record([prompt], torch.tensor(rewards))
        seen.append(outcomes.differ)
    assert seen == [False, False, False, True]
    assert not any(outcomes.has_contrast([prompt]) for prompt in (5, 6, 7))
    again = PromptOutcomes()
    again.load(outcomes.state())
    assert again.differ and again.has_contrast([5], "run") and not again.has_contrast([5])


@pytest.mark.parametrize(("processes", "whole"), itertools.product((1, 2, 3), (False, True)))
def test_every_completion_that_is_read_is_in_one_share(processes, whole):
    groups = [group(prompt, [1.0] * count + [0.0] * (3 - count)) for prompt, count in enumerate((3, 0, 1, 2))]
    shares = []
    for _ in range(processes):
        run = rounds(processes)
        run.begin(groups)
        shares.append(run.shares(0, successes, whole_groups=whole))
    assert all(len(of) == 2 and [len(step) for step in of] == [processes] * 2 for of in shares)
    # Every process knows the shares of all, and they agree.
    flat = [[[(int(g.prompt_ids), row) for g, row in share.rows] for step in of for share in step] for of in shares]
    assert all(one == flat[0] for one in flat)
    rows = [row for share in flat[0] for row in share]
    assert sorted(rows) == [(0, 0), (0, 1), (0, 2), (2, 0), (3, 0), (3, 1)]
    if whole:
        for prompt in (0, 3):
            assert sum(any(row[0] == prompt for row in share) for share in flat[0]) == 1
    else:  # sizes differ by one completion at the most
        sizes = [len(share) for share in flat[0]]
        assert max(sizes) - min(sizes) <= 1
    assert {(share.num_groups, share.num_rows) for of in shares for step in of for share in step} == {
        (4 / (2 * processes), 12 / (2 * processes))
    }


def test_held_out_prompts_are_in_no_share_and_no_buffer():
    run = rounds(replay_ratio=1.0, holdout_ratio=0.5)
    run.begin([group(prompt, [1.0, 0.0]) for prompt in range(40)])
    held = {int(g.prompt_ids) for g in run.held_out_groups()}
    assert 5 < len(held) < 35
    shares = [share for step in run.shares(0, everything, whole_groups=True) for share in step]
    # They count where sums are divided, so that a completion weighs the same in every round.
    assert {(share.num_groups, share.num_rows) for share in shares} == {(20.0, 40.0)}
    read = {int(g.prompt_ids) for share in shares for g, _ in share.rows}
    assert read == set(range(40)) - held
    run.retire(everything)
    assert {int(g.prompt_ids) for g in run.buffer.groups} == read
    assert run.fresh == []


def test_later_passes_have_other_batches_of_the_same_completions():
    run = rounds(num_iterations=2)
    run.begin([group(prompt, [1.0, 0.0]) for prompt in range(16)])

    def batches(index):
        shares = run.shares(index, everything, whole_groups=True)
        return [{int(g.prompt_ids) for share in step for g, _ in share.rows} for step in shares]

    first, again, second = batches(0), batches(0), batches(1)
    assert first == again != second
    assert set.union(*first) == set.union(*second) == set(range(16))


def test_replay_draws_among_what_teaches_now():
    run = rounds(replay_ratio=1.0)
    run.begin([group(prompt, [float(prompt % 2)] * 2) for prompt in range(4)])
    run.retire(everything)
    assert len(run.buffer) == 8
    shares = run.shares(0, successes, whole_groups=False)
    assert {int(g.prompt_ids) for step in shares for share in step for g, _ in share.rows} == {1, 3}
    # Without fresh groups earlier ones stand in for them: two groups of replay for each of four prompts.
    assert {share.num_groups for step in shares for share in step} == {4.0}


def test_replay_draws_the_ratio_on_average():
    run = rounds(replay_ratio=0.125, groups_per_round=4, steps_per_round=1)
    run.begin([group(prompt, [1.0, 0.0]) for prompt in range(4)])
    run.retire(everything)
    run.begin([group(prompt, [1.0, 0.0]) for prompt in range(4)])
    counts = [run.shares(index, everything, whole_groups=True)[0][0].num_groups for index in range(4)]
    assert counts == [4, 5, 4, 5]


def test_passes_replay_other_groups_that_count_in_what_sums_are_divided_by():
    run = rounds(replay_ratio=1.0, groups_per_round=2, steps_per_round=1)
    run.begin([group(prompt, [1.0, 0.0, 0.0]) for prompt in range(16)])
    run.retire(everything)
    run.begin([group(prompt, [1.0, 0.0]) for prompt in (20, 21)])
    replayed = []
    for index in range(4):
        share = run.shares(index, everything, whole_groups=True)[0][0]
        # Two fresh groups of two completions and two earlier ones of three.
        assert (share.num_groups, share.num_rows, len(share.rows)) == (4, 10, 10)
        replayed.append({int(g.prompt_ids) for g, _ in share.rows} - {20, 21})
    assert all(len(prompts) == 2 for prompts in replayed) and len(set.union(*replayed)) > 3


def test_a_prompt_is_held_out_by_its_tokens_and_the_seed():
    prompts = [[1, token] for token in range(10, 100)]

    def held(prompts, seed=0):
        return [is_held_out(prompt, 0.5, seed) for prompt in prompts]

    assert held(prompts) == held(prompts)
    # Another seed, another order and other tokens of the same digits are other draws.
    for other in (held(prompts, seed=1), held([p[::-1] for p in prompts]), held([[100 + p[1]] for p in prompts])):
        assert 20 < sum(a != b for a, b in zip(held(prompts), other, strict=True)) < 70
    assert 0 < sum(is_held_out(prompt, 0.1, 0) for prompt in prompts) < 25


def test_who_samples_follows_from_the_place_in_the_group_whatever_the_process():
    schedule = Schedule(num_generations=4, samples_from="value", base_generations=2, round_steps=1)
    whole = schedule.who(16, first_row=0, mode="train")
    assert whole == ["base", "base", "value", "value"] * 4
    for rows in (1, 2, 3, 5, 8):
        parts = [schedule.who(min(rows, 16 - start), first_row=start, mode="train") for start in range(0, 16, rows)]
        assert [who for part in parts for who in part] == whole
    assert schedule.who(3, first_row=0, mode="eval") == ["value"] * 3


@pytest.mark.parametrize(("fraction", "rounds_sampled"), [(1.0, 5), (0.5, 3), (0.66, 3), (0.45, 2), (0.01, 1)])
def test_rounds_are_sampled_whole(fraction, rounds_sampled):
    schedule = Schedule(num_generations=2, samples_from="base", round_steps=2, rollout_fraction=fraction)
    assert schedule.sampled_steps(10) == 2 * rounds_sampled


def test_unsolved_prompts_refuse_graded_rewards():
    prompts = UnsolvedFirst(4, seed=0)
    with pytest.raises(ValueError, match=r"`prompt_selection='unsolved'` .* from 0.25 to 0.5"):
        prompts.record(prompts.choose(1), torch.tensor([[0.25, 0.5]]))
