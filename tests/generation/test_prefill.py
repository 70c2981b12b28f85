# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Particles of a prompt share its prefill, and get what a prefill of their own would give them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.layouts import LAYOUTS, prompts, tiny_model, vgf_model
from vgf_llm.generation import prefill, taps
from vgf_llm.models import VGFModel

KINDS = [("bilinear", "policy"), ("vocab", "lora"), ("log_ratio", "lora"), ("log_ratio", "copy")]


def particles(model: VGFModel, **options: Any) -> Any:
    torch.manual_seed(3)
    return model.generate(
        *prompts(), num_particles=3, do_sample=True, max_new_tokens=6, min_candidate_prob=0.0, disable_compile=True,
        return_dict_in_generate=True, **options,
    )  # fmt: skip


def rows_of_first_forwards(model: PreTrainedModel, seen: list[int]) -> Any:
    def note(module: Any, args: Any, kwargs: Any) -> None:
        ids: Tensor = kwargs["input_ids"]
        if ids.shape[1] > 1:
            seen.append(ids.shape[0])

    return model.base_model.register_forward_pre_hook(note, with_kwargs=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("steps", [0, 3])
def test_particles_are_those_of_separate_prefills(layout: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in KINDS:
        model = vgf_model(tiny_model(layout), *kind)
        shared = particles(model, transport_steps=steps)
        with monkeypatch.context() as patch:
            patch.setattr(prefill, "can_expand", lambda cache: False)
            patch.setattr(taps, "can_expand", lambda cache: False)
            separate = particles(model, transport_steps=steps)
        assert torch.equal(shared.sequences, separate.sequences)
        torch.testing.assert_close(shared.values, separate.values, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize(("kind", "expected"), [(KINDS[0], [3]), (KINDS[2], [6]), (KINDS[3], [3, 3])])
def test_the_prompt_is_read_once(kind: tuple[str, str], expected: list[int], cache: str | None) -> None:
    model = vgf_model(tiny_model("llama"), *kind)
    seen: list[int] = []
    policy = model.policy.get_base_model() if hasattr(model.policy, "get_base_model") else model.policy
    handles = [rows_of_first_forwards(part, seen) for part in (policy, model.value_model) if part is not None]
    particles(model, transport_steps=2, cache_implementation=cache)
    assert seen == expected
    for handle in handles:
        handle.remove()


def test_hooks_are_gone_afterwards() -> None:
    model = vgf_model(tiny_model("llama"))
    particles(model, transport_steps=0)
    particles(model, transport_steps=2)
    assert not model.policy._forward_hooks
    assert not model.policy._forward_pre_hooks
