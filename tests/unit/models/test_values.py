# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Heads, values and the configuration, against plain tensor arithmetic."""

import copy
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.layouts import shake
from vgf_llm.models.config import TransportConfig
from vgf_llm.models.heads import BilinearQHead, QHead
from vgf_llm.models.value import LogRatioValue, StateFeatures, build_value

WIDTH, VOCAB = 6, 9


@pytest.mark.parametrize("hidden_size", [None, 5])
@pytest.mark.parametrize("states", [(1,), (4, 3)], ids=["few candidates", "many candidates"])
def test_q_heads_evaluate_candidate_rows(hidden_size: int | None, states: tuple[int, ...]) -> None:
    hidden, ids = torch.randn(*states, WIDTH), torch.randint(VOCAB, (*states, 4))
    vocab, bilinear = QHead(WIDTH, VOCAB, hidden_size), BilinearQHead(WIDTH, 7, hidden_size)
    embedding = torch.randn(VOCAB, 7)
    for head in (vocab, bilinear):
        shake(head)

    def trunk(head: Any) -> Tensor:
        return hidden if hidden_size is None else nn.functional.silu(head.trunk[0](hidden))

    features = trunk(vocab)
    expected = (features @ vocab.out.weight.T + vocab.out.bias).gather(-1, ids)
    torch.testing.assert_close(vocab(hidden, ids), expected)
    features = trunk(bilinear)
    expected = (features @ bilinear.out.weight.T @ embedding.T).gather(-1, ids)
    expected = expected + features @ bilinear.baseline.weight.T + bilinear.baseline.bias
    torch.testing.assert_close(bilinear(hidden, ids, embedding), expected)


@pytest.mark.parametrize("hidden_size", [None, 5])
def test_untrained_heads_are_zero_and_learn(hidden_size: int | None) -> None:
    hidden, ids = torch.randn(2, WIDTH), torch.tensor([[1, 2], [3, 4]])
    for head, args in (
        (QHead(WIDTH, VOCAB, hidden_size), (hidden, ids)),
        (BilinearQHead(WIDTH, WIDTH, hidden_size), (hidden, ids, torch.randn(VOCAB, WIDTH))),
    ):
        out = head(*args)
        assert not out.any()
        out.sum().backward()
        assert head.out.weight.grad.any()


def test_reward_kind_chooses_the_potential() -> None:
    scores = torch.tensor([[-2.0, 0.0, 3.0]])
    bernoulli = build_value("vocab", width=WIDTH, vocab_size=VOCAB)
    regression = build_value("vocab", width=WIDTH, vocab_size=VOCAB, reward_kind="regression")
    torch.testing.assert_close(bernoulli.potential(scores).exp(), torch.sigmoid(scores))
    assert torch.equal(regression.potential(scores), scores)
    torch.testing.assert_close(bernoulli.vote_weights(scores), torch.sigmoid(scores))
    torch.testing.assert_close(regression.vote_weights(scores), torch.softmax(scores, -1))


def test_sequence_values() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    assert build_value("vocab", width=WIDTH, vocab_size=VOCAB).sequence_values(scores, mask).tolist() == [3.0, 5.0, 0.0]
    assert LogRatioValue().sequence_values(scores, mask).tolist() == [6.0, 9.0, 0.0]


def test_log_ratio_is_the_difference_of_normalised_logits() -> None:
    value, ref, ids = torch.randn(2, VOCAB), torch.randn(2, VOCAB), torch.tensor([[0, 3], [8, 1]])
    expected = (value.log_softmax(-1) - ref.log_softmax(-1)).gather(-1, ids)
    found = LogRatioValue().q_values(StateFeatures(value_logits=value, ref_logits=ref), ids)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="`features` lacks the value and reference logits"):
        LogRatioValue().scores(StateFeatures(hidden=value), ids)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"transport_steps": -1}, ValueError, "`transport_steps` must be an integer >= 0 and finite, got -1"),
        ({"transport_steps": 1.5}, TypeError, "`transport_steps` must be an integer, got 1.5"),
        ({"transport_steps": True}, TypeError, "`transport_steps` must be an integer, got True"),
        ({"transport_steps": 10**400}, ValueError, "`transport_steps` must be an integer"),
        ({"transport_steps": 10**5000}, ValueError, "`transport_steps` must be an integer.*too long to show"),
        ({"num_particles": 0}, ValueError, "`num_particles` must be an integer >= 1 and finite, got 0"),
        ({"top_k_candidates": b"8"}, TypeError, "`top_k_candidates` must be an integer, got b'8'"),
        ({"block_size": 0}, ValueError, "`block_size` must be an integer or None >= 1"),
        ({"step_size": float("nan")}, ValueError, "`step_size` must be a number > 0 and finite, got nan"),
        ({"step_size": float("inf")}, ValueError, "`step_size` must be a number > 0 and finite, got inf"),
        ({"step_size": 0.0}, ValueError, "`step_size` must be a number > 0 and finite, got 0.0"),
        ({"step_size": 10**400}, ValueError, "`step_size` must be a number > 0 and finite"),
        ({"step_size": "fast"}, TypeError, "`step_size` must be a number, got 'fast'"),
        ({"step_size": None}, TypeError, "`step_size` must be a number, got None"),
        ({"alpha": -1.0}, ValueError, "`alpha` must be a number or None > 0 and finite, got -1.0"),
        ({"max_kl": 0.0}, ValueError, "`max_kl` must be a number or None > 0"),
        ({"max_kl": object()}, TypeError, "`max_kl` must be a number or None, got <object"),
        ({"min_entropy": -0.1}, ValueError, "`min_entropy` must be a number >= 0"),
        ({"min_candidate_prob": 1.0}, ValueError, r"`min_candidate_prob` must be a number in \[0, 1\), got 1.0"),
        ({"min_candidate_prob": float("nan")}, ValueError, "`min_candidate_prob` must be a number.*got nan"),
        ({"selection": "best"}, ValueError, "`selection` must be one of 'value', .*; got 'best'"),
        ({"space": "hidden"}, ValueError, "`space` must be one of 'logit', .*; got 'hidden'"),
        ({"interaction": "yes"}, ValueError, "`interaction` must be one of False, True; got 'yes'"),
        ({"rescore": 1}, ValueError, "`rescore` must be one of False, True; got 1"),
        ({"metric": "fisher"}, ValueError, "`metric` is no longer a transport setting"),
        ({"noise": 0.0}, ValueError, "`noise` is no longer a transport setting"),
        ({"repulsion": True}, ValueError, "`repulsion=True` needs `interaction=True`"),
    ],
)
def test_transport_config_refuses(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TransportConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": 0.1}, "here: `noise` is no longer a transport setting"),
        ({"step_size": "a"}, "here: `step_size` must be a number"),
        ({"steps": 3}, r"here has transport fields \['steps'\]"),
        ([1], r"here has transport fields \[1\]"),
    ],
)
def test_transport_settings_that_were_read_name_their_source(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransportConfig.from_dict(settings, "here")


def test_transport_config_defaults_are_valid() -> None:
    assert TransportConfig(**asdict(TransportConfig())) == TransportConfig()
    assert copy.deepcopy(TransportConfig(alpha=0.5)) == TransportConfig(alpha=0.5)
