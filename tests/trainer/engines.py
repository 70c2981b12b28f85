# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Stand-ins for vLLM in tests of rollouts: they see what TRL's engine and client would, and answer by the seeds."""

import copy
import inspect
import random
import sys
import threading
import time
from collections import namedtuple
from types import SimpleNamespace

from safetensors.torch import load_file

from tests.trainer import tiny
from vgf_llm._compat import vllm_generation_class

PARAMETERS = set(inspect.signature(vllm_generation_class().__init__).parameters) - {"self"}


def completion(prompt, seed, adapter=None):
    """A few tokens that depend on prompt, seed and adapter alone, and the end."""
    draw = random.Random(f"{prompt}:{seed}" if adapter is None else f"{prompt}:{seed}:{adapter.lora_int_id}")
    return [draw.randrange(4, tiny.VOCAB) for _ in range(draw.randint(1, 5))] + [tiny.EOS]


class FakeLoraEngine:
    """`LLM.llm_engine`: the adapters that it was given, with their tensors, and those that it has."""

    def __init__(self):
        self.requests = []
        self.weights = []
        self.loaded = set()

    def add_lora(self, request):
        assert not self.loaded, "a second slot would be filled"
        self.requests.append(request)
        self.weights.append(load_file(f"{request.lora_path}/adapter_model.safetensors"))
        self.loaded.add(request.lora_int_id)

    def remove_lora(self, number):
        self.loaded.remove(number)


class FakeLLM:
    """`vllm.LLM`: one completion for each prompt, its sampling parameters and its adapter."""

    def __init__(self):
        self.llm_engine = FakeLoraEngine()
        self.rows = []
        self.seeds = []
        self.delay = 0.0
        self.fail_at = None
        self.before = lambda call: None
        self.threads = []
        self.busy = threading.Lock()

    def generate(self, prompts, sampling_params, use_tqdm, lora_request=None):
        assert self.busy.acquire(blocking=False), "two calls at a time"
        try:
            if self.fail_at == len(self.threads):
                raise MemoryError("no room for the cache")
            self.threads.append(threading.current_thread().name)
            self.before(len(self.threads) - 1)
            time.sleep(self.delay)
            seeds = [params.seed for params in sampling_params]
            self.seeds.append(seeds)
            adapters = [None] * len(prompts) if lora_request is None else lora_request
            arguments = [params.extra_args for params in sampling_params]
            self.rows.append(list(zip(adapters, arguments, strict=True)))
            rows = zip(prompts, seeds, adapters, strict=True)
            return [completion(prompt["prompt_token_ids"], seed, lora) for prompt, seed, lora in rows]
        finally:
            self.busy.release()


class FakeEngine:
    """TRL's engine, colocated; a subclass sets `llm_type`."""

    llm_type = FakeLLM

    def __init__(self, **kwargs):
        assert set(kwargs) <= PARAMETERS
        self.model = kwargs["model"]
        self.mode = kwargs["mode"]
        self.llm = self.llm_type()
        self.syncs = 0
        self.calls = []

    def sync_weights(self):
        self.syncs += 1

    def generate(self, prompts, images, num_generations, profiler=None):
        if self.mode == "server":  # whole groups, one request each
            blocks = [prompts[start : start + num_generations] for start in range(0, len(prompts), num_generations)]
            assert all(block == [block[0]] * num_generations for block in blocks)
        self.calls.append((len(prompts), num_generations))
        params = SimpleNamespace(seed=None, extra_args=None)
        if isinstance(self.llm, FakeLLM):  # a rollout function's own call
            return prompts, [completion(prompt, i) for i, prompt in enumerate(prompts)], None, None
        rows = [{"prompt_token_ids": prompt} for prompt in prompts]
        completion_ids = self.llm.generate(rows, sampling_params=params, use_tqdm=False)
        assert params.seed is None and params.extra_args is None
        return prompts, completion_ids, None, None


class FakeClient:
    """TRL's client of a server: `n` completions of a prompt, numbered by their seeds as vLLM numbers them."""

    def __init__(self, **kwargs):
        self.kwargs = kwargs
        self.base_url = kwargs.get("base_url")
        self.model = "policy"
        self.requests = []
        self.session = FakeSession()

    def generate(self, prompts, n, generation_kwargs, **sampling):
        (prompt,) = prompts
        xargs = generation_kwargs.get("vllm_xargs")
        if xargs == {"own_candidates": []} and self.session.candidates:
            raise Exception("Request failed: 400, `own_candidates` must be K and a least probability")
        salt = generation_kwargs.get("cache_salt")
        request = {"model": self.model, "prompt": prompt, "n": n, "xargs": xargs, "salt": salt, **copy.copy(sampling)}
        self.requests.append(request)
        seed = generation_kwargs.get("seed", 0)
        adapter = None
        if self.model != "policy":
            assert self.model in self.session.loaded
            adapter = SimpleNamespace(lora_int_id=int(salt.removeprefix(f"{self.model}-")))
        return {"completion_ids": [completion(prompt, seed + i, adapter) for i in range(n)]}


class FakeSession:
    """The route of a server that loads adapters."""

    status = 200
    candidates = True

    def __init__(self):
        self.loaded = {}

    def post(self, url, json):
        assert url.endswith("/v1/load_lora_adapter") and json["load_inplace"]
        if self.status == 200:
            self.loaded[json["lora_name"]] = load_file(f"{json['lora_path']}/adapter_model.safetensors")
        return SimpleNamespace(status_code=self.status, text="the server's answer")


def stand_in(monkeypatch):
    """Puts the stand-ins in place; returns the arguments that engines will be started with beside TRL's."""
    options = {}

    def engine(**given):
        options.update(given)
        return FakeEngine

    monkeypatch.setattr("vgf_llm.trainer.sample.vllm.vllm_generation_class", engine)
    monkeypatch.setattr("vgf_llm.trainer.sample.vllm.vllm_client_class", lambda: FakeClient)
    lora = namedtuple("LoRARequest", ["lora_name", "lora_int_id", "lora_path"])
    monkeypatch.setitem(sys.modules, "vllm.lora.request", SimpleNamespace(LoRARequest=lora))
    return options
