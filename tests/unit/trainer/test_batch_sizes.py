# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Rounds that a dataset does not fill, and whose completions the base shares. Other sizes: test_vgf_config.py."""

from types import SimpleNamespace

import pytest
from datasets import Dataset

from vgf_llm.trainer.batch_sizes import fit_round
from vgf_llm.trainer.config_checks import check_amounts
from vgf_llm.trainer.vgf_config import VGFConfig


def config(**settings):
    return VGFConfig("out", use_cpu=True, bf16=False, report_to="none", **settings)


@pytest.mark.parametrize(
    ("num_prompts", "accumulated", "steps"), [(40, 1, 8), (16, 1, 8), (9, 1, 4), (9, 4, 4), (7, 2, 2), (2, 1, 1)]
)
def test_rounds_shrink_to_the_dataset(num_prompts, accumulated, steps):
    args = SimpleNamespace(
        generation_batch_size=64, steps_per_generation=8, num_generations=4, gradient_accumulation_steps=accumulated
    )
    dataset = Dataset.from_dict({"prompt": ["a"] * num_prompts})
    fit_round(args, dataset.to_iterable_dataset())
    assert args.steps_per_generation == 8
    fit_round(args, dataset)
    assert (args.steps_per_generation, args.generation_batch_size) == (steps, 8 * steps)


@pytest.mark.parametrize(("num_prompts", "accumulated"), [(1, 1), (3, 2)])
def test_a_dataset_has_to_fill_a_step(num_prompts, accumulated):
    args = SimpleNamespace(
        generation_batch_size=64, steps_per_generation=8, num_generations=4, gradient_accumulation_steps=accumulated
    )
    with pytest.raises(ValueError, match=rf"has {num_prompts} prompts, but an optimizer step takes {2 * accumulated}:"):
        fit_round(args, Dataset.from_dict({"prompt": ["a"] * num_prompts}))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 4),
        ({"num_generations": 3, "per_device_train_batch_size": 6}, 1),
        ({"num_base_generations": 0}, 0),
        ({"num_base_generations": 7}, 7),
        ({"rollout_transport_steps": 2}, 0),
        ({"rollout_policy": "transport"}, 0),
        ({"value_parametrization": "vocab"}, 0),
    ],
)
def test_half_of_the_completions_are_the_bases_where_the_value_samples(settings, expected):
    assert config(**settings).base_generations == expected


def test_base_generations_need_whole_groups_in_each_process():
    args = config(num_base_generations=1, num_generations=8, per_device_train_batch_size=8)
    check_amounts(args)
    args.steps_per_generation, args.per_device_train_batch_size = 3, 4  # as with two processes
    with pytest.raises(ValueError, match="needs whole groups in each process, but a round has 12"):
        check_amounts(args)
    args.num_base_generations = None
    assert args.base_generations == 0
