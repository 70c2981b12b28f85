# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The parts of a run together, from the configuration to the loss, with numbers worked out by hand."""

import math

import pytest
import torch

from tests.trainer import tiny
from vgf_llm.models import TransportConfig
from vgf_llm.models.adapter_rows import adapter_rows
from vgf_llm.models.sampling import Sampling
from vgf_llm.models.valued_policy import Candidates
from vgf_llm.trainer.fit.micro_batch import Row
from vgf_llm.trainer.fit.objective import transport_candidates
from vgf_llm.trainer.keep.buffer import RolloutGroup
from vgf_llm.trainer.keep.rounds import PassShare
from vgf_llm.trainer.measure.gate import measure_gate
from vgf_llm.trainer.sample.arguments import generation_arguments, rollout_samplings

NAN = math.nan
TEMPERATURE, CANDIDATES = 0.7, 5
TRANSPORT = {"top_k_candidates": CANDIDATES, "min_candidate_prob": 0.0}
# A budget of 1 over all tokens gives the model behind the value.
WHOLE = {"top_k_candidates": tiny.VOCAB, "min_candidate_prob": 0.0, "transport_steps": 2, "step_size": 0.5}


def shaken(tmp_path, **settings):
    """A run whose value's adapter is not zero."""
    given = {"temperature": TEMPERATURE, "transport": TRANSPORT, "value_holdout_ratio": 0.0, **settings}
    run = tiny.trainer(tmp_path, **given)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in run.vgf_model.value_adapter_parameters().values():
            parameter.normal_(std=0.3)
    run.vgf_model.eval()
    return run


def logits_of(model, adapter, prompt, completion):
    """Raw logits at every token of a completion, one row alone."""
    with torch.no_grad(), adapter_rows(model.policy, adapter):
        return model.policy(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]


def everything(model, adapter, prompt, completion):
    """Log-probabilities of all tokens."""
    return logits_of(model, adapter, prompt, completion).log_softmax(dim=-1)


def kl_per_token(model, prompt, completion):
    """KL of the model behind the value to the base at every token of a completion."""
    own, base = (everything(model, adapter, prompt, completion) for adapter in ("value", None))
    return (own.exp() * (own - base)).sum(dim=-1)


def logps(model, adapter, prompt, completion, *, candidates=None):
    """Log-probabilities of a completion as it was drawn."""
    logits = logits_of(model, adapter, prompt, completion)
    tokens = torch.tensor(completion).unsqueeze(1)
    if candidates is not None:
        kept = torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.topk(candidates).indices, True)
        logits = logits.masked_fill(~kept.scatter(1, tokens, True), -torch.inf)
    return (logits / TEMPERATURE).log_softmax(dim=-1).gather(1, tokens).squeeze(1)


def test_samplings_are_those_of_the_configuration(tmp_path):
    settings = {"top_k": 7, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1}
    args = tiny.config(tmp_path, temperature=TEMPERATURE, **settings)
    transport = TransportConfig(top_k_candidates=3, min_candidate_prob=0.25)
    base, value, transported = rollout_samplings(args, transport)
    assert base == Sampling(temperature=TEMPERATURE, **settings)
    assert value == Sampling(temperature=TEMPERATURE, **settings, candidates=(3, 0.25))
    assert transported == Sampling(temperature=TEMPERATURE)
    drawn = generation_arguments(args, tiny.tokenizer(), [tiny.EOS, 9])
    given = {name: drawn[name] for name in ("temperature", *settings)}
    assert given == {"temperature": TEMPERATURE, **settings}
    assert drawn["eos_token_id"] == [tiny.EOS, 9] and drawn["max_new_tokens"] == args.max_completion_length
    assert drawn["do_sample"] is True and drawn["no_repeat_ngram_size"] == 0  # whatever a checkpoint ships


def test_a_round_remembers_who_sampled_each_completion(tmp_path):
    run = shaken(tmp_path, rollout_policy="value", num_base_generations=1, max_steps=1)
    run.train()
    assert [group.samplers.tolist() for group in run.rounds.fresh] == [[0, 1, 1, 1]] * 2
    for group in run.rounds.fresh:
        assert group.rewards.tolist() == pytest.approx(tiny.high_tokens([ids.tolist() for ids in group.completion_ids]))


