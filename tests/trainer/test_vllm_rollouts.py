# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Rollouts through TRL's vLLM engine, with a stand-in for it: what it is given, and when weights are sent to it."""

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.trainer import tiny
from tests.trainer.engines import FakeClient, FakeEngine
from vgf_llm.trainer.sample.sampler import Request
from vgf_llm.trainer.sample.vllm import FrozenServer, _SeededLLM, seeds

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch):
    monkeypatch.setattr("vgf_llm.trainer.sample.vllm.vllm_generation_class", lambda: FakeEngine)
    monkeypatch.setattr("vgf_llm.trainer.sample.vllm.vllm_client_class", lambda: FakeClient)


def trained(tmp_path, **settings):
    run = tiny.trainer(tmp_path, use_vllm=True, rollout_policy="base", **settings)
    run.train()
    return run


def test_a_frozen_policy_is_never_sent(tmp_path):
    run = trained(tmp_path, eval_dataset=tiny.prompts(4), eval_strategy="steps", eval_steps=3, num_generations_eval=2)
    engine = run.vllm_generation
    assert engine.syncs == 0
    assert engine.calls == [(8, 4)] * 3 + [(8, 2)]


@pytest.mark.parametrize("peft", [False, True])
def test_a_distilled_policy_is_sent_once_a_step(tmp_path, peft):
    # Two rounds are sampled within each optimizer step.
    run = trained(
        tmp_path,
        distill_coef=1.0,
        peft_config=LORA if peft else None,
        gradient_accumulation_steps=2,
        steps_per_generation=1,
    )
    assert len(run.vllm_generation.calls) == 6
    assert run.vllm_generation.syncs == 3


def test_a_frozen_adapter_is_sent_once(tmp_path):
    assert trained(tmp_path, model=get_peft_model(tiny.llama(), LORA)).vllm_generation.syncs == 1


@pytest.mark.parametrize("distill_coef", [0.0, 1.0])
def test_the_engine_sees_the_names_of_the_checkpoint(tmp_path, distill_coef):
    """The value's LoRA adapter renames the policy's parameters, and is none of vLLM's business."""
    run = trained(tmp_path, distill_coef=distill_coef)
    seen = dict(run.vllm_generation.model.named_parameters())
    expected = dict(tiny.llama().named_parameters())
    assert {name: p.shape for name, p in seen.items()} == {name: p.shape for name, p in expected.items()}
    assert run.vllm_generation.model.config is run.vgf_model.config


def test_rollout_functions_find_the_engine(tmp_path):
    def rollout(prompts, trainer):
        ids = trainer._tokenizer(prompts)["input_ids"]
        completion_ids = trainer.vllm_generation.generate(ids, None, trainer.num_generations)[1]
        return {"prompt_ids": ids, "completion_ids": completion_ids}

    run = trained(tmp_path, rollout_func=rollout, distill_coef=1.0)
    assert run.vllm_generation.syncs == 3
    assert tiny.trainer(tmp_path).vllm_generation is None


def test_every_completion_has_a_seed_of_its_own(tmp_path):
    run = trained(tmp_path, eval_dataset=tiny.prompts(4), eval_strategy="steps", eval_steps=3)
    rounds = run.vllm_generation.llm.seeds
    assert len(rounds) == 5
    assert len({seed for seeds in rounds for seed in seeds}) == sum(map(len, rounds))
    again = trained(tmp_path, eval_dataset=tiny.prompts(4), eval_strategy="steps", eval_steps=3)
    assert again.vllm_generation.llm.seeds == rounds
    other = trained(tmp_path, seed=43)
    assert not {seed for seeds in other.vllm_generation.llm.seeds for seed in seeds} & set(rounds[0])


def request_of(prompts, first_row):
    return Request(["text"] * len(prompts), prompts, ["base"] * len(prompts), 4, first_row, "train", 3, 0)


def test_vllm_refuses_rows_that_it_cannot_sample(tmp_path):
    run = tiny.trainer(tmp_path, use_vllm=True, rollout_policy="base")
    request = dataclasses.replace(request_of([[5]], 0), who=["value"])
    with pytest.raises(ValueError, match="vLLM samples 'base' only, and 'value' is asked for"):
        run.sampler(request)


def test_seeds_do_not_depend_on_the_number_of_processes():
    prompts = [[5], [5], [5], [5], [6, 7], [6, 7], [6, 7], [6, 7]]
    whole = seeds(request_of(prompts, 0))
    parts = [request_of(prompts[start : start + 2], start) for start in (0, 2, 4, 6)]
    assert [seed for part in parts for seed in seeds(part)] == whole

    class Record:
        def generate(self, prompts, sampling_params):
            return [params.seed for params in sampling_params]

    # Two processes share an engine, which sees the rows of both.
    rows = [{"prompt_token_ids": ids} for ids in prompts]
    for part, expected in ((parts[1], whole[:4]), (parts[3], whole[4:])):
        start = part.first_row // 4 * 4
        seen = _SeededLLM(Record(), part, 2).generate(rows[start : start + 4], type("Params", (), {})())
        assert seen == expected


def test_a_server_with_a_frozen_policy_gets_requests_and_nothing_else(tmp_path):
    settings = {"vllm_mode": "server", "temperature": 0.7, "top_p": 0.9, "vllm_server_port": 8123}
    run = trained(tmp_path, **settings, generation_kwargs={"frequency_penalty": 0.5})
    engine = run.vllm_generation
    assert isinstance(engine, FrozenServer)
    client = engine.vllm_client
    assert client.kwargs["base_url"] == "http://0.0.0.0:8123"
    assert [request["n"] for request in client.requests] == [4] * 6
    assert client.requests[0]["temperature"] == 0.7 and client.requests[0]["max_tokens"] == 6
    # The same seeds, hence the same rounds, as with an engine in this process.
    colocated = trained(tmp_path, temperature=0.7, top_p=0.9)
    weights = tiny.value_state(colocated)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tiny.value_state(run).items())


def test_a_process_asks_the_server_for_its_own_part_of_a_group():
    client = FakeClient()
    sampling = {"generation_kwargs": None}
    prompts = [[5]] * 6 + [[6]] * 3
    whole = request_of(prompts, 2)  # rows 2 and 3 of one group, 4 to 7 of the next, then three of a third
    completion_ids = FrozenServer(client, sampling).generate(prompts, None, 4, seeds=seeds(whole))[1]
    assert [(request["prompt"], request["n"]) for request in client.requests] == [([5], 2), ([5], 4), ([6], 3)]
    assert len(completion_ids) == 9


def test_a_seed_for_all_completions_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`generation_kwargs\['seed'\]` \(3\) would give"):
        tiny.config(tmp_path, use_vllm=True, rollout_policy="base", generation_kwargs={"seed": 3})
