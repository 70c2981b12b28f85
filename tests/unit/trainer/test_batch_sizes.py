# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Batch sizes: what TRL accepts is accepted and resolved as TRL does, errors list sizes that work, rounds shrink."""

import itertools
import time
from types import SimpleNamespace

import pytest
from datasets import Dataset
from transformers import TrainingArguments
from trl import GRPOConfig

from vgf_llm.trainer.config.batch_sizes import divisors, fit_round
from vgf_llm.trainer.config.vgf_config import VGFConfig

CPU = {"output_dir": "out", "use_cpu": True, "bf16": False, "report_to": "none"}


def config(**settings):
    return VGFConfig(**{**CPU, **settings})


@pytest.mark.parametrize("world_size", [1, 2])
def test_batch_sizes_are_resolved_as_trl_does(monkeypatch, world_size):
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: world_size))
    accepted = refused = 0
    for per_device, accumulation, generation_batch_size, steps_per_generation, num_generations in itertools.product(
        (1, 2, 4, 8), (1, 3, 8), (None, 16, 48), (None, 2), (2, 4, 6, 8, 16)
    ):
        settings = {
            **CPU,
            "per_device_train_batch_size": per_device,
            "gradient_accumulation_steps": accumulation,
            "generation_batch_size": generation_batch_size,
            "steps_per_generation": steps_per_generation,
            "num_generations": num_generations,
        }
        if None not in (generation_batch_size, steps_per_generation):
            continue  # TRL refuses both; here they may agree
        try:
            expected = GRPOConfig(**settings)
        except ValueError:
            refused += 1
            with pytest.raises(ValueError, match=r"`(num_generations|generation_batch_size)`"):
                VGFConfig(**settings)
            continue
        accepted += 1
        found = VGFConfig(**settings)
        assert found.generation_batch_size == expected.generation_batch_size
        assert found.steps_per_generation == expected.steps_per_generation
    assert accepted > 50 and refused > 50


def test_both_sizes_may_be_given_where_they_agree():
    args = config(generation_batch_size=16, steps_per_generation=2)
    assert (args.generation_batch_size, args.steps_per_generation) == (16, 2)
    with pytest.raises(ValueError, match=r"`steps_per_generation` .3. are two ways .* 3 steps of 8 completions are 24"):
        config(generation_batch_size=16, steps_per_generation=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"per_device_train_batch_size": 6, "num_generations": 4},
            r"`num_generations` for this batch: \[2, 3, 6\]; .* near 6 for this `num_generations`: \[4, 8, 12\]",
        ),
        (
            {"per_device_train_batch_size": 3, "num_generations": 4, "gradient_accumulation_steps": 2},
            r"near 3 for this `num_generations`: \[2, 4, 6\]",
        ),
        ({"generation_batch_size": 20}, r"`generation_batch_size`: \[16, 24, 32\]"),
        (
            {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 6},
            r"`num_generations_eval`: \[1, 2, 3, 6\]; .*\[8, 16\]",
        ),
    ],
)
def test_errors_list_sizes_that_work(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_sizes_that_an_error_proposes_are_accepted():
    for per_device in (4, 8, 12):
        assert config(per_device_train_batch_size=per_device, num_generations=4).generation_batch_size == per_device
    for per_device in (2, 4, 6):
        settings = {"per_device_train_batch_size": per_device, "num_generations": 4, "gradient_accumulation_steps": 2}
        assert config(**settings).generation_batch_size == 2 * per_device
    for count in (2, 3, 6):
        assert config(per_device_train_batch_size=6, num_generations=count).num_generations == count


def test_large_sizes_are_refused_at_once():
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"`num_generations` for this batch: \[2, 4, 5, 8, 10, 16, 20"):
        config(generation_batch_size=10**9, per_device_train_batch_size=1, num_generations=7)
    assert time.perf_counter() - start < 5
    assert divisors(2**31 - 1, near=8) == [2**31 - 1]


def test_evaluation_may_sample_fewer_completions():
    args = config(eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=6, num_generations_eval=2)
    assert args.num_generations_eval == 2


def rounds(per_device, steps_per_generation, num_generations, accumulated=1):
    return SimpleNamespace(
        generation_batch_size=per_device * steps_per_generation,
        steps_per_generation=steps_per_generation,
        num_generations=num_generations,
        gradient_accumulation_steps=accumulated,
    )


@pytest.mark.parametrize(
    ("num_prompts", "args", "steps"),
    [
        (40, rounds(8, 8, 4), 8),
        (16, rounds(8, 8, 4), 8),
        (9, rounds(8, 8, 4), 4),
        (9, rounds(8, 8, 4, accumulated=4), 4),
        (7, rounds(8, 8, 4, accumulated=2), 2),
        (2, rounds(8, 8, 4), 1),
        # Steps of less than a group: whole groups take several.
        (3, rounds(2, 32, 8), 12),
        (1, rounds(1, 64, 16), 16),
        (7, rounds(2, 64, 8, accumulated=8), 24),
    ],
)
def test_rounds_shrink_to_the_dataset(num_prompts, args, steps):
    dataset = Dataset.from_dict({"prompt": ["a"] * num_prompts})
    before, step = args.steps_per_generation, args.generation_batch_size // args.steps_per_generation
    fit_round(args, dataset.to_iterable_dataset())
    assert args.steps_per_generation == before
    fit_round(args, dataset)
    assert (args.steps_per_generation, args.generation_batch_size) == (steps, step * steps)
    assert args.generation_batch_size % args.num_generations == 0
    assert args.generation_batch_size <= num_prompts * args.num_generations


@pytest.mark.parametrize(
    ("num_prompts", "args", "least"),
    [(1, rounds(8, 8, 4), 2), (3, rounds(8, 8, 4, accumulated=2), 4), (2, rounds(2, 12, 8, accumulated=3), 3)],
)
def test_a_dataset_has_to_fill_a_step(num_prompts, args, least):
    with pytest.raises(ValueError, match=rf"`train_dataset` has {num_prompts} prompts, .* takes at least {least}:"):
        fit_round(args, Dataset.from_dict({"prompt": ["a"] * num_prompts}))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 4),
        ({"num_generations": 3, "per_device_train_batch_size": 6}, 1),
        ({"num_base_generations": 0}, 0),
        ({"num_base_generations": 7}, 7),
        ({"num_generations": 8, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}, 4),
        ({"rollout_policy": "transport"}, 0),
        ({"rollout_policy": "transport", "num_base_generations": 3}, 3),
        ({"rollout_policy": "base"}, 0),
        ({"value_parametrization": "vocab"}, 0),
    ],
)
def test_half_of_the_completions_are_the_bases_where_the_value_samples(settings, expected):
    assert config(**settings).base_generations == expected