def test_the_likelihood_is_of_the_distribution_that_drew_each_row(tmp_path):
    run = shaken(tmp_path, value_loss="likelihood")
    group = RolloutGroup([5, 6], [[7, 8, 2], [9, 2], [10, 11]], [1.0, 0.0, 1.0], samplers=[0, 0, 1])
    rows = [Row(group, 0), Row(group, 2)]
    loss, _ = run.objective(run.model, run.vgf_model, run._collate(rows, num_groups=1))
    of_base = logps(run.vgf_model, "value", [5, 6], [7, 8, 2]).sum()
    of_value = logps(run.vgf_model, "value", [5, 6], [10, 11], candidates=CANDIDATES).sum()
    torch.testing.assert_close(loss.detach(), -(of_base + of_value) / 2)
    plain = logps(run.vgf_model, "value", [5, 6], [10, 11]).sum()
    assert abs(float(plain - of_value)) > 0.05  # the candidates make a difference


@pytest.mark.parametrize("backbone", ["lora", "copy"])
def test_the_entropy_bonus_is_the_mean_over_the_tokens_that_are_read(tmp_path, backbone):
    run = shaken(tmp_path, value_loss="likelihood", entropy_coef=0.3, value_backbone=backbone)
    group = RolloutGroup([5, 6], [[7, 8, 2], [9, 2], [10, 11]], [1.0, 0.0, 1.0], samplers=[0, 0, 1])
    batch = run._collate([Row(group, 0), Row(group, 2)], num_groups=1, absent=[Row(group, 1)])
    loss, measured = run.objective(run.model, run.vgf_model, batch, 0.3)
    model = run.vgf_model if backbone == "lora" else None
    entropies = []
    for row in (0, 2):
        completion = group.completion_ids[row].tolist()
        if model is None:
            with torch.no_grad():
                logits = run.vgf_model.value_model(torch.tensor([[5, 6, *completion]])).logits[0, 1:-1]
        else:
            logits = logits_of(model, "value", [5, 6], completion)
        every = (logits / TEMPERATURE).softmax(dim=-1)
        entropies += (-every * every.log()).sum(dim=-1).tolist()
    assert len(entropies) == 5  # the row that stands in has no part
    assert measured["entropy"].tolist() == pytest.approx([sum(entropies), 5])
    assert measured["policy_loss"] == measured["value/loss"]
    assert float((measured["policy_loss"] - loss).detach()) == pytest.approx(0.3 * sum(entropies) / 5, rel=1e-5)


@pytest.mark.parametrize("told", [False, True])
def test_log_ratios_are_at_the_temperature_of_sampling(tmp_path, told):
    def given(prompts, trainer):
        output = tiny.fixed_rollout(prompts, trainer)
        at_temperature_1 = [[-9.0] * len(ids) for ids in output["completion_ids"]]
        return {**output, **({"ref_logprobs": at_temperature_1} if told else {})}

    run = shaken(tmp_path, rollout_func=given, value_loss="pairwise", rollout_policy="base", max_steps=1)
    run.train()
    group = run.rounds.fresh[0]
    prompt, completions = group.prompt_ids.tolist(), [ids.tolist() for ids in group.completion_ids]
    for completion, known in zip(completions, group.ref_logps, strict=True):
        torch.testing.assert_close(known, logps(run.vgf_model, None, prompt, completion), atol=1e-5, rtol=1e-5)
    # Pairs compare responses wherever they came from: no candidates, whoever drew them.
    group = RolloutGroup(prompt, completions, group.rewards, group.ref_logps, samplers=[0, 1, 1, 1])
    rows = [Row(group, index) for index in range(len(group))]
    batch = run._collate(rows, with_reference=True)
    run.vgf_model.eval()
    scores = run.objective.score(run.vgf_model, batch)[:, 0]
    for score, completion in zip(scores, completions, strict=True):
        own, ref = (logps(run.vgf_model, adapter, prompt, completion).sum() for adapter in ("value", None))
        torch.testing.assert_close(score, own - ref, atol=1e-4, rtol=1e-4)


