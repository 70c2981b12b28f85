# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Rollouts through TRL's vLLM engine, with a stand-in for it: what it is given, and when weights are sent to it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.trainer import engines, tiny
from tests.trainer.engines import FakeClient, FakeEngine, FakeSession, completion, stand_in
from vgf_llm._compat import vllm_generation_class
from vgf_llm.models.sampling import Sampling
from vgf_llm.trainer.sample.sampler import Request
from vgf_llm.trainer.sample.server import FrozenServer
from vgf_llm.trainer.sample.vllm import seeds

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture(autouse=True)
def engine_options(monkeypatch):
    """Puts the stand-ins in place, and gives the arguments that engines are started with beside TRL's."""
    return stand_in(monkeypatch)


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


def test_a_completion_of_the_greatest_length_was_cut_unless_it_ends_in_an_end_token(tmp_path, monkeypatch):
    run = tiny.trainer(tmp_path, use_vllm=True, rollout_policy="base", max_completion_length=3)
    answers = [[7, 8, 9], [7, 8, tiny.EOS], [7, 8], [tiny.EOS]]  # the third may have met a stop string
    rows = iter(answers)
    monkeypatch.setattr(engines, "completion", lambda *args: next(rows))
    samples = run.sampler(request_of([[5]] * 4, 0))
    assert samples.completion_ids == answers and samples.finished == [False, True, True, True]


VALUE = {"use_vllm": True, "value_holdout_ratio": 0.0}
CANDIDATES = {"top_k_candidates": 9, "min_candidate_prob": 0.03}


def adapter_of(run):
    """The value's adapter by the names in its file."""
    names = run.vgf_model.value_adapter_parameters()
    return {name.replace(".value.", "."): tensor.detach() for name, tensor in names.items()}


def test_base_and_value_share_a_call_and_rows_of_the_value_name_its_adapter(tmp_path, monkeypatch, engine_options):
    run = tiny.trainer(tmp_path, tiny.mostly_high, **VALUE, **CANDIDATES, num_base_generations=1)
    engine = run.vllm_generation.llm
    assert engine_options["enable_lora"] and engine_options["max_loras"] == 2 and engine_options["max_lora_rank"] == 16
    assert [request.lora_int_id for request in engine.llm_engine.requests] == [1]
    samplers, begin = [], run.rounds.begin
    monkeypatch.setattr(
        run.rounds, "begin", lambda groups: samplers.extend(g.samplers for g in groups) or begin(groups)
    )
    run.train()
    assert [len(rows) for rows in engine.rows] == [8, 8, 8]
    for number, rows in enumerate(engine.rows, start=1):  # the first step's weights are those of the start
        adapters, arguments = zip(*rows, strict=True)
        assert [lora and lora.lora_int_id for lora in adapters] == [None, number, number, number] * 2
        assert list(arguments) == [None, *[{"own_candidates": [9, 0.03]}] * 3] * 2
    assert run.vllm_generation.syncs == 0, "base weights were sent"
    # The losses know the same candidates, in the rows of the value alone.
    base, value, _ = run.objective.samplings
    assert base == Sampling() and value == Sampling(candidates=(9, 0.03))
    assert [row.tolist() for row in samplers] == [[0, 1, 1, 1]] * 6


def test_each_round_has_the_adapter_of_its_step_and_the_last_one_is_dropped(tmp_path):
    seen = []
    run = tiny.trainer(tmp_path, tiny.mostly_high, **VALUE)
    lora = run.vllm_generation.llm.llm_engine
    run.vllm_generation.llm.before = lambda call: seen.append(
        (set(lora.loaded), {name: tensor.clone() for name, tensor in adapter_of(run).items()})
    )
    run.train()
    assert [loaded for loaded, _ in seen] == [{1}, {2}, {3}]
    for sent, (_, expected) in zip(lora.weights, seen, strict=True):
        assert sent.keys() == expected.keys()
        assert all(torch.equal(sent[name], tensor) for name, tensor in expected.items())
    assert len({request.lora_name for request in lora.requests}) == 3
    assert [Path(request.lora_path).exists() for request in lora.requests] == [False, False, True]


def test_an_adapter_is_sent_once_where_rounds_share_its_weights(tmp_path):
    settings = {"gradient_accumulation_steps": 2, "steps_per_generation": 1}
    run = tiny.trainer(tmp_path, tiny.mostly_high, **VALUE, **settings)
    run.train()
    assert len(run.vllm_generation.calls) == 6
    numbers = [rows[-1][0].lora_int_id for rows in run.vllm_generation.llm.rows]
    assert numbers == [1, 1, 2, 2, 3, 3]
    # Weights that change without a step are sent as well.
    with torch.no_grad():
        next(iter(run.vgf_model.value_adapter_parameters().values())).add_(1.0)
    run.sampler(dataclasses.replace(request_of([[5]] * 4, 0), who=["value"] * 4))
    assert run.vllm_generation.llm.rows[-1][0][0].lora_int_id == 4


