# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A static cache, written in place, gives what a growing one gives, also for models of the value's own."""

from typing import Any

import pytest
import torch

from tests.layouts import prompts, tiny_model, vgf_model
from vgf_llm.generation import taps
from vgf_llm.models import VGFModel


def _generate(model: VGFModel, **options: Any) -> Any:
    torch.manual_seed(3)
    return model.generate(
        *prompts(),
        transport_steps=4,
        step_size=0.5,
        num_particles=3,
        do_sample=True,
        return_dict_in_generate=True,
        disable_compile=True,
        **options,
    )


@pytest.mark.parametrize("length", [{"max_new_tokens": 8}, {"max_length": 13}])
@pytest.mark.parametrize("backbone", ["copy", "lora"])
def test_a_static_cache_gives_what_a_growing_one_gives(
    backbone: str, length: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vgf_model(tiny_model("llama"), "log_ratio", backbone)
    made: list[int] = []

    class Counted(taps.StaticCache):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            made.append(kwargs["max_cache_len"])
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(taps, "StaticCache", Counted)
    growing = _generate(model, **length)
    assert made == []
    static = _generate(model, cache_implementation="static", **length)
    assert made == ([13] if backbone == "copy" else [])
    assert torch.equal(growing.sequences, static.sequences)
    assert torch.allclose(growing.values, static.values, atol=1e-4)
