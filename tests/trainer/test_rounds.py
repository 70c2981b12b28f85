# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Rounds: which rows train under a likelihood, other batches in later passes, any size, completions of a function."""

import logging
import math

import pytest
import torch

from tests.trainer import tiny
from vgf_llm import VGFModel
from vgf_llm.trainer import rollout
from vgf_llm.trainer.buffer import RolloutGroup


def test_the_likelihood_trains_on_successes_alone(tmp_path, monkeypatch):
    run = tiny.trainer(tmp_path, tiny.mostly_high, max_steps=4, rollout_policy="value", value_loss="likelihood")
    model, batches = run.vgf_model, []
    read = run._losses
    monkeypatch.setattr(run, "_losses", lambda wrapped, batch: batches.append(batch) or read(wrapped, batch))
    monkeypatch.setattr(model, "ref_logps", lambda *args, **kwargs: pytest.fail("the reference has no part in it"))
    run.train()
    assert run.rounds.loss_kind == "likelihood"
    solved = [batch for batch in batches if bool((batch["rewards"] == 1).any())]
    assert solved
    assert len({size for batch in solved for size in batch["group_sizes"]}) > 1  # as many rows as successes
    for batch in solved:
        assert batch["rewards"].unique().tolist() == [1.0]
    # Whole groups, failures included, give the loss that their successes alone give.
    batch = run._collate([RolloutGroup([5, 6], [[7, 8, 2], [9, 2], [10, 11]], [1.0, 0.0, 1.0])])
    kept = run._collate([RolloutGroup([5, 6], [[7, 8, 2], [10, 11]], [1.0, 1.0])])
    with torch.no_grad():
        torch.testing.assert_close(read(run.model, batch)[0], read(run.model, kept)[0])


def test_a_round_larger_than_a_batch_of_sampling_is_sampled_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "_ROWS_ON_CPU", 6)
    run = tiny.trainer(tmp_path, num_generations=4, per_device_train_batch_size=16, rollout_policy="transport")
    sizes = []
    generate = run.rollout._generate
    monkeypatch.setattr(run.rollout, "_generate", lambda ids, value: sizes.append(len(ids)) or generate(ids, value))
    rows = [row for row in tiny.prompts(4)["prompt"] for _ in range(4)]
    found = run.rollout(rows)
    assert sizes == [4, 4, 4, 4]  # whole groups, so that each prompt is read once
    assert len(found.completion_ids) == len(found.completions) == len(found.ref_logps) == 16
    # Prompts of similar length are sampled together, and every completion comes back to its own.
    lengths = [len(ids) for ids in found.prompt_ids]
    assert lengths != sorted(lengths)
    for prompt, ids, logps in zip(found.prompt_ids, found.completion_ids, found.ref_logps, strict=True):
        row = torch.tensor([[*prompt, *ids]])
        expected = run.vgf_model.ref_logps(row, torch.ones_like(row), len(ids))
        torch.testing.assert_close(torch.tensor([logps]), expected, atol=1e-5, rtol=1e-4)


def test_later_passes_over_a_round_have_other_batches_of_the_same_completions(tmp_path):
    def batches(pass_index):
        return [run.rounds.micro_batch(i, pass_index * steps + i, torch.device("cpu")) for i in range(steps)]

    def texts(batch):
        return [tuple(ids) for ids in batch["completion_ids"].tolist()]

    steps = 4
    run = tiny.trainer(
        tmp_path, num_iterations=2, steps_per_generation=steps, replay_ratio=0.0, value_holdout_ratio=0.0, max_steps=1
    )
    run.train()
    first, again, second = ([{text for text in texts(batch)} for batch in batches(index)] for index in (0, 0, 1))
    assert first == again != second
    assert {text[:2] for batch in first for text in batch} == {text[:2] for batch in second for text in batch}


def test_the_likelihood_refuses_graded_rewards(tmp_path):
    run = tiny.trainer(tmp_path, tiny.high_tokens, max_steps=1, value_loss="likelihood")
    with pytest.raises(ValueError, match=r"`value_loss='likelihood'` .* other than 0 and 1 arrived.*'pairwise'"):
        run.train()


def test_auto_waits_for_a_success_and_gives_the_likelihood_up_for_graded_rewards(tmp_path, caplog):
    rounds = iter([[0.0] * 8, [0.0, 1.0] * 4, [0.0, 1.0] * 4, [0.5, 1.0, 0.0, 0.25] * 2, [0.5, 1.0, 0.0, 0.25] * 2])
    run = tiny.trainer(
        tmp_path, lambda completions, **kwargs: next(rounds), max_steps=5, value_holdout_ratio=0.0, replay_ratio=1.0
    )
    kinds, kept = [], []
    begin = run.rounds.begin

    def note(groups):
        begin(groups)
        kinds.append(run.rounds.loss_kind)
        kept.append([tuple(group.rewards.tolist()) for group in run.rounds.buffer.groups])

    run.rounds.begin = note
    with caplog.at_level(logging.WARNING):
        run.train()
    assert kinds == [None, "likelihood", "likelihood", "pairwise", "pairwise"]
    assert kept[:4] == [[], [], [(1.0, 1.0)] * 2, []]
    assert kept[4] == [(0.5, 1.0, 0.0, 0.25)] * 2
    assert run.rounds.winner_coef == 0.0
    assert "others arrived now, from 0 to 1" in caplog.text
    assert all(math.isfinite(loss) for loss in tiny.history(run, "loss"))


