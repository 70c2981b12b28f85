# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""ValueBuffer: bound, drawing, bit-exact saving, and micro-batches padded as TRL pads them."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from vgf_llm.trainer.fit.micro_batch import Row, collate
from vgf_llm.trainer.keep.buffer import RolloutGroup, ValueBuffer, pack, unpack

NAN = math.nan


def group(step=0, size=2, rewards=None, logps=True):
    completions = [[step + row] * (row + 1) for row in range(size)]
    return RolloutGroup(
        [step, 7],
        completions,
        [float(row) for row in range(size)] if rewards is None else rewards,
        [torch.randn(len(ids)) for ids in completions] if logps else None,
        step,
    )


def filled(capacity=100, count=5, **arguments):
    buffer = ValueBuffer(capacity)
    buffer.add([group(step, **arguments) for step in range(count)])
    return buffer


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.step == other.step and one.is_mixed == other.is_mixed
        for name in ("prompt_ids", "rewards", "samplers"):
            assert getattr(one, name).dtype == getattr(other, name).dtype
            assert getattr(one, name).view(torch.uint8).equal(getattr(other, name).view(torch.uint8)), name
        for name in ("completion_ids", "ref_logps"):
            rows, others = getattr(one, name), getattr(other, name)
            assert (rows is None) == (others is None)
            for row, other_row in zip(rows or (), others or (), strict=True):
                assert row.dtype == other_row.dtype and row.view(torch.uint8).equal(other_row.view(torch.uint8)), name


def test_the_oldest_groups_leave_first_counted_in_completions():
    buffer = filled(capacity=7, count=5, size=2)
    assert len(buffer) == 6
    assert [item.step for item in buffer.groups] == [2, 3, 4]
    buffer.add([group(9, size=5)])
    assert [item.step for item in buffer.groups] == [4, 9] and len(buffer) == 7


def test_groups_do_not_keep_the_batch_they_came_from():
    batch = torch.arange(10, dtype=torch.int32)
    item = RolloutGroup(batch[:2], [batch[2:4]], [0.0])
    batch.zero_()
    assert item.prompt_ids.tolist() == [0, 1] and item.completion_ids[0].tolist() == [2, 3]
    assert item.prompt_ids.untyped_storage().nbytes() == 8


@pytest.mark.parametrize(
    ("rewards", "mixed"),
    [([0, 1], True), ([1, 1], False), ([NAN, 1], False), ([NAN, 1, 0], True), ([NAN, NAN], False)],
)
def test_mixed_groups(rewards, mixed):
    assert group(size=len(rewards), rewards=rewards).is_mixed is mixed


def test_drawing_is_without_replacement_until_all_were_drawn():
    buffer = filled(count=5)
    drawn = [item.step for item in buffer.sample(12)]
    assert sorted(drawn[:5]) == sorted(drawn[5:10]) == [0, 1, 2, 3, 4]
    assert len(set(drawn[10:])) == 2


def test_drawing_is_uniform():
    buffer = filled(count=4)
    counts = torch.zeros(4)
    for _ in range(2000):
        counts[buffer.sample(1)[0].step] += 1
    # Standard deviation of a count is 19.
    assert (counts - 500).abs().max() < 80


def test_drawing_depends_on_the_generator_alone():
    def draw(seed):
        return [item.step for item in filled(count=20).sample(10, torch.Generator().manual_seed(seed))]

    first = draw(0)
    torch.rand(3)
    assert draw(0) == first != draw(1)


def test_drawing_among_wanted_groups_only():
    buffer = ValueBuffer(100)
    buffer.add([group(step, rewards=[1.0, float(step % 2)]) for step in range(6)])

    def mixed(item):
        return item.is_mixed

    assert sorted(item.step for item in buffer.sample(3, wanted=mixed)) == [0, 2, 4]
    uniform = ValueBuffer(100)
    uniform.add([group(rewards=[1.0, 1.0])])
    assert uniform.sample(2, wanted=mixed) == []


def test_drawing_from_nothing_gives_nothing():
    assert ValueBuffer(10).sample(3) == []
    assert filled().sample(0) == []


def kept(groups, path):
    """What a file of the groups gives back."""
    save_file(pack(groups), path)
    return unpack(load_file(path))


@pytest.mark.parametrize("logps", [True, False])
def test_saving_is_bit_exact(tmp_path, logps):
    buffer = filled(logps=logps)
    buffer.add([group(6, size=3, rewards=[NAN, 0.1, -1 / 3], logps=logps)])
    loaded = ValueBuffer(100)
    loaded.add(kept(buffer.groups, tmp_path / "file"))
    assert len(loaded) == len(buffer)
    assert_same(loaded.groups, buffer.groups)
    draws = [source.sample(4, torch.Generator().manual_seed(3)) for source in (buffer, loaded)]
    assert_same(*draws)


