# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Completions of a plain vLLM server, which holds the policy's weights and is handed the value's adapter."""

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from vgf_llm.generation.candidates import CANDIDATES_ARGUMENT
from vgf_llm.trainer.sample.value_adapter import ValueAdapter

CANDIDATE_PROCESSOR = "vgf_llm.serving.candidates:CandidateLogitsProcessor"
_CONCURRENT_REQUESTS = 32


@dataclass
class FrozenServer:
    """Completions of a vLLM server that holds the policy's weights and keeps them, asked by TRL's `VLLMClient`.

    TRL's engine joins the server's weight-transfer group, which takes CUDA and a server started for it. Nothing is sent
    here, so that any OpenAI-compatible vLLM server will do, and each process asks for its own rows. `value_arguments`
    are what requests for rows of the value hold beside, in their `vllm_xargs`.
    """

    vllm_client: Any
    sampling: dict[str, Any]
    value_arguments: dict[str, Any] = field(default_factory=dict)
    value_client: Any = None
    value_salt: str = ""

    def sync_weights(self) -> None:
        """Does nothing: the policy is frozen."""

    def check_candidates(self, prompt: list[int]) -> None:
        """Refuses a server that does not know candidates: it takes any, for any prompt, even such that are none."""
        arguments = {**self.sampling, "max_tokens": 1, "generation_kwargs": {"vllm_xargs": {CANDIDATES_ARGUMENT: []}}}
        try:
            self.vllm_client.generate(prompts=[prompt], n=1, **arguments)
        except Exception as error:  # the client's own for an answer other than 200
            if type(error) is not Exception or CANDIDATES_ARGUMENT not in str(error):
                raise
            return
        raise ValueError(
            f"The vLLM server at {self.vllm_client.base_url} does not know `{CANDIDATES_ARGUMENT}`, within which rows "
            "of the value are sampled. Install vgf-llm beside it and start it with `--logits-processors "
            f"{CANDIDATE_PROCESSOR}`."
        )

    def load_adapter(self, adapter: ValueAdapter) -> None:
        """Has the server read an adapter's files, in the place of those that it read under the same name."""
        client = self.vllm_client
        body = {"lora_name": adapter.name, "lora_path": str(adapter.path), "load_inplace": True}
        response = client.session.post(f"{client.base_url}/v1/load_lora_adapter", json=body)
        if response.status_code != 200:
            raise ValueError(
                f"The vLLM server at {client.base_url} does not load the value's adapter {body} "
                f"({response.status_code}, {response.text}). Start it with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm "
                f"serve MODEL --enable-lora --max-loras 2 --max-lora-rank {adapter.max_rank} --logits-processors "
                f"{CANDIDATE_PROCESSOR}`, where it can read that folder (`TMPDIR` chooses another)."
            )

    def use_adapter(self, name: str, number: int) -> None:
        """Lets rows of the value name an adapter that the server has read.

        Other weights have another number: the server keeps what it computed for a prompt, by the name.
        """
        self.value_client = copy.copy(self.vllm_client)
        self.value_client.model = name
        self.value_salt = f"{name}-{number}"

    def generate(
        self,
        prompts: list[list[int]],
        images: list[Any] | None,
        num_generations: int,
        profiler: AbstractContextManager[Any] | None = None,
        *,
        seeds: list[int] | None = None,
        who: list[str] | None = None,
    ) -> tuple[list[list[int]], list[list[int]], None, None]:
        """Samples as TRL's engine does, one request for the rows of each prompt, at most `num_generations`.

        A prompt stands as often as it is wanted, with a seed and a sampler, `"base"` or `"value"`, for each row. The
        seeds of a request follow each other. TRL's log-probabilities are left out.
        """
        if images is not None:
            raise ValueError("`images` are not supported by VGF rollouts; pass None.")
        who = who or ["base"] * len(prompts)
        blocks = _blocks(list(zip(prompts, who, strict=True)), num_generations, seeds)

        def ask(block: range) -> list[list[int]]:
            client, kwargs = self.vllm_client, dict(self.sampling["generation_kwargs"] or {})
            if seeds is not None:
                kwargs["seed"] = seeds[block.start]
            if who[block.start] == "value":
                client = self.value_client
                kwargs["vllm_xargs"] = {**kwargs.get("vllm_xargs", {}), **self.value_arguments}
                kwargs["cache_salt"] = self.value_salt
            arguments = {**self.sampling, "n": len(block), "generation_kwargs": kwargs}
            return client.generate(prompts=[prompts[block.start]], **arguments)["completion_ids"]

        with profiler or nullcontext(), ThreadPoolExecutor(min(_CONCURRENT_REQUESTS, len(blocks))) as pool:
            completion_ids = [ids for answer in pool.map(ask, blocks) for ids in answer]
        return prompts, completion_ids, None, None


def _blocks(keys: list[Any], num_generations: int, seeds: list[int] | None) -> list[range]:
    starts: list[int] = []
    for row, key in enumerate(keys):
        fits = row > 0 and key == keys[row - 1] and row - starts[-1] < num_generations
        if not fits or (seeds is not None and seeds[row] != seeds[row - 1] + 1):
            starts.append(row)
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(keys)], strict=True)]
