# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Serving in vLLM itself, in process and over HTTP. Runs in the environment of scripts/setup_vllm_cpu.sh:

.venv-vllm/bin/python -m pytest -m vllm tests/vllm
"""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.serving import SETTINGS
from tests.layouts import vgf_model
from tests.trainer import tiny
from vgf_llm.cli import main
from vgf_llm.serving import best_of, engine_arguments, score

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

ENGINE = {"enforce_eager": True, "dtype": "float32", "max_model_len": 64, "max_num_seqs": 8, "seed": 0}
PROMPTS = [[1, 5, 9], [1, 7, 4, 11], [1, 20], [1, 13, 6]]
BUDGETS = [
    {"transport_steps": 0},
    {"transport_steps": 8, "step_size": 1.0, "top_k_candidates": 8},
    {"transport_steps": 2, "step_size": 0.25, "top_k_candidates": 40},
    {"transport_steps": 8, "step_size": 4.0, "top_k_candidates": 4},
]
LENGTH = 10


@pytest.fixture(scope="module", autouse=True)
def environment():
    os.environ.update(SETTINGS)


def policy():
    config = LlamaConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=tiny.EOS,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module", params=["vocab", "bilinear"])
def saved(request, tmp_path_factory):
    model = vgf_model(policy(), request.param, std=0.5)
    path = tmp_path_factory.mktemp(request.param) / "tiny-vgf"
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return model, path


def sampling(**kwargs):
    from vllm import SamplingParams

    return SamplingParams(max_tokens=LENGTH, ignore_eos=True, **kwargs)


def run(arguments, params):
    """Token ids and log-probabilities from an engine that lives for this call alone."""
    from vllm import LLM

    engine = LLM(**arguments, **ENGINE)
    try:
        outputs = engine.generate([{"prompt_token_ids": ids} for ids in PROMPTS], params, use_tqdm=False)
        result = []
        for output in outputs:
            chosen = output.outputs[0]
            steps = zip(chosen.token_ids, chosen.logprobs, strict=True)
            result.append((list(chosen.token_ids), [step[token].logprob for token, step in steps]))
        return result
    finally:
        del engine
        gc.collect()


def generated(model, ids, **budget):
    """The greedy continuation of one prompt by `VGFModel.generate`."""
    prompt = torch.tensor([ids])
    limits = {"max_new_tokens": LENGTH, "min_new_tokens": LENGTH, "eos_token_id": None, "do_sample": False}
    return model.generate(prompt, torch.ones_like(prompt), num_particles=1, **budget, **limits)[0, len(ids) :].tolist()


def test_the_engine_decodes_like_generate(saved, tmp_path):
    model, path = saved
    view = tmp_path / "view"
    view.mkdir()
    params = [sampling(temperature=0.0, logprobs=1, extra_args=budget) for budget in BUDGETS]
    found = run(engine_arguments(path, view), params)
    for ids, budget, (tokens, _) in zip(PROMPTS, BUDGETS, found, strict=True):
        assert tokens == generated(model, ids, **budget), budget
    assert found[1][0] != generated(model, PROMPTS[1], transport_steps=0), "the budget moved nothing"


def test_an_exported_log_ratio_value_is_a_plain_model_for_the_engine(tmp_path):
    model = vgf_model(policy(), "log_ratio", "lora", std=0.5)
    model.save_pretrained(tmp_path / "value")
    tiny.tokenizer().save_pretrained(tmp_path / "value")
    assert main(["export", str(tmp_path / "value"), str(tmp_path / "plain")]) == 0
    # Greedy, the engine must say what transport says where the base's candidates are all there are.
    every = {"top_k_candidates": tiny.VOCAB, "min_candidate_prob": 0.0}
    found = run({"model": str(tmp_path / "plain")}, [sampling(temperature=0.0, logprobs=1)] * len(PROMPTS))
    for ids, (tokens, _) in zip(PROMPTS, found, strict=True):
        assert tokens == generated(model, ids, transport_steps=2, step_size=0.5, **every)
        assert tokens != generated(model, ids, transport_steps=0)


def test_budget_zero_is_plain_vllm(saved, tmp_path):
    view = tmp_path / "view"
    view.mkdir()
    arguments = engine_arguments(saved[1], view)
    budget = {"transport_steps": 0}
    settings = {"temperature": 0.8, "top_p": 0.9, "seed": 3, "logprobs": 1}
    with_plugin = run(arguments, [sampling(**settings, extra_args=budget)] * len(PROMPTS))
    without = run({"model": arguments["model"], "logprobs_mode": "processed_logprobs"}, [sampling(**settings)] * 4)
    assert with_plugin == without


def request(port, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    call = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=data, headers=headers)
    with urllib.request.urlopen(call, timeout=60) as response:
        text = response.read()
    return json.loads(text) if text else None


@pytest.fixture
def endpoint(saved, tmp_path):
    """A server started by `vgf serve`, and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", port, "--dtype", "float32", "--enforce-eager", "--max-model-len", 64, "--max-num-seqs", 8]
    command = [sys.executable, "-m", "vgf_llm.cli", "serve", saved[1], *options]
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, env=os.environ.copy())
    try:
        for _ in range(240):
            assert server.poll() is None, (tmp_path / "server.log").read_text()[-3000:]
            try:
                request(port, "/health")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(1)
        else:
            raise AssertionError((tmp_path / "server.log").read_text()[-3000:])
        yield port
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)
        log.close()


def test_the_endpoint(saved, endpoint):
    model, path = saved
    body = {"model": path.name, "prompt": PROMPTS[1], "max_tokens": LENGTH, "temperature": 0, "ignore_eos": True}
    for budget in BUDGETS:
        answer = request(endpoint, "/v1/completions", {**body, "vllm_xargs": budget, "return_token_ids": True})
        prompt = torch.tensor([PROMPTS[1]])
        limits = {"max_new_tokens": LENGTH, "min_new_tokens": LENGTH, "eos_token_id": None, "do_sample": False}
        expected = model.generate(prompt, torch.ones_like(prompt), num_particles=1, **budget, **limits)
        assert answer["choices"][0]["token_ids"] == expected[0, len(PROMPTS[1]) :].tolist()
    with pytest.raises(urllib.error.HTTPError) as refused:
        request(endpoint, "/v1/completions", {**body, "vllm_xargs": {"transport_steps": -1}})
    assert refused.value.code == 400
    assert "`transport_steps` must be an integer in [0, 1024], got -1" in refused.value.read().decode()

    from openai import OpenAI

    client = OpenAI(base_url=f"http://127.0.0.1:{endpoint}/v1", api_key="none")
    ids = torch.tensor([PROMPTS[0] + [8, 15, 3]])
    expected = model.score(ids, torch.ones_like(ids), torch.ones(1, 3, dtype=torch.long)).values
    assert score(client, path.name, PROMPTS[0], [8, 15, 3]) == pytest.approx(float(expected), abs=1e-4)
    chosen = best_of(client, path.name, "w1 w2", 4, transport=BUDGETS[2], max_tokens=6, temperature=1.0, seed=0)
    ids = torch.tensor([chosen.prompt_token_ids + chosen.token_ids])
    mask = torch.ones(1, len(chosen.token_ids), dtype=torch.long)
    assert chosen.value == pytest.approx(float(model.score(ids, torch.ones_like(ids), mask).values), abs=1e-4)
