# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Transport of an engine's batch, without an engine: the same numbers as `generate`, a budget for each row."""

import math
from dataclasses import replace

import pytest
import torch

from tests.layouts import VOCAB, prompts, tiny_model, vgf_model
from vgf_llm.generation.processor import TransportProcessor
from vgf_llm.models import StateFeatures, TransportConfig, build_value
from vgf_llm.models.language_model import last_hidden_states, output_weight
from vgf_llm.serving import ServedTransport
from vgf_llm.serving.transport import REQUEST_RANGES, SCORE_TOKEN, score_partner

BUDGET = {"transport_steps": 8, "step_size": 0.5, "top_k_candidates": 12, "min_candidate_prob": 0.0}


def step_of(model):
    """Token ids, logits and features of one decode step of the policy's own forward."""
    ids, mask = prompts()
    with torch.no_grad():
        logits = model.policy(ids, attention_mask=mask).logits[:, -1].float()
        hidden = last_hidden_states(model.policy, ids, mask, position_ids=torch.arange(5).expand(3, 5))[:, -1]
    features = StateFeatures(hidden=hidden, embedding=output_weight(model.policy))
    if model.value.needs_logits:
        features = StateFeatures(value_logits=torch.randn_like(logits), ref_logits=logits)
    return ids, logits, features


class Tap:
    """Gives the features of that step."""

    def __init__(self, features):
        self.found = features

    def features(self, input_ids, policy_logps=None):
        return self.found


def served(model, **transport):
    return ServedTransport(model.value, replace(model.transport, **transport), vocab_size=VOCAB)


@pytest.mark.parametrize("parametrization", ["vocab", "bilinear", "log_ratio"])
@pytest.mark.parametrize("budget", [BUDGET, {**BUDGET, "alpha": 0.7, "max_kl": 0.2}, {**BUDGET, "min_entropy": 1.0}])
def test_it_is_the_processor_of_generate(parametrization, budget):
    torch.manual_seed(0)
    backbone = "lora" if parametrization == "log_ratio" else "policy"
    model = vgf_model(tiny_model("llama"), parametrization, backbone)
    ids, logits, features = step_of(model)
    processor = TransportProcessor(model.value, TransportConfig(**budget), Tap(features))
    expected = processor(ids, logits.clone())
    serving = served(model, transport_steps=0)
    requests = {row: serving.request(budget) for row in range(3)}
    found = serving.apply(logits.clone(), features, requests)
    assert torch.equal(found, expected)
    assert not torch.equal(found, logits)


def test_every_row_has_its_own_budget():
    model = vgf_model(tiny_model("llama"), "vocab")
    _, logits, features = step_of(model)
    serving = served(model, transport_steps=0)
    budgets = [{**BUDGET, "step_size": 0.1}, {"transport_steps": 0}, {**BUDGET, "top_k_candidates": 3}]
    requests = {row: serving.request(budget) for row, budget in enumerate(budgets)}
    together = serving.apply(logits.clone(), features, requests)
    for row in range(3):
        alone = serving.apply(logits[[row]].clone(), StateFeatures(hidden=features.hidden[[row]]), {0: requests[row]})
        assert torch.allclose(alone[0], together[row])
    assert (together[2] > -torch.inf).sum() == 3


@pytest.mark.parametrize("extra", [None, {}, {"transport_steps": 0}, {"somebody_elses": 1}])
def test_budget_zero_is_bit_identical(extra):
    model = vgf_model(tiny_model("llama"), "vocab")
    _, logits, features = step_of(model)
    serving = served(model, transport_steps=0)
    found = serving.apply(logits.clone(), features, {1: serving.request(extra), 2: serving.request(BUDGET)})
    assert torch.equal(found[:2], logits[:2])
    assert not torch.equal(found[2], logits[2])


def test_the_model_s_own_budget_is_the_default():
    model = vgf_model(tiny_model("llama"), "vocab")
    serving = served(model, transport_steps=3, num_particles=4)
    assert serving.request(None).transport.transport_steps == 3
    assert serving.request(None).transport.num_particles == 1


def test_columns_beyond_the_vocabulary_stay():
    model = vgf_model(tiny_model("llama"), "vocab")
    _, logits, features = step_of(model)
    serving = served(model)
    # Whatever an engine keeps in its padding, it is no candidate and takes no probability from the tokens.
    for filling in (-torch.inf, 0.0, 50.0):
        padded = torch.cat([logits, torch.full((3, 24), filling)], dim=1)
        found = serving.apply(padded.clone(), features, {0: serving.request(BUDGET)})
        alone = serving.apply(logits.clone(), features, {0: serving.request(BUDGET)})
        assert torch.equal(found[:, VOCAB:], padded[:, VOCAB:])
        assert torch.equal(found[:, :VOCAB], alone)