@pytest.mark.parametrize("steps", [0, 2])
def test_some_completions_of_each_prompt_are_the_bases(tmp_path, monkeypatch, steps):
    run = tiny.trainer(tmp_path, num_base_generations=1, num_generations=4, rollout_transport_steps=steps, top_k=1)
    with torch.no_grad():  # a value that moves every token
        for name, parameter in run.vgf_model.named_parameters():
            if "lora_B.value" in name:
                parameter.normal_(std=3.0)
    calls = []
    generate = run.rollout._generate
    monkeypatch.setattr(
        run.rollout, "_generate", lambda ids, value: calls.append((len(ids), value)) or generate(ids, value)
    )
    rows = [row for row in tiny.prompts(6)["prompt"] for _ in range(4)]
    mixed = run.rollout(rows)
    assert calls == [(6, False), (18, True)]
    assert mixed.ref_logps is None
    assert (mixed.kl is not None) == (steps > 0)
    greedy = {}
    for value in (False, True):
        greedy[value] = generate(mixed.prompt_ids, value)[0]
    assert greedy[False] != greedy[True]
    for row, ids in enumerate(mixed.completion_ids):
        assert ids == greedy[row % 4 > 0][row]
    calls.clear()
    run.rollout(rows, mode="eval")
    assert calls == [(24, True)]


def test_the_reward_of_what_the_value_sampled_is_logged(tmp_path):
    def reward(completions, **kwargs):
        return [float(row % 4 in (1, 2)) for row in range(len(completions))]

    run = tiny.trainer(tmp_path, reward, num_base_generations=1, max_steps=1)
    run.train()
    assert tiny.history(run, "rollout/reward") == [pytest.approx(2 / 3)]
    assert tiny.history(run, "reward") == [0.5]
    run = tiny.trainer(tmp_path, reward, num_base_generations=0, max_steps=1)
    run.train()
    assert tiny.history(run, "rollout/reward") == []


@pytest.mark.parametrize(("fraction", "rounds"), [(0.5, 3), (0.66, 3), (0.45, 2), (0.01, 1)])
def test_training_ends_on_the_buffer_alone(fraction, rounds, tmp_path, monkeypatch):
    sampled, batches = [], []

    def reward(completion_ids, **kwargs):
        sampled.append(len(completion_ids))
        return tiny.mostly_high(completion_ids)

    settings = {"steps_per_generation": 2, "max_steps": 10, "rollout_fraction": fraction, "replay_ratio": 1.0}
    run = tiny.trainer(tmp_path, reward, value_loss="likelihood", value_holdout_ratio=0.0, **settings)
    read = run._losses
    monkeypatch.setattr(run, "_losses", lambda wrapped, batch: batches.append(batch) or read(wrapped, batch))
    run.train()
    assert sampled == [16] * rounds  # the nearest number of whole rounds, two steps each
    assert run.rounds.fresh == []
    known = {tuple(group.prompt_ids.tolist()) for group in run.rounds.buffer.groups}
    assert len(batches) == 10
    for batch in batches[2 * rounds :]:
        assert len(batch["group_sizes"]) == 4  # two fresh ones and two replayed ones, were they sampled
        rows = [ids[mask.bool()] for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
        assert {tuple(row.tolist()) for row in rows} <= known
        assert batch["num_groups"] == 4


def test_without_a_success_sampling_goes_on(tmp_path):
    sampled = []

    def reward(completion_ids, **kwargs):
        sampled.append(len(completion_ids))
        return [0.0] * len(completion_ids)

    tiny.trainer(tmp_path, reward, value_loss="likelihood", max_steps=4, rollout_fraction=0.5).train()
    assert sampled == [8] * 4


def test_rollout_function(tmp_path):
    def given(prompts, trainer):
        output = tiny.fixed_rollout(prompts, trainer)
        output["completion_ids"][0] = []
        return {**output, "logprobs": None, "judgement": [float(i) for i in range(len(prompts))]}

    def reward(completion_ids, judgement, **kwargs):
        assert completion_ids[0] == [tiny.EOS]  # a completion without tokens ended at once
        return judgement

    run = tiny.trainer(tmp_path, reward, rollout_func=given)
    run.train()
    assert tiny.history(run, "reward") == [pytest.approx(3.5)] * 3


def test_reference_logprobs_of_a_rollout_function_spare_the_pass(tmp_path, monkeypatch):
    def given(prompts, trainer):
        output, told = tiny.fixed_rollout(prompts, trainer), []
        for prompt, completion in zip(output["prompt_ids"], output["completion_ids"], strict=True):
            ids = torch.tensor([prompt + completion])
            with torch.no_grad():
                logps = trainer.vgf_model.policy(ids).logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
            told.append(logps.gather(1, torch.tensor(completion)[:, None])[:, 0].tolist())
        return {**output, "ref_logprobs": told}

    settings = {"value_parametrization": "log_ratio", "value_loss": "pairwise"}
    computed = tiny.trainer(tmp_path / "a", rollout_func=tiny.fixed_rollout, **settings)
    computed.train()
    monkeypatch.setattr(VGFModel, "ref_logps", lambda *args, **kwargs: pytest.fail("a pass of the reference"))
    told = tiny.trainer(tmp_path / "b", rollout_func=given, **settings)
    told.train()
    assert tiny.history(told, "value/loss") == pytest.approx(tiny.history(computed, "value/loss"), abs=1e-5)