def test_the_weights_of_a_copy_take_the_turns_of_the_base(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(FakeEngine, "sync_weights", lambda engine: seen.append(dict(engine.model.named_parameters())))
    settings = {**VALUE, **CANDIDATES, "value_backbone": "copy", "vllm_mode": "colocate", "model": tiny.llama()}
    settings |= {"eval_dataset": tiny.prompts(4), "eval_strategy": "steps", "eval_steps": 3, "num_base_generations": 1}
    run = tiny.trainer(tmp_path, tiny.mostly_high, **settings)
    run.train()
    base, value = (dict(model.named_parameters()) for model in (run.vgf_model.policy, run.vgf_model.value_model))
    expected = [*[base, value] * 3, value, value]  # two batches of evaluation
    assert all(
        found[name] is tensor for found, model in zip(seen, expected, strict=True) for name, tensor in model.items()
    )
    engine, xargs = run.vllm_generation.llm, {"own_candidates": [9, 0.03]}
    assert [len(rows) for rows in engine.rows] == [2, 6] * 3 + [8, 8]
    assert engine.rows[:2] == [[(None, None)] * 2, [(None, xargs)] * 6] and engine.rows[-1] == [(None, xargs)] * 8
    # The rows have the seeds that they have in one call, and come back in their places.
    request = run._request([{"prompt": "w1 w2"}] * 4, "train", 5)
    own = seeds(request)
    assert run.sampler(request).completion_ids == [completion(request.prompt_ids[0], seed) for seed in own]
    assert engine.seeds[-2:] == [own[:1], own[1:]]


def test_a_plain_server_reads_the_adapter_and_gives_the_same_rounds(tmp_path):
    run = tiny.trainer(tmp_path, tiny.mostly_high, **VALUE, **CANDIDATES, vllm_mode="server")
    run.train()
    client = run.vllm_generation.vllm_client
    value_client = run.vllm_generation.value_client
    assert [request["n"] for request in client.requests] == [2] * 12, "half of each group is the value's"
    models = [(request["model"], request["salt"], request["xargs"]) for request in client.requests]
    assert models[::2] == [("policy", None, None)] * 6
    name, xargs = value_client.model, {"own_candidates": [9, 0.03]}
    assert models[1::2] == [(name, f"{name}-{number}", xargs) for number in (1, 1, 2, 2, 3, 3)]
    assert list(client.session.loaded) == [name]
    colocated = tiny.trainer(tmp_path, tiny.mostly_high, **VALUE, **CANDIDATES)
    colocated.train()
    weights = tiny.value_state(colocated)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tiny.value_state(run).items())


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        (
            "status",
            404,
            r"does not load the value's adapter .* \(404, the server's answer\). Start it with .*--enable-lora",
        ),
        ("candidates", False, "does not know `own_candidates`.*--logits-processors vgf_llm.serving.candidates:Cand"),
    ],
)
def test_a_server_that_cannot_sample_the_value_is_refused_at_once(tmp_path, monkeypatch, attribute, value, message):
    monkeypatch.setattr(FakeSession, attribute, value)
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, **VALUE, vllm_mode="server")


def rollout(prompts, trainer):
    return {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"value_backbone": "copy", "vllm_mode": "server"},
            "is a LlamaForCausalLM of its own, with `vllm_mode='server'",
        ),
        (
            {"value_backbone": "other"},
            "Set `value_backbone='lora'`, or `value_backbone='copy'` and `vllm_mode='colocate'",
        ),
        ({"vllm_enable_sleep_mode": True}, "Set `vllm_enable_sleep_mode=False`"),
        ({"model": "adapter"}, r"adapter of its own, 'default'. Merge that with `merge_and_unload\(\)`"),
        ({"peft_config": LoraConfig(r=4, alpha_pattern={"q_proj": 2}, target_modules="all-linear")}, "`alpha_pattern`"),
        ({"rollout_func": rollout}, "samples the base, but `rollout_policy` comes to 'value'"),
    ],
)
def test_what_one_engine_cannot_sample_is_refused_before_it_starts(tmp_path, engine_options, settings, message):
    if settings.get("model") == "adapter":
        settings = {"model": get_peft_model(tiny.llama(), LORA)}
    if settings.get("value_backbone") == "other":
        tiny.llama(num_hidden_layers=1).save_pretrained(tmp_path / "other")
        settings = {"value_backbone": str(tmp_path / "other")}
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, **VALUE, **settings)
    assert not engine_options


def test_seeds_do_not_depend_on_the_number_of_processes():
    prompts = [[5], [5], [5], [5], [6, 7], [6, 7], [6, 7], [6, 7]]
    whole = seeds(request_of(prompts, 0))
    parts = [request_of(prompts[start : start + 2], start) for start in (0, 2, 4, 6)]
    assert [seed for part in parts for seed in seeds(part)] == whole

    # Two processes share an engine, which sees the rows of both.
    for part, expected in ((parts[1], whole[:4]), (parts[3], whole[4:])):
        start = part.first_row // 4 * 4
        assert seeds(part, prompts[start : start + 4]) == expected


def test_a_prompt_has_other_seeds_in_every_round_place_and_evaluation():
    one = request_of([[5]] * 8, 0)  # the same prompt twice in a round, with four completions each
    later, evaluation = dataclasses.replace(one, step=4), dataclasses.replace(one, mode="eval")
    assert len({seed for request in (one, later, evaluation) for seed in seeds(request)}) == 24


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


def test_a_missing_vllm_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("vgf_llm.trainer.sample.vllm.vllm_generation_class", vllm_generation_class)
    monkeypatch.setattr("trl.generation.vllm_generation.is_vllm_available", lambda: False)
    with pytest.raises(ImportError, match="vLLM is not available"):
        tiny.trainer(tmp_path, **VALUE, vllm_mode="colocate")