@pytest.mark.parametrize("token", [0, 7])
def test_a_score_travels_as_two_log_probabilities(token):
    model = vgf_model(tiny_model("llama"), "vocab")
    _, logits, features = step_of(model)
    serving = served(model, transport_steps=0)
    requests = {1: serving.request({"vgf_score_token": token})}
    log_probs = serving.apply(logits.clone(), features, requests)[1].log_softmax(-1)
    expected = model.value.head(features.hidden[1], torch.tensor([token]))[0]
    assert torch.allclose(log_probs[token] - log_probs[score_partner(token)], expected, atol=1e-6)
    # For 0/1 rewards it is the log-probability of success itself.
    assert torch.allclose(log_probs[token], torch.nn.functional.logsigmoid(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"transport_steps": -1}, r"`transport_steps` must be an integer in \[0, 1024\], got -1"),
        ({"transport_steps": 1.5}, "`transport_steps` must be an integer, got 1.5"),
        ({"transport_steps": True}, "`transport_steps` must be an integer, got True"),
        ({"transport_steps": 10**9}, r"`transport_steps` must be an integer in \[0, 1024\], got 1000000000"),
        ({"step_size": "large"}, "`step_size` must be a number, got 'large'"),
        ({"step_size": 0}, r"`step_size` must be a number in \(0, 1024\]"),
        ({"step_size": 10**400}, r"`step_size` must be a number in \(0, 1024\]"),
        ({"step_size": 1024.0}, r"`transport_steps` \* `step_size` must be a number in \[0, 1024\]"),
        ({"step_size": 2.0, "alpha": 1.0}, r"`step_size` must be a number in \(0, 1\].*overshoots"),
        ({"top_k_candidates": 10**6}, r"`top_k_candidates` must be an integer in \[1, 1024\]"),
        ({"num_particles": 4}, "`num_particles` cannot be set for a request"),
        ({"space": "sequence_logit", "block_size": 2}, "`space`, `block_size` cannot be set for a request"),
        ({"vgf_score_token": VOCAB}, r"`vgf_score_token` must be an integer in \[0, 40\), got 40"),
        ({"vgf_score_token": 10**400}, "`vgf_score_token` must be an integer in"),
    ],
)
def test_bad_parameters_are_named(extra, message):
    serving = ServedTransport(build_value("vocab", width=4, vocab_size=VOCAB), TransportConfig(), vocab_size=VOCAB)
    with pytest.raises(ValueError, match=message):
        serving.request(extra)


ODD = [math.nan, math.inf, -math.inf, -1, 0, 1, 0.5, 1e-300, 1e300, 1024, 10**9, 10**400, True, "8", [1], {}]


@pytest.mark.parametrize("name", sorted(REQUEST_RANGES))
@pytest.mark.parametrize("defaults", [{}, {"alpha": 0.5}, {"max_kl": 0.1, "transport_steps": 1024}])
def test_whatever_is_accepted_is_computed(name, defaults):
    torch.manual_seed(0)
    value = build_value("vocab", width=4, vocab_size=VOCAB)
    torch.nn.init.normal_(value.head.out.weight, std=50.0)
    serving = ServedTransport(value, TransportConfig(**defaults), vocab_size=VOCAB)
    for number in ODD:
        for others in ({}, {"transport_steps": 1024}, {"step_size": 1024.0, "transport_steps": 1}, {"alpha": 1e-3}):
            given = {**others, name: number}
            try:
                request = serving.request(given)
            except ValueError as error:
                assert any(f"`{field}" in str(error) for field in given), error
                continue
            moved = serving.apply(torch.randn(2, VOCAB) * 20, StateFeatures(hidden=torch.randn(2, 4)), {0: request})
            assert not moved.isnan().any() and (moved > -torch.inf).any(dim=-1).all(), given


def test_what_only_the_model_can_refuse_is_answered_without_transport(caplog):
    value = build_value("vocab", width=4, vocab_size=VOCAB)
    serving = ServedTransport(value, TransportConfig(alpha=1.0), vocab_size=VOCAB)
    for extra in ({"step_size": 2.0}, {"vgf_score_token": VOCAB}):
        assert serving.admitted(extra).is_plain
        assert next(iter(extra)) in caplog.text
    assert serving.admitted({"transport_steps": 3}).transport.transport_steps == 3


def test_a_score_that_is_no_number_does_not_reach_the_sampler():
    value = build_value("vocab", width=4, vocab_size=VOCAB)
    serving = ServedTransport(value, TransportConfig(), vocab_size=VOCAB)
    features = StateFeatures(hidden=torch.full((1, 4), torch.nan))
    found = serving.apply(torch.zeros(1, VOCAB), features, {0: serving.request({SCORE_TOKEN: 3})})
    assert not found.isnan().any()


@pytest.mark.parametrize(
    ("parametrization", "transport", "message"),
    [
        ("vocab", {"interaction": True}, "`interaction=True` couples"),
        ("vocab", {"space": "sequence_logit"}, "`space` must be 'logit'"),
        ("vocab", {"transport_steps": 4096}, r"`transport_steps` must be an integer in \[0, 1024\], got 4096"),
        ("vocab", {"alpha": 1.0, "step_size": 2.0}, "`step_size`.*overshoots"),
    ],
)
def test_what_an_engine_step_cannot_do_is_refused(parametrization, transport, message):
    with pytest.raises(ValueError, match=message):
        ServedTransport(
            build_value(parametrization, width=4, vocab_size=VOCAB), TransportConfig(**transport), vocab_size=VOCAB
        )


def test_a_log_ratio_value_has_no_score_of_one_token():
    serving = ServedTransport(build_value("log_ratio", width=4, vocab_size=VOCAB), TransportConfig(), vocab_size=VOCAB)
    with pytest.raises(ValueError, match=r"`vgf_score_token` cannot be set for a log_ratio value.*VGFModel.score"):
        serving.request({SCORE_TOKEN: 3})


def test_rows_that_do_not_match_are_refused():
    serving = ServedTransport(build_value("vocab", width=4, vocab_size=VOCAB), TransportConfig(), vocab_size=VOCAB)
    with pytest.raises(ValueError, match="`features` has 3 rows for 2 rows of logits"):
        serving.apply(torch.zeros(2, VOCAB), StateFeatures(hidden=torch.zeros(3, 4)), {0: serving.request(BUDGET)})
