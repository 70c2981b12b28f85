# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Rounds that are k rounds old: which weights sample them, and which outcomes choose their prompts."""

import torch
from torch import nn

from benchmarks.staleness import LatePrompts, StaleSampler
from vgf_llm.trainer.choose.schedule import UnsolvedFirst
from vgf_llm.trainer.sample import Request, Sampler, Samples


def test_rounds_are_sampled_with_the_weights_of_two_rounds_ago():
    model, seen = nn.Linear(1, 1, bias=False), []

    class Watch(Sampler):
        def __call__(self, request):
            seen.append(model.weight.item())
            return Samples([], [])

    sampler = StaleSampler(Watch(), lambda: model, staleness=2)
    for number in range(5):
        nn.init.constant_(model.weight, number)
        sampler(Request([], [], [], 1, 0, "train", number, 0))
        assert model.weight.item() == number
    sampler(Request([], [], [], 1, 0, "eval", 0, 0))
    assert seen == [0, 0, 0, 1, 2, 4]


def test_prompts_are_those_that_sampling_ahead_would_choose():
    late, plain = LatePrompts(6, 0, late=1), UnsolvedFirst(6, 0)
    first = late.choose(3)
    late.record(first, torch.tensor([[1.0], [1.0], [0.0]]))
    assert first == plain.choose(3)
    second = late.choose(3)
    assert second == plain.choose(3, [first])
    late.record(second, torch.zeros(3, 1))
    plain.record(first, torch.tensor([[1.0], [1.0], [0.0]]))
    assert late.choose(4) == plain.choose(4, [second])
    assert {*late.choose(4)} == {first[2], *second}
    late.restart()
    assert late.choose(3) == first and late.late == 1
