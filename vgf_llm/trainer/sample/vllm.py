# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Sampling with vLLM, in this process or on a server, through TRL's engine and TRL's client.

Every completion has a seed of its own, made of the run's seed, the round and its row. So a round has the same
completions whether it is sampled when it is due, ahead of time or in a resumed run, and the engine never draws from the
random state that training draws from.

Rows of the value go with those of the base, in the same call: the engine holds the base alone, and a row of the value
names the value's LoRA adapter and the candidates that it samples within.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.profiler import record_function

from vgf_llm._compat import vllm_client_class, vllm_generation_class
from vgf_llm.generation.candidates import CANDIDATES_ARGUMENT
from vgf_llm.models.language_model import inner_model
from vgf_llm.models.valued_policy import ValuedPolicy
from vgf_llm.trainer.keep.rounds import prompt_hash
from vgf_llm.trainer.sample.arguments import sampling_settings
from vgf_llm.trainer.sample.sampler import Request, Sampler, Samples
from vgf_llm.trainer.sample.server import CANDIDATE_PROCESSOR, FrozenServer
from vgf_llm.trainer.sample.value_adapter import ValueAdapter

# Settings of TRL's engine, which `vllm_` stands before in a configuration.
_ENGINE_SETTINGS = (
    *("mode", "structured_outputs_regex", "server_base_url", "server_host", "server_port", "server_timeout"),
    *("group_port", "tensor_parallel_size", "gpu_memory_utilization", "max_model_length", "enable_sleep_mode"),
    "model_impl",
)


def seeds(request: Request, prompt_ids: list[list[int]] | None = None) -> list[int]:
    """Returns a seed for each row; those of a group follow each other, as vLLM numbers the samples of a prompt.

    The rows are those of the request, or `prompt_ids`: those of all processes that share an engine with this one.

    Example:
        >>> request = Request(["a", "a", "b"], [[5, 6], [5, 6], [7]], ["base"] * 3, 2, 0, "train", 0, 0)
        >>> one, two, three = seeds(request)
        >>> two - one, three - two == 1
        (1, False)
    """
    first = request.first_row
    if prompt_ids is None:
        prompt_ids = request.prompt_ids
    else:
        first -= first % len(prompt_ids)
    found = []
    for row, ids in enumerate(prompt_ids, start=first):
        group, place = divmod(row, request.num_generations)
        salts = (request.seed, request.mode, request.step, group)
        found.append(prompt_hash(*salts, prompt_ids=ids, num_bytes=6) + place)
    return found


class PlainParameters:
    """A policy that holds the value's adapter, with the parameters and the names of its own checkpoint.

    TRL sends `named_parameters()` to vLLM, which knows neither the adapter nor the names that PEFT gives its base.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields the policy's own parameters."""
        for name, parameter in self._model.named_parameters():
            if ".lora_" not in name:
                yield name.replace(".base_layer.", "."), parameter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@dataclass
class _RowsLLM:
    """A colocated `vllm.LLM` that gives every prompt parameters of its own, where TRL passes one set for all.

    These are a seed, and in lists with `None` for none, `extra_args` and a `LoRARequest`.
    """

    llm: Any
    seeds: Callable[[list[list[int]]], list[int]]
    arguments: list[dict[str, Any] | None]
    adapters: list[Any] | None

    def generate(self, prompts: list[dict[str, Any]], sampling_params: Any, **kwargs: Any) -> Any:
        params = [copy.copy(sampling_params) for _ in prompts]
        for own, seed in zip(params, self.seeds([prompt["prompt_token_ids"] for prompt in prompts]), strict=True):
            own.seed = seed
        for own, arguments in zip(params, self.arguments, strict=False):
            if arguments is not None:
                own.extra_args = {**(own.extra_args or {}), **arguments}
        if self.adapters is not None:
            kwargs["lora_request"] = self.adapters
        return self.llm.generate(prompts, sampling_params=params, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llm, name)