def test_a_completion_ends_with_its_end_token_or_is_cut(tmp_path):
    run = shaken(tmp_path, rollout_policy="value", num_base_generations=2)
    rows = [row for row in tiny.prompts(24) for _ in range(4)]
    samples = run.sampler(run._request(rows, "train", 0))
    assert set(samples.finished) == {False, True}
    for ids, finished in zip(samples.completion_ids, samples.finished, strict=True):
        assert finished == (ids[-1] == tiny.EOS) and tiny.EOS not in ids[:-1]
        assert finished or len(ids) == run.max_completion_length


def test_transport_spends_what_two_candidates_say():
    start = torch.tensor([[[0.75, 0.25]]]).log()
    candidates = Candidates(
        torch.tensor([[[3, 4]]]), torch.ones(1, 1, 2).bool(), start, torch.tensor([[[0.0, 3.0]]]).log1p()
    )
    # The second candidate's potential is log 4: 0.75 and 0.25 * 4 ** 0.5 after half a step of length 1.
    moved = transport_candidates(candidates, TransportConfig(transport_steps=1, step_size=0.5))
    assert moved.logits.exp().flatten().tolist() == pytest.approx([0.6, 0.4])
    assert moved.distance.item() == pytest.approx(0.15)
    assert moved.kl.item() == pytest.approx(0.6 * math.log(0.6 / 0.75) + 0.4 * math.log(0.4 / 0.25))


def test_the_losses_of_value_and_policy_add_up(tmp_path):
    run = shaken(tmp_path, distill_coef=3.0, value_loss="pairwise", rollout_policy="base", transport=WHOLE)
    group = RolloutGroup([5, 6], [[7, 8, 2], [9, 2]], [1.0, 0.0], [[-3.0, -3.5, -4.0], [-3.0, -3.2]])
    batch = run._collate([Row(group, 0), Row(group, 1)], with_reference=True)
    loss, measured = run.objective(run.model, run.vgf_model, batch)
    # The policy, still the base, regresses to the model behind the value.
    kl = [kl_per_token(run.vgf_model, [5, 6], completion).mean() for completion in ([7, 8, 2], [9, 2])]
    expected = float(sum(kl) / 2)
    assert expected > 0.01
    assert float(measured["distill/loss"]) == pytest.approx(expected, rel=1e-4)
    assert float(measured["distill/kl"]) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(loss.detach(), measured["value/loss"] + 3.0 * measured["distill/loss"])
    moved = run.objective.score(run.vgf_model, batch)[:, 0]
    assert float(measured["value/loss"]) == pytest.approx(math.log1p(math.exp(float(moved[1] - moved[0]))), abs=1e-5)


