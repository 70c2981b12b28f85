# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What a decoded token costs beside the model: one synchronisation with the host, few passes over the vocabulary."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.layouts import VOCAB, prompts, tiny_model, vgf_model
from vgf_llm.models import VGFModel

# What makes the host wait for its accelerator.
SYNCHRONISES = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal", "aten::item"}
NORMALISES = {"aten::_softmax", "aten::_log_softmax", "aten::logsumexp"}


class Counted(TorchDispatchMode):
    """Counts synchronisations, and softmaxes over the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in SYNCHRONISES:
            self.found["synchronisations"] += 1
        if name in NORMALISES and args[0].shape[-1] == VOCAB:
            self.found["softmaxes"] += 1
        return func(*args, **(kwargs or {}))


def per_token(model: VGFModel, **settings: Any) -> dict[str, float]:
    """The difference of a long and a short call, so that what a call costs once drops out."""

    def counts(tokens: int) -> Counter[str]:
        torch.manual_seed(0)
        options = {"do_sample": True, "top_k": 0, "eos_token_id": None, "max_new_tokens": tokens, "top_k_candidates": 8}
        with Counted() as counted:
            # No padding: into a mask of it transformers looks once more.
            model.generate(prompts()[0][2:], **options, **settings)
        return counted.found

    short, long = counts(4), counts(12)
    return {name: (long[name] - short[name]) / 8 for name in ("synchronisations", "softmaxes")}


@pytest.mark.parametrize(
    ("kind", "softmaxes"),
    [
        *((("vocab", "policy"), 2), (("bilinear", "policy"), 2), (("bilinear", "lora"), 2), (("vocab", "copy"), 2)),
        *((("log_ratio", "lora"), 3), (("log_ratio", "copy"), 3)),
    ],
)
@pytest.mark.parametrize(
    "settings",
    [{}, {"num_particles": 2}, {"alpha": 1.0}, {"max_kl": 0.5}, {"min_entropy": 0.5}],
    ids=str,
)
def test_a_token_costs_one_synchronisation(kind: tuple[str, str], softmaxes: int, settings: dict[str, Any]) -> None:
    model = vgf_model(tiny_model("llama"), *kind)
    plain = per_token(model, transport_steps=0)
    assert plain == {"synchronisations": 1, "softmaxes": 1}, "transformers itself has changed"
    found = per_token(model, transport_steps=4, step_size=0.25, **settings)
    assert found["synchronisations"] <= 1
    # transformers' own, the base's, and of a log-ratio its model's; the reference is the base.
    assert found["softmaxes"] == softmaxes


def test_processors_ahead_of_transport_keep_the_reference_apart() -> None:
    model = vgf_model(tiny_model("llama"), "log_ratio", "lora")
    found = per_token(model, transport_steps=4, repetition_penalty=1.3)
    assert found == {"synchronisations": 1, "softmaxes": 4}
