# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Rounds that a dataset does not fill. The sizes of a configuration are tested with it, in test_vgf_config.py."""

from types import SimpleNamespace

import pytest
from datasets import Dataset

from vgf_llm.trainer.batch_sizes import fit_round


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
