# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The model behind a log-ratio value is what transport at L epsilon = 1 samples, and takes one forward per token."""

from typing import Any

import pytest
import torch

from tests.layouts import VOCAB, prompts, tiny_model, vgf_model
from vgf_llm.generation import generate_from_value
from vgf_llm.generation.value_policy import CandidateProcessor
from vgf_llm.models import VGFModel

OPTIONS = {"do_sample": True, "max_new_tokens": 6, "disable_compile": True}


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("backbone", ["copy", "lora"])
def test_it_is_transport_of_budget_one_where_every_token_is_a_candidate(backbone: str, cache: str | None) -> None:
    model = vgf_model(tiny_model("llama"), "log_ratio", backbone)
    every: dict[str, Any] = {"top_k_candidates": VOCAB, "min_candidate_prob": 0.0, "cache_implementation": cache}
    torch.manual_seed(5)
    transported = model.generate(
        *prompts(), transport_steps=2, step_size=0.5, num_particles=3, selection="none", **every, **OPTIONS
    )
    torch.manual_seed(5)
    assert torch.equal(generate_from_value(model, *prompts(), num_particles=3, **every, **OPTIONS), transported)


def test_one_model_runs_once_per_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vgf_model(tiny_model("llama"), "log_ratio", "copy")
    monkeypatch.setattr(model.policy, "forward", None)  # the base is not called
    rows: list[int] = []
    model.value_model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    sampled = generate_from_value(model, *prompts(), num_particles=2, min_new_tokens=4, **OPTIONS)
    assert sampled.shape[0] == 6
    assert rows[0] == 3  # prompts are read once
    assert set(rows[1:]) == {6}
    assert len(rows) == sampled.shape[1] - 5


def test_only_likely_tokens_are_sampled() -> None:
    model = vgf_model(tiny_model("llama"), "log_ratio", "copy")
    torch.manual_seed(0)
    ids, mask = prompts()
    greedy = model.value_model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=6)
    assert torch.equal(generate_from_value(model, ids, mask, top_k_candidates=1, **OPTIONS), greedy)
    scores = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]).log()
    kept = CandidateProcessor(3, 0.25)(ids, scores) > -torch.inf
    assert kept.tolist() == [[True, True, False], [False, False, True]]


def test_a_head_is_no_model() -> None:
    model: VGFModel = vgf_model(tiny_model("llama"))
    with pytest.raises(ValueError, match="A 'bilinear' value is no ratio of two models"):
        generate_from_value(model, *prompts())
