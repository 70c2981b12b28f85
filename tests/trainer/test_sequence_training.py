# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Training of sequence-level values: planted preferences are learned, runs resume exactly, losses have closed forms."""

import copy
import sys

import pytest
import torch
from datasets import Dataset

from tests.trainer import tiny
from tests.trainer.test_resume import check_same
from vgf_llm.models import SequenceValue, VGFModel
from vgf_llm.trainer.choose.logged import grouped, tokenized
from vgf_llm.trainer.fit.losses import bootstrap_weights, pairwise_loss, sequence_regression_loss
from vgf_llm.trainer.fit.micro_batch import MicroBatch, Row, collate
from vgf_llm.trainer.keep.buffer import RolloutGroup

SEQUENCE = {"value_parametrization": "sequence", "value_backbone": "copy", "transport_steps": 2, "step_size": 0.5}


def batch(rewards: list[list[float]]) -> MicroBatch:
    """Groups with prompts of their own."""
    groups = [RolloutGroup([prompt], [[7]] * len(row), row) for prompt, row in enumerate(rewards)]
    return collate([Row(group, row) for group in groups for row in range(len(group))], 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"value_ensemble_size": 3, "value_pooling": "last"},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"value_loss": "regression"}, marks=pytest.mark.slow),
    ],
)
def test_a_planted_reward_is_learned_from_samples(tmp_path, settings: dict) -> None:
    run = tiny.trainer(tmp_path, **SEQUENCE, max_steps=30, learning_rate=3e-3, **settings)
    before = tiny.policy_state(run)
    run.train()
    assert run.vgf_model.sequence_value.num_members == settings.get("value_ensemble_size", 1)
    assert run.gate.pairs > 30
    assert tiny.history(run, "value/within_prompt_accuracy")[-1] > 0.65
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.policy_state(run).items())


def test_without_steps_completions_are_the_policys_own_samples(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = lambda *args, **kwargs: pytest.fail("decoded as whole responses")  # noqa: E731
    monkeypatch.setattr(sys.modules["vgf_llm.generation.generate"], "generate_sequences", moved)
    run = tiny.trainer(tmp_path, **SEQUENCE, max_steps=1)
    assert run.vgf_model.transport.space == "sequence_embedding"
    run.train()
    assert run.state.global_step == 1


def test_preference_pairs_need_no_samples(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VGFModel, "generate", lambda *args, **kwargs: pytest.fail("sampled"))
    run = tiny.trainer(
        tmp_path,
        None,
        train_dataset=tiny.pairs(),
        eval_dataset=tiny.pairs(8),
        **{**SEQUENCE, "num_generations": 2, "max_steps": 12, "learning_rate": 3e-3},
        eval_strategy="steps",
        eval_steps=12,
    )
    run.train()
    assert tiny.history(run, "eval_value/within_prompt_accuracy")[-1] > 0.9
    assert tiny.history(run, "reward")[-1] == 0.5
    group = run.rounds.fresh[0]
    assert group.rewards.tolist() == [1.0, 0.0]
    chosen = [token for token in group.completion_ids[0].tolist() if token != tiny.EOS]
    assert chosen and min(chosen) >= tiny.HIGH and group.completion_ids[0][-1] == tiny.EOS


CHAT = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] }}{{ ' </s>' if m['role'] == 'assistant' }}{{ '\\n' }}"
    "{% endfor %}{{ 'assistant ' if add_generation_prompt }}"
)


def conversations(count: int = 12) -> Dataset:
    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = tiny.pairs(count).to_list()
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return Dataset.from_list([{name: turn(roles[name], row[name]) for name in roles} for row in rows])


def groups_of(run) -> dict[tuple[int, ...], list[list[int]]]:
    return {tuple(g.prompt_ids.tolist()): [ids.tolist() for ids in g.completion_ids] for g in run.rounds.fresh}


PAIRS = {**SEQUENCE, "num_generations": 2, "max_steps": 1, "shuffle_dataset": False}


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_conversations_go_through_the_chat_template(tmp_path, implicit: bool, streamed: bool) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CHAT
    dataset = rows = conversations()
    if implicit:
        dataset = dataset.map(
            lambda row: {name: row["prompt"] + row[name] for name in ("chosen", "rejected")}, remove_columns="prompt"
        )
    dataset = dataset.to_iterable_dataset() if streamed else dataset
    run = tiny.trainer(tmp_path, None, train_dataset=dataset, processing_class=tokenizer, **PAIRS)
    run.train()
    found = groups_of(run)
    assert len(found) == 4
    for row in rows.to_list()[:4]:
        prompt = tokenizer(f"user {row['prompt'][0]['content']}\nassistant ")["input_ids"]
        expected = [tokenizer(f"{row[name][0]['content']} </s>")["input_ids"] for name in ("chosen", "rejected")]
        assert found[tuple(prompt)] == expected  # one end, and without the line break after it


