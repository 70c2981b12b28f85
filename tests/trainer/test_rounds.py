# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Rounds: which rows train under a likelihood, who samples, any size, completions of a function."""

import logging
import math

import pytest
import torch

from tests.trainer import tiny
from vgf_llm import VGFModel
from vgf_llm.trainer.fit.micro_batch import Row
from vgf_llm.trainer.keep.buffer import RolloutGroup
from vgf_llm.trainer.sample import transformers as transformers_sampler


def recorded(run):
    """The micro-batches of a run, as they come."""
    batches, make = [], run._training_batch

    def record():
        batches.append(make())
        return batches[-1]

    run._training_batch = record
    return batches


def rows_of(*groups):
    return [Row(group, index) for group in groups for index in range(len(group))]


def test_the_likelihood_trains_on_successes_alone(tmp_path, monkeypatch):
    run = tiny.trainer(tmp_path, tiny.mostly_high, max_steps=4, rollout_policy="value", value_loss="likelihood")
    model, batches = run.vgf_model, recorded(run)
    monkeypatch.setattr(model, "ref_logps", lambda *args, **kwargs: pytest.fail("the reference has no part in it"))
    run.train()
    assert run.objective.kind == "likelihood"
    solved = [batch for batch in batches if bool(batch.present.any())]
    assert solved
    for batch in solved:
        assert batch.rewards.unique().tolist() == [1.0]
        assert batch.ref_logps is None
    # Whole groups, failures included, give the loss that their successes alone give.
    group = RolloutGroup([5, 6], [[7, 8, 2], [9, 2], [10, 11]], [1.0, 0.0, 1.0])
    run.objective.set_kind("likelihood")
    with torch.no_grad():
        whole, kept = (
            run.objective(run.model, model, run._collate(rows, num_groups=1))[0]
            for rows in (rows_of(group), [Row(group, 0), Row(group, 2)])
        )
    torch.testing.assert_close(whole, kept)


def trained_on(folder, rewards, **settings):
    """The batches of a training on two prompts whose rounds earn `rewards`."""
    rounds = iter(rewards)
    run = tiny.trainer(
        folder,
        lambda completions, **kwargs: next(rounds),
        train_dataset=tiny.prompts(2),
        max_steps=len(rewards),
        value_holdout_ratio=0.0,
        replay_ratio=1.0,
        **settings,
    )
    batches = recorded(run)
    run.train()
    return batches


def test_prompts_without_a_contrast_teach_a_log_ratio_nothing(tmp_path):
    batches = trained_on(tmp_path, [[1.0] * 8, [0.0] * 8, [1.0] * 8])
    # Right at once is no news; that it could have been wrong is known from the second round on, whose completions teach
    # nothing themselves: the first round's do, from the buffer.
    assert [bool(batch.present.any()) for batch in batches] == [False, True, True]
    assert [int(batch.trains.sum()) for batch in batches] == [0, 8, 16]
    assert [len(batch.rewards) for batch in batches[1:]] == [8, 16]


def test_a_contrast_of_the_run_lets_every_success_teach(tmp_path):
    rounds = [[1.0] * 8, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]]
    by_prompt, by_run = (trained_on(tmp_path / scope, rounds, contrast=scope) for scope in ("prompt", "run"))
    counts = [[int(batch.trains.sum()) for batch in batches] for batches in (by_prompt, by_run)]
    # In the second round one prompt succeeds again, and the other fails for the first time. Two groups are replayed: of
    # the second prompt alone, or of any; the first one's fresh successes teach where the run's contrast is enough.
    assert counts == [[0, 4 + 4], [0, 4 + 4 + 4]]


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("rollout_policy", ["base", "value", "transport"])
@pytest.mark.parametrize(("reward", "contrast"), [(0.0, "prompt"), (1.0, "prompt"), (1.0, "run")])
def test_a_constant_reward_leaves_the_value_where_it_was(tmp_path, rollout_policy, temperature, reward, contrast):
    run = tiny.trainer(
        tmp_path,
        lambda completions, **kwargs: [reward] * len(completions),
        rollout_policy=rollout_policy,
        temperature=temperature,
        contrast=contrast,
        max_steps=4,
    )
    before = tiny.value_state(run)
    run.train()
    after = tiny.value_state(run)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_round_larger_than_a_batch_of_sampling_is_sampled_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers_sampler, "_ROWS_ON_CPU", 6)
    run = tiny.trainer(tmp_path, num_generations=4, per_device_train_batch_size=16, rollout_policy="base")
    sizes, generate = [], run.sampler._generate
    monkeypatch.setattr(
        run.sampler, "_generate", lambda model, ids, who: sizes.append(len(ids)) or generate(model, ids, who)
    )
    rows = [row for row in tiny.prompts(4) for _ in range(4)]
    request = run._request(rows, "train", 0)
    found = run.sampler(request)
    assert sizes == [4, 4, 4, 4]  # whole groups, so that each prompt is read once
    assert len(found.completion_ids) == len(found.finished) == 16
    # Prompts of similar length are sampled together, and every completion comes back to its own.
    lengths = [len(ids) for ids in request.prompt_ids]
    assert lengths != sorted(lengths)
    logps = run._ref_logps(request.prompt_ids, request, found)
    for prompt, ids, told in zip(request.prompt_ids, found.completion_ids, logps, strict=True):
        row = torch.tensor([[*prompt, *ids]])
        expected = run.vgf_model.ref_logps(row, torch.ones_like(row), len(ids))
        torch.testing.assert_close(torch.tensor([told]), expected, atol=1e-5, rtol=1e-4)


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
        kinds.append(run.objective.kind)
        kept.append([tuple(group.rewards.tolist()) for group in run.rounds.buffer.groups])

    run.rounds.begin = note
    with caplog.at_level(logging.WARNING):
        run.train()
    assert kinds == [None, "likelihood", "likelihood", "pairwise", "pairwise"]
    assert kept[:4] == [[], [], [(1.0, 1.0)] * 2, []]
    assert kept[4] == [(0.5, 1.0, 0.0, 0.25)] * 2
    assert "others arrived now, from 0 to 1" in caplog.text
    assert all(math.isfinite(loss) for loss in tiny.history(run, "loss"))


