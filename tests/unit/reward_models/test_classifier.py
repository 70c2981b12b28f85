# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Classifiers as reward functions: their own tokenizer and template, limits, and scores that are no numbers."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from reward_models.classifier import ClassifierReward
from tests.trainer.tiny import llama, tokenizer
from tests.unit.reward_models.classifiers import classifier
from vgf_llm.models.sequence_value import SequenceValue
from vgf_llm.trainer.score.rewards import RewardRunner

PROMPTS = ["w1 w2", "w3", "w4 w5 w6", "w7"]
COMPLETIONS = [" w8", " w9 w10 w11", " w12", " w1 w1"]


def test_scores_are_the_models_own_whatever_the_batch() -> None:
    model, tok = classifier(), tokenizer()
    expected = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        ids = torch.tensor([tok(prompt + completion).input_ids])
        expected.append(model(input_ids=ids).logits.item())
    for batch_size in (1, 3, 16):
        reward = ClassifierReward(model, tok, batch_size=batch_size)
        assert reward(prompts=PROMPTS, completions=COMPLETIONS, extra=[0] * 4) == pytest.approx(expected, abs=1e-5)
    closed = ClassifierReward(model, tok, append_eos=True)(prompts=PROMPTS[:1], completions=COMPLETIONS[:1])
    ids = torch.tensor([[*tok(PROMPTS[0] + COMPLETIONS[0]).input_ids, tok.eos_token_id]])
    assert closed == pytest.approx([model(input_ids=ids).logits.item()], abs=1e-5)


def test_it_works_with_an_encoder_and_in_the_trainer() -> None:
    tok = tokenizer()
    bert = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tok),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            max_position_embeddings=16,
            num_labels=1,
        )
    )
    runner = RewardRunner(ClassifierReward(bert, tok, name="judge"))
    rewards = runner([{}] * 4, PROMPTS, COMPLETIONS, [[1]] * 4)
    assert runner.reward_func_names == ["judge"]
    assert rewards.isfinite().all() and rewards.std() > 0


def test_conversations_use_the_reward_models_own_template() -> None:
    tok = tokenizer(chat=True)
    tok.chat_template = "{% for message in messages %}w20 {{ message['content'] }} {% endfor %}"
    model = classifier()
    prompt, completion = [{"role": "user", "content": "w1"}], [{"role": "assistant", "content": "w2"}]
    ids = torch.tensor([tok("w20 w1 w20 w2", add_special_tokens=False).input_ids])
    assert ClassifierReward(model, tok)(prompts=[prompt], completions=[completion]) == pytest.approx(
        [model(input_ids=ids).logits.item()], abs=1e-5
    )


def test_a_trained_ensemble_is_read_with_its_pooling_and_lower_bound(tmp_path: Path) -> None:
    model = classifier(3)
    model.config.reward_pooling = "mean"
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    reward = ClassifierReward(tmp_path, lower_bound_coef=0.5)
    assert reward.__name__ == tmp_path.name
    ids = [*tokenizer()("w1 w8").input_ids, 2]
    batch = (torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
    mask = torch.tensor([[0] * (len(ids) - 2) + [1, 1]])
    values = SequenceValue.from_classifier(model, "mean").from_ids(*batch, mask).detach()
    expected = float(values.mean() - 0.5 * values.std(correction=0))
    assert reward(prompts=["w1"], completions=[" w8"]) == pytest.approx([expected], abs=1e-5)
    assert reward(prompts=["w1"], completions=[""])[0] is not None, "its end is a response"


def test_a_classifier_of_several_labels_is_told_which_one_pays() -> None:
    model = classifier(3, id2label={0: "bad", 1: "fair", 2: "good"}, label2id={"bad": 0, "fair": 1, "good": 2})
    with pytest.raises(ValueError, match=r"has 3 labels \(\['bad', 'fair', 'good'\]\)"):
        ClassifierReward(model, tokenizer())
    ids = torch.tensor([tokenizer()("w1 w8").input_ids])
    expected = model(input_ids=ids).logits.softmax(-1)[0, 2].logit().item()
    for label in ("good", 2):
        reward = ClassifierReward(model, tokenizer(), label=label)
        assert reward(prompts=["w1"], completions=[" w8"]) == pytest.approx([expected], abs=1e-5)
    for label in ("great", 3, -1):
        with pytest.raises(ValueError, match=r"`label` must be one of \['bad', 'fair', 'good'\] or its number"):
            ClassifierReward(model, tokenizer(), label=label)
    with pytest.raises(ValueError, match="a single label needs none"):
        ClassifierReward(classifier(), tokenizer(), label=0)


def test_a_checkpoint_without_a_head_is_refused(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks the weights \['score.weight'\]"):
        ClassifierReward(tmp_path, tokenizer())


def test_an_empty_completion_is_not_judged_by_the_prompt() -> None:
    rewards = ClassifierReward(classifier(), tokenizer())(prompts=["w1", "w1"], completions=["", " w2"])
    assert rewards[0] is None and rewards[1] is not None


def test_texts_longer_than_the_context_are_refused() -> None:
    reward = ClassifierReward(classifier(), tokenizer(), name="short")
    assert reward.max_length == 32
    with pytest.raises(
        ValueError, match=r"1 texts are longer than the 32 tokens that the reward model 'short'.*row 1: 41"
    ):
        reward(prompts=["w1", "w1"], completions=[" w2", " w3" * 40])
    limited = tokenizer(model_max_length=8)
    assert ClassifierReward(classifier(), limited).max_length == 8


def test_scores_that_are_no_numbers_are_refused() -> None:
    model = classifier()
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"'broken' scored rows \[0, 1\] with nan.*float32"):
        ClassifierReward(model, tokenizer(), name="broken")(prompts=["w1", "w2"], completions=[" w3", " w4"])


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="`tokenizer` has 32 tokens and the reward model embeds 8"):
        ClassifierReward(classifier(vocab_size=8), tokenizer())
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        ClassifierReward(classifier(), tokenizer(), batch_size=0)
    with pytest.raises(ValueError, match="1 prompts for 2 completions"):
        ClassifierReward(classifier(), tokenizer())(prompts=["w1"], completions=[" w2", " w3"])
    bare = tokenizer()
    bare.pad_token = bare.eos_token = None
    with pytest.raises(ValueError, match="neither a padding nor an end-of-sequence token"):
        ClassifierReward(classifier(), bare)