def test_blanks_behind_the_end_of_a_response_are_cut() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.add_tokens(["\n"])  # a token of its own, as in most tokenizers
    settings = {"max_completion_length": None, "max_prompt_length": None, "chat_template_kwargs": {}}
    pairs = tokenized(grouped(conversations(4), 2), tokenizer, eos_token_ids=[tiny.EOS], **settings)
    assert all(tiny.VOCAB in row["prompt_ids"] for row in pairs)
    for row, texts in zip(pairs, tiny.pairs(4), strict=True):
        assert row["completion_ids"][0] == [*tokenizer(texts["chosen"])["input_ids"], tiny.EOS]


def test_texts_without_a_prompt_are_split_where_they_differ(tmp_path) -> None:
    rows = tiny.pairs(12).to_list()
    # TRL splits where the first character differs; all words but the unknown one begin with the same.
    joined = [{"chosen": f"{row['prompt']} {row['chosen']}", "rejected": f"{row['prompt']} <unk>"} for row in rows]
    run = tiny.trainer(tmp_path, None, train_dataset=Dataset.from_list(joined), **PAIRS)
    run.train()
    tokenize = tiny.tokenizer()
    assert groups_of(run) == {
        tuple(tokenize(row["prompt"])["input_ids"]): [
            [*tokenize(row["chosen"])["input_ids"], tiny.EOS],
            [tokenize.unk_token_id, tiny.EOS],
        ]
        for row in rows[:4]
    }
    apart = Dataset.from_dict({"chosen": ["w1 w2"], "rejected": ["v1 w2"]})
    with pytest.raises(ValueError, match="nothing in common"):
        tiny.trainer(tmp_path, None, train_dataset=apart, **PAIRS)


