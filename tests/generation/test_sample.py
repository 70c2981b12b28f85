# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`sample`: the base, the model behind a value and the transported policy, each told apart and measured."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from tests.generation.sequence_values import sequence_model
from tests.layouts import VOCAB, prompts, tiny_model, vgf_model
from vgf_llm.generation import Sampled, response_mask, sample
from vgf_llm.generation.candidates import CandidateProcessor
from vgf_llm.models import TransportConfig, VGFModel

OPTIONS: dict[str, Any] = {"do_sample": True, "max_new_tokens": 6, "disable_compile": True}
EVERY = {"top_k_candidates": VOCAB, "min_candidate_prob": 0.0}


def drawn(model: VGFModel, who: Any, seed: int = 5, num_particles: int = 3, **kwargs: Any) -> Sampled:
    torch.manual_seed(seed)
    return sample(model, *prompts(), who=who, num_particles=num_particles, **{**OPTIONS, **kwargs})


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("backbone", ["copy", "lora"])
def test_the_value_is_transport_of_budget_one_where_every_token_is_a_candidate(
    backbone: str, cache: str | None
) -> None:
    model = vgf_model(tiny_model("llama"), "log_ratio", backbone)
    transport = TransportConfig(transport_steps=2, step_size=0.5, **EVERY)
    moved = drawn(model, "transport", transport=transport, cache_implementation=cache)
    own = drawn(model, "value", transport=transport, cache_implementation=cache)
    assert torch.equal(own.tokens, moved.tokens) and torch.equal(own.lengths, moved.lengths)
    assert own.kl is None and moved.kl is not None and (moved.kl > 0).any()
    assert not (moved.kl * (1 - response_mask(moved.lengths, moved.kl.shape[1]))).any()


@pytest.mark.parametrize("kind", [("bilinear", "policy"), ("vocab", "lora"), ("log_ratio", "lora")])
def test_the_base_is_the_policys_own_generate(kind: tuple[str, str]) -> None:
    base = tiny_model("llama")
    model = vgf_model(base, *kind)
    ids, mask = (x.repeat_interleave(3, 0) for x in prompts())
    torch.manual_seed(5)
    expected = base.generate(ids, attention_mask=mask, **OPTIONS)[:, 5:]
    found = drawn(model, "base")
    assert torch.equal(found.tokens, expected) and found.kl is None
    still = drawn(model, "transport", transport=TransportConfig(transport_steps=0))
    assert torch.equal(still.tokens, expected) and not still.kl.any()


def test_transport_is_generate_without_selection() -> None:
    model = vgf_model(tiny_model("llama"))
    found = drawn(model, "transport")
    torch.manual_seed(5)
    out = model.generate(*prompts(), num_particles=3, return_dict_in_generate=True, **OPTIONS)
    assert torch.equal(found.tokens, out.particle_sequences.flatten(0, 1)[:, 5:])
    torch.testing.assert_close(found.kl, out.kl.flatten(0, 1))
    assert torch.equal(found.lengths, out.lengths.flatten()) and torch.equal(found.finished, out.finished.flatten())


def test_whole_responses_are_sampled_too() -> None:
    model = sequence_model()
    found = drawn(model, "transport", transport=TransportConfig(space="sequence_embedding", transport_steps=2))
    assert found.tokens.shape[0] == 9 and found.kl is not None
    assert (found.lengths >= 1).all() and found.lengths.max() <= 6


def test_one_model_runs_once_per_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vgf_model(tiny_model("llama"), "log_ratio", "copy")
    monkeypatch.setattr(model.policy.model, "forward", None)  # the base is not called
    rows: list[int] = []
    model.value_model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    found = drawn(model, "value", num_particles=2, min_new_tokens=4)
    assert found.tokens.shape[0] == 6
    assert rows[0] == 3  # prompts are read once
    assert set(rows[1:]) == {6}
    assert len(rows) == found.tokens.shape[1]


def test_only_likely_tokens_are_sampled() -> None:
    model = vgf_model(tiny_model("llama"), "log_ratio", "copy")
    ids, mask = prompts()
    greedy = model.value_model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=6)[:, 5:]
    likely = drawn(model, "value", num_particles=1, transport=TransportConfig(top_k_candidates=1))
    assert torch.equal(likely.tokens, greedy)
    scores = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]).log()
    kept = CandidateProcessor(3, 0.25)(ids, scores) > -torch.inf
    assert kept.tolist() == [[True, True, False], [False, False, True]]


def test_a_value_model_samples_by_the_policys_defaults() -> None:
    model = vgf_model(tiny_model("llama"), "log_ratio", "copy")
    model.value_model.generation_config = GenerationConfig(eos_token_id=list(range(VOCAB)), repetition_penalty=9.0)
    found = drawn(model, "value", min_new_tokens=4)
    assert found.tokens.shape[1] >= 4


def test_what_cannot_be_sampled_is_refused() -> None:
    model: VGFModel = vgf_model(tiny_model("llama"))
    with pytest.raises(ValueError, match="`who='value'` needs a log_ratio value: a 'bilinear' value is no ratio"):
        drawn(model, "value")
    with pytest.raises(ValueError, match="`who` must be 'base', 'value' or 'transport', got 'policy'"):
        drawn(model, "policy")
    with pytest.raises(ValueError, match="`num_particles=3` with greedy decoding"):
        drawn(model, "base", do_sample=False)