class VLLMSampler(Sampler):
    """vLLM as a source of the base's and the value's completions: started, kept up to date where weights train, asked.

    The callables are those of `build_sampler`.
    """

    def __init__(
        self,
        model: ValuedPolicy,
        accelerator: Any,
        tokenizer: Any,
        args: Any,
        *,
        step: Callable[[], int],
        end_token_ids: list[int],
        adapter_state: Callable[[bool], dict[str, Tensor]],
    ) -> None:
        self.model = model
        self.accelerator = accelerator
        self.tokenizer = tokenizer
        self.args = args
        self.trains_policy = args.distill_coef > 0
        self.step = step
        self.end_token_ids = end_token_ids
        self._synced_step = -1
        adapter = model.policy_adapter
        # Of a PEFT policy vLLM loads the base alone, so that even a frozen adapter is sent once.
        self.sends_weights = self.trains_policy or adapter is not None
        if args.rollout_prefetch > 0 and args.vllm_mode == "server" and self.sends_weights:
            raise ValueError(
                f"`rollout_prefetch` ({args.rollout_prefetch}) with `vllm_mode='server'` needs a policy whose weights "
                f"the server has, but its adapter {adapter!r} would have to be sent. Merge it into the policy "
                "(`merge_and_unload()`), serve the result, and pass it as `model`; or set `rollout_prefetch=0`."
            )
        self.samples_value = args.samples_from == "value"
        self.adapter: ValueAdapter | None = None
        if self.samples_value:
            self._check_value()
            self.adapter = ValueAdapter(model, adapter_state) if model.has_value_adapter else None
            self._check_ahead()
        transport = model.transport
        self.value_arguments = {CANDIDATES_ARGUMENT: [transport.top_k_candidates, transport.min_candidate_prob]}
        self._lora_request: Any = None
        with self._watched():
            self.engine: Any = self._start()
        self._send_adapter(self._adapter_state())  # what the engine refuses is found before anything trains

    @property
    def _in_turns(self) -> dict[str, nn.Module]:
        """The models whose weights one engine holds in turn, where the value is no adapter."""
        return {"base": inner_model(self.model.policy), "value": cast(nn.Module, self.model.value_model)}

    @property
    def description(self) -> str:
        """The engine in words, for errors."""
        return f"the vLLM server at {self._url}" if self.args.vllm_mode == "server" else "the colocated vLLM engine"

    @property
    def _url(self) -> str:
        args = self.args
        return args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Turns the many errors of a server, where there is one, into two that name it and say how to go on."""
        server, step = f"The vLLM server at {self._url}", f"at step {self.step()}"
        try:
            yield
        except Exception as error:
            if self.args.vllm_mode == "server" and isinstance(error, OSError):  # what `requests` raises is one
                raise ConnectionError(
                    f"{server} did not answer {step} ({error}). Start it with `trl vllm-serve --model MODEL --host "
                    "HOST --port PORT` (its log says why if it runs), check `vllm_server_host`, `vllm_server_port` and "
                    "`vllm_server_timeout`, and go on with `resume_from_checkpoint=True`; or leave `use_vllm` out."
                ) from error
            if self.args.vllm_mode == "server" and type(error) is Exception:  # TRL's, for a request that was refused
                raise RuntimeError(
                    f"{server} refused a request {step} ({error}). Check that it serves this policy, with a "
                    "`--max-model-len` that prompt and `max_completion_length` fit in, and that `generation_kwargs` "
                    "are sampling parameters of vLLM; then go on with `resume_from_checkpoint=True`."
                ) from error
            raise

    def _check_value(self) -> None:
        """Refuses values that an engine of the base cannot sample."""
        model, args = self.model, self.args
        start, fix = "`use_vllm=True` samples rounds of the value ", "or sample with transformers (`use_vllm=False`)"
        if model.policy_adapter is not None:
            raise ValueError(
                f"{start}in an engine of the base, and the policy has an adapter of its own, {model.policy_adapter!r}. "
                f"Merge that with `merge_and_unload()`, {fix}."
            )
        if model.has_value_adapter:
            if args.vllm_mode == "colocate" and args.vllm_enable_sleep_mode:
                raise ValueError(
                    f"{start}by its adapter, beside base weights that `vllm_enable_sleep_mode=True` drops and TRL "
                    f"cannot give back there. Set `vllm_enable_sleep_mode=False`, {fix}."
                )
            return
        of_value, of_policy = (
            [name for name, _ in PlainParameters(each).named_parameters()] for each in self._in_turns.values()
        )
        if args.vllm_mode == "server" or of_value != of_policy:
            raise ValueError(
                f"{start}by an adapter, or by weights that take the base's place in an engine in this process, and "
                f"this value is a {type(model.value_model).__name__} of its own, with `vllm_mode={args.vllm_mode!r}`. "
                f"Set `value_backbone='lora'`, or `value_backbone='copy'` and `vllm_mode='colocate'`, {fix}."
            )

    def _check_ahead(self) -> None:
        """Refuses to sample ahead what only the thread that trains may read."""
        args = self.args
        shared = args.vllm_mode == "server" and self.accelerator.num_processes > 1
        if args.rollout_prefetch > 0 and (shared or self.adapter is None):
            what = "from a server that several processes share" if shared else "by weights that train meanwhile"
            fix = "`vllm_mode='colocate'`" if shared else "`value_backbone='lora'`"
            raise ValueError(
                f"`rollout_prefetch` ({args.rollout_prefetch}) would sample rounds of the value {what}. Set {fix}, or "
                "`rollout_prefetch=0`."
            )

    def _start(self) -> Any:
        args = self.args
        sampling = {**sampling_settings(args), "generation_kwargs": args.generation_kwargs}
        if args.vllm_mode == "colocate" or self.sends_weights:
            return self._trl_engine(sampling)
        client = vllm_client_class()(
            base_url=self._url, group_port=args.vllm_group_port, connection_timeout=args.vllm_server_timeout
        )
        sampling["max_tokens"] = args.max_completion_length
        sampling["structured_outputs_regex"] = args.vllm_structured_outputs_regex
        server = FrozenServer(client, {**sampling, "logprobs": None}, self.value_arguments)
        if self.adapter is not None:
            server.check_candidates([self.tokenizer.eos_token_id])
        return server

    def _trl_engine(self, sampling: dict[str, Any]) -> Any:
        args = self.args
        policy: Any = self.model.policy
        if self.model.policy_adapter is None:
            policy = PlainParameters(inner_model(policy))
        options: dict[str, Any] = {}
        if self.samples_value:
            options["logits_processors"] = [CANDIDATE_PROCESSOR]
        if self.adapter is not None:
            options |= {"enable_lora": True, "max_loras": 2, "max_lora_rank": self.adapter.max_rank}
        return vllm_generation_class(**options)(
            model=policy,
            accelerator=self.accelerator,
            processing_class=self.tokenizer,
            max_num_seqs=args.per_device_train_batch_size * args.vllm_tensor_parallel_size * args.steps_per_generation,
            trust_remote_code=args.trust_remote_code,
            max_completion_length=args.max_completion_length,
            logprobs=None,
            **{name: getattr(args, f"vllm_{name}") for name in _ENGINE_SETTINGS},
            **sampling,
        )

    def sync(self) -> None:
        """Brings vLLM up to date: the policy's weights where they train, and the value's adapter."""
        self._send(self._adapter_state())

    def _send(self, adapter: dict[str, Tensor]) -> None:
        due = self.sends_weights and (self.trains_policy or self._synced_step == -1)
        step = self.step()
        if due and step != self._synced_step:
            with self._watched():
                self.engine.sync_weights()
            self._synced_step = step
        self._send_adapter(adapter)

    def _adapter_state(self) -> dict[str, Tensor]:
        """Copies the value's adapter as it is now, whole; every process takes part."""
        keep = self.args.vllm_mode != "server" or self.accelerator.is_main_process
        return {} if self.adapter is None else self.adapter.state(keep)

    def _send_adapter(self, state: dict[str, Tensor]) -> None:
        """Hands over an adapter where its weights are not those that vLLM has."""
        adapter, server = self.adapter, self.args.vllm_mode == "server"
        if adapter is None:
            return
        written = adapter.write(state)
        if server:
            if written:
                with self._watched():
                    self.engine.load_adapter(adapter)
            adapters = [(adapter.name, adapter.number)]
            broadcast_object_list(adapters)  # nothing where one process samples ahead
            self.engine.use_adapter(*adapters[0])
        elif written:
            from vllm.lora.request import LoRARequest

            engine, old = self.engine.llm.llm_engine, self._lora_request
            # The new one takes the slot of the old one. vLLM for CPUs runs rows without an adapter under the last slot,
            # which has to stay empty.
            if old is not None:
                engine.remove_lora(old.lora_int_id)
            # Another name for other weights: the engine keeps what it computed for a prompt, by the name.
            self._lora_request = LoRARequest(f"{adapter.name}-{adapter.number}", adapter.number, str(adapter.path))
            engine.add_lora(self._lora_request)

    def __call__(self, request: Request) -> Samples:
        """Samples the rows of a request."""
        return self.prepare(request)()

    def prepare(self, request: Request) -> Callable[[], Samples]:
        """Copies the value's adapter, so that the call may be made in any thread, one at a time."""
        return partial(self._sample, request, self._adapter_state())

    def _sample(self, request: Request, adapter: dict[str, Tensor]) -> Samples:
        self._send(adapter)
        engine = self.engine
        with record_function("vgf/sample"), self._watched():
            if isinstance(engine, FrozenServer):
                count = request.num_generations
                ids = engine.generate(request.prompt_ids, None, count, seeds=seeds(request), who=request.who)[1]
            elif self.args.vllm_mode == "server":  # it shares the server's random state, as in TRL
                ids = self._generate(request)
            elif self.samples_value and self.adapter is None:
                ids = self._in_turn(request)
            else:
                ids = self._colocated(request, partial(seeds, request))
        longest = self.args.max_completion_length
        return Samples(ids, [len(row) < longest or row[-1] in self.end_token_ids for row in ids])

    def _colocated(self, request: Request, seeds: Callable[[list[list[int]]], list[int]]) -> list[list[int]]:
        llm, of_value = self.engine.llm, [who == "value" for who in request.who]
        arguments = [self.value_arguments if own else None for own in of_value]
        adapters = None if self.adapter is None else [self._lora_request if own else None for own in of_value]
        self.engine.llm = _RowsLLM(llm, seeds, arguments, adapters)
        try:
            return self._generate(request)
        finally:
            self.engine.llm = llm

    def _generate(self, request: Request) -> list[list[int]]:
        count = request.num_generations
        return self.engine.generate(prompts=request.prompt_ids, images=None, num_generations=count)[1]

    def _in_turn(self, request: Request) -> list[list[int]]:
        """Samples with the base's weights, then with those of the value's own model in their place."""
        ids: list[list[int]] = [[] for _ in request.who]
        own_seeds, args = seeds(request), self.args
        # Every process takes part in gathering weights, whichever its own rows are of.
        models = self._in_turns
        if request.mode == "eval" or args.base_generations == 0:
            del models["base"]
        for who, model in models.items():
            self.engine.model = PlainParameters(model)
            self.engine.sync_weights()
            rows = [row for row, kind in enumerate(request.who) if kind == who]
            part = replace(request, prompt_ids=[request.prompt_ids[row] for row in rows], who=[who] * len(rows))
            if rows:
                found = self._colocated(part, lambda prompts: [own_seeds[row] for row in rows])  # noqa: B023
                for row, tokens in zip(rows, found, strict=True):
                    ids[row] = tokens
        return ids
