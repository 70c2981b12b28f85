# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Rewards with gradients: against finite differences, on one-hot soft tokens, and everything that has none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from reward_models.bradley_terry import pad_responses
from reward_models.classifier import ClassifierReward
from reward_models.differentiable import DifferentiableReward, check_same_tokens, score_decoded
from tests.trainer.tiny import tokenizer
from tests.unit.reward_models.classifiers import classifier
from vgf_llm.models.sequence_value import SequenceValue


def reward(members: int = 3, coef: float = 0.5, pooling: str = "mean") -> DifferentiableReward:
    model = classifier(members).double()
    return DifferentiableReward(SequenceValue.from_classifier(model, pooling), tokenizer(), tokenizer(), coef)


def batch() -> dict[str, torch.Tensor]:
    return pad_responses([[1, 5, 6, 7, 2], [1, 8, 9]], [2, 1], pad_token_id=0)


def test_reward_is_the_lower_bound_of_the_ensemble() -> None:
    value, rows = reward(), batch()
    embeds = value.embed(rows.pop("input_ids"))
    members = value(embeds, **rows)
    assert members.shape == (2, 3)
    expected = members.mean(-1) - 0.5 * members.std(-1, correction=0)
    torch.testing.assert_close(value.reward(embeds, **rows), expected)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_gradient_is_that_of_finite_differences(pooling: str) -> None:
    value, rows = reward(pooling=pooling), batch()
    embeds = value.embed(rows.pop("input_ids")).detach()
    rewards, gradient = value.reward_and_grad(embeds, **rows)
    assert not rewards.requires_grad and not gradient.requires_grad
    outside = rows["response_mask"] == 0
    assert (gradient[outside] == 0).all()
    direction = torch.randn_like(embeds) * rows["response_mask"].unsqueeze(-1)
    # the value's float32 head limits the step
    step = 1e-3
    difference = (value.reward(embeds + step * direction, **rows) - value.reward(embeds - step * direction, **rows)) / (
        2 * step
    )
    torch.testing.assert_close(difference.double(), (gradient * direction).sum((1, 2)).double(), atol=5e-3, rtol=2e-2)


def test_gradients_are_there_under_no_grad_and_leave_the_model_alone() -> None:
    value, rows = reward(), batch()
    embeds = value.embed(rows.pop("input_ids"))
    with torch.no_grad():
        _, gradient = value.reward_and_grad(embeds, **rows)
    assert gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in value.parameters())


def test_one_hot_soft_tokens_are_tokens() -> None:
    value, rows = reward(), batch()
    ids = rows.pop("input_ids")
    embeds = value.embed(ids)
    probs = F.one_hot(ids, value.vocab_size).double()
    rewards, by_embedding = value.reward_and_grad(embeds, **rows)
    soft_rewards, by_token = value.soft_reward_and_grad(probs, **rows)
    torch.testing.assert_close(soft_rewards, rewards)
    torch.testing.assert_close(by_token, by_embedding @ value.embedding.detach().T)
    with pytest.raises(ValueError, match="over 5 tokens and the reward model embeds 32"):
        value.soft_reward_and_grad(probs[..., :5], **rows)


def test_texts_and_token_ids_have_one_reward() -> None:
    value, tok = reward(), tokenizer()
    prompts, completions = ["w1 w2", "w3"], [" w4", " w5 w6"]
    scores = value.score(prompts=prompts, completions=completions, completion_ids=[[1], [2]])
    ids = [
        tok(p).input_ids + tok(c, add_special_tokens=False).input_ids + [2]
        for p, c in zip(prompts, completions, strict=True)
    ]
    rows = pad_responses(ids, [len(tok(p).input_ids) for p in prompts], 0)
    assert scores == pytest.approx(value.reward(value.embed(rows.pop("input_ids")), **rows).tolist())


def test_from_a_saved_classifier(tmp_path: Path) -> None:
    model = classifier(2)
    model.config.reward_pooling = "mean"
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    loaded = DifferentiableReward.from_pretrained(tmp_path, tokenizer())
    here = DifferentiableReward.from_pretrained(model, tokenizer(), tokenizer())
    assert loaded.value.pooling == here.value.pooling == "mean"
    arguments: dict[str, Any] = {"prompts": ["w1"], "completions": [" w2 w3"]}
    assert loaded.score(**arguments) == pytest.approx(here.score(**arguments), abs=1e-6)
    assert ClassifierReward(tmp_path)(**arguments) == pytest.approx(here.score(**arguments), abs=1e-5)


def test_other_tokenizers_are_sent_to_the_black_box() -> None:
    other = tokenizer()
    other.add_tokens(["w99"])
    value = SequenceValue.from_classifier(classifier())
    with pytest.raises(ValueError, match=r"differ in 1 tokens, such as \['w99'\].*ClassifierReward.*score_decoded"):
        DifferentiableReward(value, tokenizer(), other)
    check_same_tokens(tokenizer(), tokenizer(chat=True))
    small = SequenceValue.from_classifier(classifier(vocab_size=16))
    with pytest.raises(ValueError, match="policy's tokenizer has 32 tokens and the reward model embeds 16"):
        DifferentiableReward(small, tokenizer(), tokenizer())


def test_the_black_box_path_scores_decoded_text() -> None:
    tok, seen = tokenizer(), {}

    def judge(prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float | None]:
        seen.update(kwargs, completions=completions)
        return [float(len(str(text).split())) if text else None for text in completions]

    ids = [[*tok("w1 w2", add_special_tokens=False).input_ids, 2], [2]]
    assert score_decoded(judge, tok, ["w3", "w4"], ids, topic=["a", "b"]) == [2.0, None]
    assert seen["topic"] == ["a", "b"] and seen["completion_ids"] == ids
    score_decoded(judge, tok, [[{"role": "user", "content": "w3"}]], ids[:1])
    assert seen["completions"] == [[{"role": "assistant", "content": "w1 w2"}]]
    with pytest.raises(ValueError, match="1 prompts for 2 completions"):
        score_decoded(judge, tok, ["w3"], ids)
    with pytest.raises(ValueError, match="returned 1 rewards for 2 completions"):
        score_decoded(lambda **kwargs: [1.0], tok, ["w3", "w4"], ids)


def test_rewards_without_gradient_are_refused() -> None:
    class Detached(SequenceValue):
        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().forward(*args, **kwargs).detach()

    with pytest.raises(TypeError, match=r"got function, which has no gradient in the tokens.*ClassifierReward"):
        DifferentiableReward(lambda **kwargs: [0.0], tokenizer(), tokenizer())
    value, rows = DifferentiableReward(Detached(classifier()), tokenizer(), tokenizer()), batch()
    embeds = value.embed(rows.pop("input_ids"))
    with pytest.raises(ValueError, match=r"no gradient in its inputs.*quantiz.*ClassifierReward"):
        value.reward_and_grad(embeds, **rows)


def test_bad_responses_are_refused() -> None:
    value, rows = reward(), batch()
    embeds = value.embed(rows.pop("input_ids")).detach()
    with pytest.raises(ValueError, match=r"`response_mask` has no token in rows \[1\]"):
        value.reward(embeds, rows["attention_mask"], rows["response_mask"] * torch.tensor([[1], [0]]))
    broken = embeds.clone()
    broken[1] = float("nan")
    with pytest.raises(ValueError, match=r"reward of rows \[1\] is not finite"):
        value.reward(broken, **rows)
    with pytest.raises(ValueError, match="A sequence has 42 tokens; the value's context is 32"):
        value.score(prompts=["w1"], completions=[" w2" * 40])
