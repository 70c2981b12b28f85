# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Stand-ins for vLLM in tests of rollouts: they see what TRL's engine and client would, and answer by the seeds."""

import copy
import inspect
import random
import threading
import time
from types import SimpleNamespace

from tests.trainer import tiny
from vgf_llm._compat import vllm_generation_class

PARAMETERS = set(inspect.signature(vllm_generation_class().__init__).parameters) - {"self"}


def completion(prompt, seed):
    """A few tokens that depend on prompt and seed alone, and the end."""
    draw = random.Random(f"{prompt}:{seed}")
    return [draw.randrange(4, tiny.VOCAB) for _ in range(draw.randint(1, 5))] + [tiny.EOS]


class FakeLLM:
    """`vllm.LLM`: one completion for each prompt and its sampling parameters."""

    def __init__(self):
        self.seeds = []
        self.delay = 0.0
        self.fail_at = None
        self.before = lambda call: None
        self.threads = []
        self.busy = threading.Lock()

    def generate(self, prompts, sampling_params, use_tqdm):
        assert self.busy.acquire(blocking=False), "two calls at a time"
        try:
            if self.fail_at == len(self.threads):
                raise MemoryError("no room for the cache")
            self.threads.append(threading.current_thread().name)
            self.before(len(self.threads) - 1)
            time.sleep(self.delay)
            seeds = [params.seed for params in sampling_params]
            self.seeds.append(seeds)
            rows = zip(prompts, seeds, strict=True)
            return [completion(prompt["prompt_token_ids"], seed) for prompt, seed in rows]
        finally:
            self.busy.release()


class FakeEngine:
    """TRL's engine, colocated; a subclass sets `llm_type`."""

    llm_type = FakeLLM

    def __init__(self, **kwargs):
        assert set(kwargs) <= PARAMETERS
        self.model = kwargs["model"]
        self.llm = self.llm_type()
        self.syncs = 0
        self.calls = []

    def sync_weights(self):
        self.syncs += 1

    def generate(self, prompts, images, num_generations, profiler=None):
        blocks = [prompts[start : start + num_generations] for start in range(0, len(prompts), num_generations)]
        assert all(block == [block[0]] * num_generations for block in blocks)
        self.calls.append((len(prompts), num_generations))
        params = SimpleNamespace(seed=None)
        if isinstance(self.llm, FakeLLM):  # a rollout function's own call
            return prompts, [completion(prompt, i) for i, prompt in enumerate(prompts)], None, None
        rows = [{"prompt_token_ids": prompt} for prompt in prompts]
        completion_ids = self.llm.generate(rows, sampling_params=params, use_tqdm=False)
        assert params.seed is None
        return prompts, completion_ids, None, None


class FakeClient:
    """TRL's client of a server: `n` completions of a prompt, numbered by their seeds as vLLM numbers them."""

    def __init__(self, **kwargs):
        self.kwargs = kwargs
        self.requests = []

    def generate(self, prompts, n, generation_kwargs, **sampling):
        (prompt,) = prompts
        self.requests.append({"prompt": prompt, "n": n, **copy.copy(sampling)})
        seed = generation_kwargs["seed"]
        return {"completion_ids": [completion(prompt, seed + i) for i in range(n)]}