def test_which_completions_teach_the_value_and_which_the_policy_alone(tmp_path):
    run = shaken(tmp_path, distill_coef=1.0, rollout_policy="base")
    objective, outcomes = run.objective, run.rounds.outcomes
    mixed, tied = RolloutGroup([5], [[7]] * 3, [1.0, 0.0, NAN]), RolloutGroup([6], [[7]] * 2, [1.0, 1.0])
    for group in (mixed, tied):
        outcomes.record(group.prompt_ids, group.rewards)
    found = {}
    for kind in ("likelihood", "pairwise"):
        objective.set_kind(kind)
        found[kind] = [(objective.keeps(group), objective.learns(group, outcomes)) for group in (mixed, tied)]
        assert objective.reads(mixed, outcomes) == [0, 1, 2] and objective.reads(tied, outcomes) == [0, 1]
    assert found["likelihood"] == [([0], [0]), ([0, 1], [])]  # successes, of prompts with a contrast
    assert found["pairwise"] == [([0, 1], [0, 1]), ([], [])]  # a tie has nothing to compare
    objective.set_kind("likelihood")
    share = PassShare([(mixed, 0), (mixed, 1), (mixed, 2), (tied, 0)], 2.0, 4.0, 9.0)
    batch = run._batch_of([share], None)
    assert batch.trains.tolist() == [True, False, False, False] and batch.present.all()


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_the_gate_counts_pairs_and_adds_up_what_transport_spends_on_each_prompt(tmp_path, at_a_time):
    model = shaken(tmp_path, transport=WHOLE).vgf_model
    prompts, completions = ([5, 6], [11]), ([[7, 8, 2], [9, 2]], [[12, 13], [14, 15, 16, 2]])
    expected = dict.fromkeys(("correct", "kl", "distance"), 0.0)
    groups, by_hand = [], []
    for prompt, pair, rewards in zip(prompts, completions, ([1.0, 0.0], [0.0, 1.0]), strict=True):
        values = []
        for ids in pair:
            own, base = (everything(model, adapter, prompt, ids) for adapter in ("value", None))
            values.append(float((own - base).gather(1, torch.tensor(ids).unsqueeze(1)).sum()))
            expected["kl"] += float(kl_per_token(model, prompt, ids).mean()) / 2
            expected["distance"] += float((own.exp() - base.exp()).abs().sum(dim=-1).mean()) / 4
        expected["correct"] += float((values[0] > values[1]) == (rewards[0] > rewards[1]))
        groups.append(RolloutGroup(prompt, pair, rewards))
        by_hand.append(values)
    settings = {"num_processes": 1, "process_index": 0, "pad_token_id": 0, "groups_at_a_time": at_a_time}
    counts, scored = measure_gate(model, groups, sequence=False, **settings)
    correct, num_pairs, kl, distance, num_groups = counts.tolist()
    assert (num_pairs, num_groups) == (2, 2)
    found = {"correct": correct, "kl": kl, "distance": distance}
    for name, number in expected.items():
        assert found[name] == pytest.approx(number, rel=1e-4), name
    assert [prompt.rewards for prompt in scored] == [[1.0, 0.0], [0.0, 1.0]]
    assert [prompt.values for prompt in scored] == [pytest.approx(values, rel=1e-4) for values in by_hand]


def test_samples_tell_the_kl_that_each_token_took(tmp_path):
    run = shaken(tmp_path, rollout_policy="transport", num_base_generations=2, transport=WHOLE)
    request = run._request([row for row in tiny.prompts(6) for _ in range(4)], "train", 0)
    samples = run.sampler(request)
    rows = [row for row, who in enumerate(request.who) if who == "transport"]
    kl = [kl_per_token(run.vgf_model, request.prompt_ids[row], samples.completion_ids[row]).mean() for row in rows]
    assert len(rows) == 12 and len({len(samples.completion_ids[row]) for row in rows}) > 1
    torch.testing.assert_close(samples.kl.sort().values, torch.stack(kl).sort().values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [8, 6, 5])  # of the 20 completions of five prompts the last batch has four
def test_evaluation_is_the_mean_over_its_completions(tmp_path, count):
    rewards = []

    def reward(completion_ids, **kwargs):
        rewards.extend(tiny.high_tokens(completion_ids))
        return rewards[-len(completion_ids) :]

    head = {"value_parametrization": "vocab", "value_backbone": "policy"}
    run = tiny.trainer(tmp_path, reward, rollout_func=tiny.fixed_rollout, eval_dataset=tiny.prompts(count), **head)
    # A head starts at zero, so that its squared errors are the squared rewards; batches have eight completions.
    found = run.evaluate()
    expected = sum(reward**2 for reward in rewards) / len(rewards)
    assert len(rewards) == 4 * count and found["eval_loss"] == pytest.approx(expected)
    assert found["eval_value/loss"] == pytest.approx(expected)
    assert found["eval_reward"] == pytest.approx(sum(rewards) / len(rewards))
    assert run.predict(tiny.prompts(count)).metrics["test_loss"] == pytest.approx(expected)


def test_completions_without_a_reward_have_no_part_in_the_loss_of_evaluation(tmp_path):
    def reward(completion_ids, **kwargs):
        return [(1.0, 0.5, None, 0.0)[row % 4] for row in range(len(completion_ids))]

    run = tiny.trainer(tmp_path, reward, rollout_func=tiny.fixed_rollout, eval_dataset=tiny.prompts(4))
    # An adapter starts at zero: every pair of every prompt has the loss log 2.
    assert run.evaluate()["eval_loss"] == pytest.approx(math.log(2))
