# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Transport of an engine's batch, without an engine: the same numbers as `generate`, a budget for each row."""

from dataclasses import replace

import pytest
import torch

from tests.layouts import VOCAB, prompts, tiny_model, vgf_model
from vgf_llm.generation.processor import TransportProcessor
from vgf_llm.generation.taps import FeatureTap
from vgf_llm.models import TransportConfig, build_value
from vgf_llm.models.language_model import output_weight
from vgf_llm.serving import ServedTransport
from vgf_llm.serving.transport import score_partner
from vgf_llm.spaces import build_space

BUDGET = {"transport_steps": 8, "step_size": 0.5, "top_k_candidates": 12, "min_candidate_prob": 0.0}


def step_of(model):
    """Logits, hidden states and a tap of one decode step of the policy's own forward."""
    ids, mask = prompts()
    tap = FeatureTap(model, mask, need_hidden=True)
    with torch.no_grad(), tap.installed():
        logits = model.policy(ids, attention_mask=mask).logits[:, -1].float()
    return ids, logits, tap


def served(model, **transport):
    return ServedTransport(model.value, replace(model.transport, **transport), vocab_size=VOCAB)


@pytest.mark.parametrize("parametrization", ["vocab", "bilinear"])
@pytest.mark.parametrize("budget", [BUDGET, {**BUDGET, "alpha": 0.7, "max_kl": 0.2}, {**BUDGET, "min_entropy": 1.0}])
def test_it_is_the_processor_of_generate(parametrization, budget):
    model = vgf_model(tiny_model("llama"), parametrization)
    ids, logits, tap = step_of(model)
    transport = TransportConfig(**budget)
    tap.need_hidden = False
    expected = TransportProcessor(build_space(model.policy, model.value, transport), tap, transport, record=False)(
        ids, logits.clone()
    )
    serving = served(model, transport_steps=0)
    requests = {row: serving.request(budget) for row in range(3)}
    found = serving.apply(logits.clone(), tap.policy_hidden, requests, output_weight(model.policy))
    assert torch.equal(found, expected)
    assert not torch.equal(found, logits)


def test_every_row_has_its_own_budget():
    model = vgf_model(tiny_model("llama"), "vocab")
    _, logits, tap = step_of(model)
    serving = served(model, transport_steps=0)
    budgets = [{**BUDGET, "step_size": 0.1}, {"transport_steps": 0}, {**BUDGET, "top_k_candidates": 3}]
    requests = {row: serving.request(budget) for row, budget in enumerate(budgets)}
    together = serving.apply(logits.clone(), tap.policy_hidden, requests)
    for row in range(3):
        alone = serving.apply(logits[[row]].clone(), tap.policy_hidden[[row]], {0: requests[row]})
        assert torch.allclose(alone[0], together[row])
    assert (together[2] > -torch.inf).sum() == 3


@pytest.mark.parametrize("extra", [None, {}, {"transport_steps": 0}, {"somebody_elses": 1}])
def test_budget_zero_is_bit_identical(extra):
    model = vgf_model(tiny_model("llama"), "vocab")
    _, logits, tap = step_of(model)
    serving = served(model, transport_steps=0)
    found = serving.apply(logits.clone(), tap.policy_hidden, {1: serving.request(extra), 2: serving.request(BUDGET)})
    assert torch.equal(found[:2], logits[:2])
    assert not torch.equal(found[2], logits[2])


def test_the_model_s_own_budget_is_the_default():
    model = vgf_model(tiny_model("llama"), "vocab")
    serving = served(model, transport_steps=3, num_particles=4)
    assert serving.request(None).transport.transport_steps == 3
    assert serving.request(None).transport.num_particles == 1


def test_columns_beyond_the_vocabulary_stay():
    model = vgf_model(tiny_model("llama"), "vocab")
    _, logits, tap = step_of(model)
    serving = served(model)
    padded = torch.cat([logits, torch.full((3, 24), -torch.inf)], dim=1)
    found = serving.apply(padded.clone(), tap.policy_hidden, {0: serving.request(BUDGET)})
    assert torch.equal(found[:, VOCAB:], padded[:, VOCAB:])


@pytest.mark.parametrize("token", [0, 7])
def test_a_score_travels_as_two_log_probabilities(token):
    model = vgf_model(tiny_model("llama"), "vocab")
    _, logits, tap = step_of(model)
    serving = served(model, transport_steps=0)
    requests = {1: serving.request({"vgf_score_token": token})}
    log_probs = serving.apply(logits.clone(), tap.policy_hidden, requests)[1].log_softmax(-1)
    expected = model.value.head(tap.policy_hidden[1], torch.tensor([token]))[0]
    assert torch.allclose(log_probs[token] - log_probs[score_partner(token)], expected, atol=1e-6)
    # For 0/1 rewards it is the log-probability of success itself.
    assert torch.allclose(log_probs[token], torch.nn.functional.logsigmoid(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"transport_steps": -1}, "`transport_steps` must be an integer >= 0"),
        ({"transport_steps": 1.5}, "`transport_steps` must be an integer, got 1.5"),
        ({"transport_steps": True}, "`transport_steps` must be an integer, got True"),
        ({"step_size": "large"}, "`step_size` must be a number, got 'large'"),
        ({"step_size": 0}, "`step_size` must be a finite number > 0"),
        ({"num_particles": 4}, "`num_particles` cannot be set for a request"),
        ({"vgf_score_token": VOCAB}, r"`vgf_score_token` must be a token id in \[0, 40\), got 40"),
    ],
)
def test_bad_parameters_are_named(extra, message):
    serving = ServedTransport(build_value("vocab", width=4, vocab_size=VOCAB), TransportConfig(), vocab_size=VOCAB)
    with pytest.raises(ValueError, match=message):
        serving.request(extra)


@pytest.mark.parametrize(
    ("parametrization", "transport", "message"),
    [
        ("log_ratio", {}, "second forward for each token.*distill_coef"),
        ("v_head", {}, "moves hidden states"),
        ("vocab", {"interaction": True}, "`interaction=True` couples"),
        ("vocab", {"space": "hidden"}, "`space` must be 'logit'"),
    ],
)
def test_what_an_engine_step_cannot_do_is_refused(parametrization, transport, message):
    with pytest.raises(ValueError, match=message):
        ServedTransport(
            build_value(parametrization, width=4, vocab_size=VOCAB), TransportConfig(**transport), vocab_size=VOCAB
        )


def test_rows_that_do_not_match_are_refused():
    serving = ServedTransport(build_value("vocab", width=4, vocab_size=VOCAB), TransportConfig(), vocab_size=VOCAB)
    with pytest.raises(ValueError, match="`hidden` has 3 rows for 2 rows of logits"):
        serving.apply(torch.zeros(2, VOCAB), torch.zeros(3, 4), {0: serving.request(BUDGET)})