def test_pairs_that_are_too_long_are_left_out_and_counted(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    rows = tiny.pairs(12).to_list()
    rows[1]["chosen"] = " ".join(["w20"] * 6)  # with its end 7 tokens
    rows[2]["rejected"] = " ".join(["w2"] * 5)  # 6 tokens fit
    rows[3]["prompt"] = " ".join(["w3"] * 59)  # beside 6 tokens 58 fit into the context
    with caplog.at_level("WARNING"):
        run = tiny.trainer(tmp_path, None, train_dataset=Dataset.from_list(rows), **PAIRS)
    assert "4 of the 24 completions of `train_dataset`" in caplog.text and "`max_completion_length` (6)" in caplog.text
    chosen, rejected = zip(*run.train_dataset["completion_ids"], strict=True)
    assert [len(ids) for ids in rejected].count(6) == 1
    assert len(chosen) == 10 and max(map(len, chosen)) <= 6
    run.train()
    caplog.clear()
    stream = Dataset.from_list(rows).to_iterable_dataset()
    streamed = tiny.trainer(tmp_path, None, train_dataset=stream, **PAIRS)
    with caplog.at_level("WARNING"):
        assert len(list(streamed.train_dataset)) == 10
    assert caplog.text.count("`max_completion_length` (6)") == 1
    with pytest.raises(ValueError, match=r"All 8 completions.*max_completion_length"):
        tiny.trainer(tmp_path, None, train_dataset=Dataset.from_list([rows[1]] * 4), **PAIRS)


def test_the_trained_value_moves_responses_and_is_saved(tmp_path) -> None:
    run = tiny.trainer(tmp_path, **SEQUENCE, max_steps=20, learning_rate=3e-3)
    run.train()
    run.save_model(str(tmp_path / "saved"))
    model = VGFModel.from_pretrained(tmp_path / "saved")
    assert model.transport.space == "sequence_embedding"
    ids = torch.tensor([[5, 9, 4]] * 4)
    settings = {"num_particles": 4, "do_sample": True, "max_new_tokens": 6, "min_candidate_prob": 0.0}
    means = []
    for steps in (0, 3):
        torch.manual_seed(0)
        out = model.generate(ids, transport_steps=steps, return_dict_in_generate=True, **settings)
        tokens = out.particle_sequences[..., 3:]
        means.append((tokens >= tiny.HIGH).float().sum() / (tokens > tiny.EOS).float().sum())
    assert means[1] > means[0] + 0.05


def test_resume_is_exact(tmp_path) -> None:
    settings = {**SEQUENCE, "value_ensemble_size": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = tiny.trainer(tmp_path / "whole", **settings)
    whole.train()
    resumed = tiny.trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    check_same(resumed, whole)


def test_distillation_raises_the_likelihood_of_the_best_transported_responses(tmp_path) -> None:
    run = tiny.trainer(
        tmp_path, **SEQUENCE, rollout_policy="transport", distill_coef=1.0, max_steps=3, learning_rate=3e-3
    )
    before = tiny.policy_state(run)
    run.train()
    after = tiny.policy_state(run)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    losses = tiny.history(run, "distill/loss")
    assert losses[-1] < losses[0] and tiny.history(run, "rollout/kl")


def test_a_model_with_a_sequence_value_is_trained_further(tmp_path) -> None:
    value = SequenceValue(copy.deepcopy(tiny.llama().model), 2)
    run = tiny.trainer(tmp_path, model=VGFModel(tiny.llama(), sequence_value=value), **SEQUENCE, max_steps=1)
    before = value.head.weight.clone()
    run.train()
    assert run.vgf_model.sequence_value is value and not torch.equal(before, value.head.weight)
    with pytest.raises(ValueError, match="has none"):
        tiny.trainer(tmp_path, model=VGFModel(tiny.llama()), **SEQUENCE)


def test_losses_have_their_closed_forms() -> None:
    data = batch([[1.0, 0.0], [0.25, 0.75], [torch.nan, 1.0]])
    values = torch.tensor([0.3, -0.2, 1.0, 2.0, 5.0, 0.5]).unsqueeze(-1).requires_grad_()
    gaps = torch.tensor([0.5, 1.0])
    torch.testing.assert_close(pairwise_loss(values, data), torch.nn.functional.softplus(-gaps).sum() / 3)
    expected = torch.tensor([0.7**2 + 0.2**2, 0.75**2 + 1.25**2, 0.5**2]).sum() / 2 / 3
    torch.testing.assert_close(sequence_regression_loss(values, data, torch.ones(6, 1)), expected)


def test_members_see_bootstraps_that_depend_on_prompt_and_seed_alone() -> None:
    data = batch([[1.0, 0.0]] * 400)
    weights = bootstrap_weights(data, 3, seed=1)
    assert torch.equal(weights, bootstrap_weights(data, 3, seed=1))
    assert not torch.equal(weights, bootstrap_weights(data, 3, seed=2))
    assert weights.mean().item() == pytest.approx(1.0, abs=0.1) and weights.var().item() == pytest.approx(1.0, abs=0.2)
    last = collate([Row(RolloutGroup([399], [[7]], [1.0]), 0)], 0)
    assert torch.equal(bootstrap_weights(last, 3, seed=1)[0], weights[2 * 399])
    assert bootstrap_weights(data, 1, seed=1).eq(1).all()
    values = torch.randn(800, 3)
    errors = (values.view(400, 2, 3) - torch.tensor([1.0, 0.0]).view(1, 2, 1)).square().view(800, 3)
    torch.testing.assert_close(sequence_regression_loss(values, data, weights), (weights * errors).mean())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"value_backbone": "lora"}, "backbone of its own"),
        ({"value_loss": "bernoulli"}, r"one of \['pairwise', 'regression'\]"),
        ({"value_pooling": "max"}, "value_pooling"),
        ({"value_ensemble_size": 0}, "value_ensemble_size"),
        ({"value_parametrization": "bilinear", "value_ensemble_size": 2}, "whole responses"),
        ({"distill_coef": 1.0}, "rollout_policy"),
        ({"value_head_hidden_size": 8}, "linear"),
    ],
)
def test_bad_settings_are_named(tmp_path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.config(tmp_path, **{**SEQUENCE, **settings})


def test_bad_pairs_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="num_generations"):
        tiny.trainer(tmp_path, None, train_dataset=tiny.pairs(), **SEQUENCE)
    two = {**SEQUENCE, "num_generations": 2}
    with pytest.raises(ValueError, match="eval_dataset"):
        tiny.trainer(tmp_path, None, train_dataset=tiny.pairs(), eval_dataset=tiny.prompts(4), **two)
    with pytest.raises(ValueError, match="read and not sampled"):
        tiny.trainer(tmp_path, None, train_dataset=tiny.pairs(), rollout_func=tiny.fixed_rollout, **two)
    empty = tiny.pairs(8).map(lambda row: {"chosen": ""})
    with pytest.raises(ValueError, match="empty response"):
        tiny.trainer(tmp_path, None, train_dataset=empty, **two)
    with pytest.raises(ValueError, match="chat template"):
        tiny.trainer(tmp_path, None, train_dataset=conversations(), **two)
    with pytest.raises(ValueError, match="vocabulary"):
        other = tmp_path / "other"
        tiny.llama(vocab_size=40).save_pretrained(other)
        tiny.trainer(tmp_path, **{**SEQUENCE, "value_backbone": str(other)})
