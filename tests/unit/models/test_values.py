# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Heads, values and the configuration, against plain tensor arithmetic."""

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.layouts import shake
from vgf_llm.models import BilinearQHead, QHead, StateFeatures, TransportConfig, ValueHead, build_value
from vgf_llm.models.value import LogRatioValue

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
        (ValueHead(WIDTH, hidden_size), (hidden,)),
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


def test_a_state_value_is_one_number_for_all_candidates() -> None:
    value = build_value("v_head", width=WIDTH, vocab_size=VOCAB)
    shake(value)
    hidden, ids = torch.randn(2, WIDTH), torch.zeros(2, 4, dtype=torch.long)
    expected = value.head(hidden)
    torch.testing.assert_close(value.scores(StateFeatures(hidden=hidden), ids), expected[:, None].expand(2, 4))
    torch.testing.assert_close(value.state_potential(hidden), nn.functional.logsigmoid(expected))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transport_steps": -1}, "`transport_steps` must be an integer >= 0, got -1"),
        ({"transport_steps": 1.5}, "`transport_steps` must be an integer"),
        ({"transport_steps": True}, "`transport_steps` must be an integer"),
        ({"num_particles": 0}, "`num_particles` must be an integer >= 1, got 0"),
        ({"top_k_candidates": 0}, "`top_k_candidates` must be an integer >= 1"),
        ({"step_size": float("nan")}, "`step_size` must be a finite number > 0, got nan"),
        ({"step_size": float("inf")}, "`step_size` must be a finite number > 0, got inf"),
        ({"step_size": 0.0}, "`step_size` must be a finite number > 0, got 0.0"),
        ({"step_size": "fast"}, "`step_size` must be a finite number > 0, got 'fast'"),
        ({"step_size": True}, "`step_size` must be a finite number"),
        ({"alpha": -1.0}, "`alpha` must be a finite number > 0, got -1.0"),
        ({"max_kl": 0.0}, "`max_kl` must be a finite number > 0"),
        ({"min_entropy": -0.1}, "`min_entropy` must be a finite number >= 0"),
        ({"min_candidate_prob": 1.0}, r"`min_candidate_prob` must be in \[0, 1\), got 1.0"),
        ({"min_candidate_prob": float("nan")}, "`min_candidate_prob` must be a finite number >= 0, got nan"),
        ({"selection": "best"}, "`selection` must be one of value, weighted_vote, majority, none; got 'best'"),
        ({"space": "token"}, "`space` must be one of logit, hidden, sequence_embedding, sequence_logit; got 'token'"),
        ({"metric": "l2"}, "`metric` must be one of fisher, euclidean; got 'l2'"),
        ({"repulsion": True}, "`repulsion=True` needs `interaction=True`"),
    ],
)
def test_transport_config_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransportConfig(**settings)


def test_transport_config_defaults_are_valid() -> None:
    assert TransportConfig(**asdict(TransportConfig())) == TransportConfig()