@pytest.mark.parametrize("policy", ["value", "transport"])
def test_some_completions_of_each_prompt_are_the_bases(tmp_path, monkeypatch, policy):
    run = tiny.trainer(tmp_path, num_base_generations=1, num_generations=4, rollout_policy=policy, top_k=1)
    with torch.no_grad():  # a value that moves every token
        for parameter in run.vgf_model.value_adapter_parameters().values():
            parameter.normal_(std=3.0)
    calls, generate = [], run.sampler._generate
    monkeypatch.setattr(
        run.sampler, "_generate", lambda model, ids, who: calls.append((len(ids), who)) or generate(model, ids, who)
    )
    rows = [row for row in tiny.prompts(6) for _ in range(4)]
    request = run._request(rows, "train", 0)
    mixed = run.sampler(request)
    assert calls == [(6, "base"), (18, policy)]
    assert (mixed.kl is not None) == (policy == "transport")
    run.vgf_model.eval()
    greedy = {}
    for who in ("base", policy):
        found = generate(run.vgf_model, request.prompt_ids, who)
        greedy[who] = [ids[:length] for ids, length in zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)]
    assert greedy["base"] != greedy[policy]
    for row, ids in enumerate(mixed.completion_ids):
        assert ids == greedy["base" if row % 4 == 0 else policy][row]
    calls.clear()
    run.sampler(run._request(rows, "eval", 0))
    assert calls == [(24, policy)]


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


def test_training_ends_on_the_buffer_alone(tmp_path):
    sampled = []

    def reward(completion_ids, **kwargs):
        sampled.append(len(completion_ids))
        return tiny.mostly_high(completion_ids)

    settings = {"steps_per_generation": 2, "max_steps": 10, "rollout_fraction": 0.66, "replay_ratio": 1.0}
    run = tiny.trainer(tmp_path, reward, value_loss="likelihood", value_holdout_ratio=0.0, **settings)
    batches = recorded(run)
    run.train()
    assert sampled == [16] * 3  # the nearest number of whole rounds, two steps each
    assert run.rounds.fresh == []
    known = {tuple(group.prompt_ids.tolist()) for group in run.rounds.buffer.groups}
    assert len(batches) == 10
    for batch in batches[6:]:
        rows = [ids[mask.bool()] for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
        assert {tuple(row.tolist()) for row in rows} <= known
        assert batch.num_groups == 4  # two fresh ones and two replayed ones, were they sampled


def test_without_a_success_sampling_goes_on(tmp_path):
    sampled = []

    def reward(completion_ids, **kwargs):
        sampled.append(len(completion_ids))
        return [0.0] * len(completion_ids)

    tiny.trainer(tmp_path, reward, value_loss="likelihood", max_steps=4, rollout_fraction=0.5).train()
    assert sampled == [8] * 4


def test_rounds_without_any_reward_warn_and_end_the_run_after_some(tmp_path, caplog):
    run = tiny.trainer(
        tmp_path, lambda completions, **kwargs: [None] * len(completions), max_steps=5, max_rounds_without_reward=3
    )
    before = tiny.value_state(run)
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="`max_rounds_without_reward`"):
        run.train()
    assert run.state.global_step == 2
    assert "returned None" in caplog.text
    after = tiny.value_state(run)
    assert all(torch.equal(before[name], after[name]) for name in before)


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


def test_a_rollout_function_may_say_which_completions_were_cut(tmp_path):
    def given(prompts, trainer):
        output = tiny.fixed_rollout(prompts, trainer)
        return {**output, "finished": [row % 2 == 0 for row in range(len(prompts))]}

    run = tiny.trainer(tmp_path, rollout_func=given, mask_truncated_completions=True, max_steps=1)
    run.train()
    assert tiny.history(run, "completions/clipped_ratio") == [0.5]
    assert all(group.rewards.isnan().tolist() == [False, True] * 2 for group in run.rounds.fresh)


def test_a_completion_of_a_rollout_function_was_cut_unless_it_ends_in_an_end_token(tmp_path):
    def given(prompts, trainer):
        rows = [[7, tiny.EOS], [tiny.EOS, 7], [7], [tiny.EOS]]  # one goes on behind an end token, as turns do
        return {**tiny.fixed_rollout(prompts, trainer), "completion_ids": rows * (len(prompts) // 4)}

    run = tiny.trainer(tmp_path, rollout_func=given, mask_truncated_completions=True, max_steps=1)
    run.train()
    assert all(group.rewards.isnan().tolist() == [False, True, True, False] for group in run.rounds.fresh)


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