def test_groups_with_and_without_log_probabilities_are_saved_together(tmp_path):
    groups = [group(0), group(1, logps=False), group(2)]
    assert_same(kept(groups, tmp_path / "file"), groups)


def test_an_empty_buffer_is_saved(tmp_path):
    assert kept([], tmp_path / "file") == []


def test_a_smaller_buffer_keeps_the_most_recent_groups():
    small = ValueBuffer(4)
    small.add([*filled(count=5).groups, group(5, size=5)])
    assert [item.step for item in small.groups] == [3, 4] and small.capacity == 4


BAD_GROUPS = [
    (([], [[1]], [0.0]), "`prompt_ids` is empty"),
    (([1], [[1]], [math.inf]), "`rewards` must be finite or NaN"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_GROUPS)
def test_bad_groups(arguments, message):
    with pytest.raises(ValueError, match=message):
        RolloutGroup(*arguments)


def rows_of(*groups):
    return [Row(item, index) for item in groups for index in range(len(item))]


def test_collate_pads_prompts_on_the_left_and_completions_on_the_right():
    groups = [
        RolloutGroup([1, 2, 3], [[4], [5, 6]], [0.0, 1.0], [[-0.1], [-0.2, -0.3]], samplers=[0, 1]),
        RolloutGroup([7], [[8, 9, 10], [11]], [NAN, 0.5], [[-0.4, -0.5, -0.6], [-0.7]]),
    ]
    batch = collate(rows_of(*groups), pad_token_id=99, with_reference=True)
    assert batch.prompt_ids.tolist() == [[1, 2, 3], [1, 2, 3], [99, 99, 7], [99, 99, 7]]
    assert batch.prompt_mask.tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 1], [0, 0, 1]]
    assert batch.completion_ids.tolist() == [[4, 99, 99], [5, 6, 99], [8, 9, 10], [11, 99, 99]]
    assert batch.completion_mask.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert batch.input_ids[3].tolist() == [99, 99, 7, 11, 99, 99]
    assert batch.attention_mask[3].tolist() == [0, 0, 1, 1, 0, 0]
    assert batch.response_mask[1].tolist() == [0, 0, 0, 1, 1, 0]
    expected = torch.tensor([[-0.1, 0, 0], [-0.2, -0.3, 0], [-0.4, -0.5, -0.6], [-0.7, 0, 0]])
    torch.testing.assert_close(batch.ref_logps, expected)
    torch.testing.assert_close(batch.rewards, torch.tensor([0, 1, NAN, 0.5]), equal_nan=True)
    assert (batch.group_sizes, batch.place.tolist(), batch.sampler.tolist()) == ([2, 2], [0, 1, 0, 1], [0, 1, 0, 0])
    assert batch.prompt_ids.dtype == batch.completion_mask.dtype == torch.int64
    assert batch.rewards.dtype == batch.ref_logps.dtype == torch.float32


def test_collate_rounds_lengths_up():
    batch = collate(rows_of(group(logps=False)), pad_token_id=0, pad_to_multiple_of=4)
    assert batch.prompt_ids.shape == batch.completion_ids.shape == (2, 4)
    assert batch.ref_logps is None


def test_groups_may_differ_in_size_and_what_is_missing_has_no_reward():
    batch = collate(rows_of(group(size=2), group(size=3)), pad_token_id=0)
    assert batch.group_sizes == [2, 3]
    assert len(batch.prompt_ids) == len(batch.rewards) == 5
    assert batch.group_rewards.isnan().sum(dim=1).tolist() == [1, 1, 0, 0, 0]


def test_some_completions_make_a_group():
    full = RolloutGroup(
        [5], [[1], [2, 3], [4], [6]], [1.0, 0.5, NAN, 1.0], [[-0.1], [-0.2, -0.3], [-0.4], [-0.5]], 7, [0, 0, 1, 1]
    )
    kept = full.subset([0, 3])
    assert [ids.tolist() for ids in kept.completion_ids] == [[1], [6]]
    assert kept.rewards.tolist() == [1.0, 1.0]
    assert (kept.prompt_ids.tolist(), kept.step, kept.samplers.tolist()) == ([5], 7, [0, 1])
    assert [row.tolist() for row in kept.ref_logps] == [pytest.approx([-0.1]), pytest.approx([-0.5])]
    assert kept.subset([0, 1]) is kept
