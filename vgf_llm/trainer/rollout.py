# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Sampling completions: prompts to token ids, an engine, token ids to completions."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl import is_conversational

from vgf_llm._compat import pad, vllm_generation_class
from vgf_llm.generation import mask_after_eos
from vgf_llm.models.language_model import inner_model
from vgf_llm.trainer.faults import explained_server
from vgf_llm.trainer.rollout_config import settings_dict
from vgf_llm.trainer.validation import check_prompt_lengths, tokenize_prompts
from vgf_llm.trainer.vgf_config import VGFConfig

if TYPE_CHECKING:
    from vgf_llm.trainer.vgf_trainer import VGFTrainer

Prompt = str | list[dict[str, str]]
RolloutFunc = Callable[[list[Prompt], "VGFTrainer"], dict[str, Any]]


@dataclass
class Rollout:
    """The completions of one process, one row per completion.

    Attributes:
        prompts: As the dataset gave them.
        prompt_ids: Token ids without padding.
        completion_ids: Token ids without padding, with the end-of-sequence token where there is one.
        completions: Texts, or lists of one assistant message for conversational prompts.
        kl: `[rows]`, mean KL to the base per token in nats, if the rollout was transported.
        extra: Further columns for the reward functions, from a `rollout_func`.
    """

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    completions: list[Any]
    kl: Tensor | None = None
    extra: dict[str, list[Any]] = field(default_factory=dict)


def eos_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns every token that ends a completion: the tokenizer's, and those the model (any policy) declares."""
    declared = model.generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    own = tokenizer.eos_token_id
    return declared if own in declared else [own, *declared]


class PlainParameters:
    """A policy that holds the value's adapter, with the parameters and the names of its own checkpoint.

    TRL sends `named_parameters()` to vLLM, which knows neither the adapter nor the names that PEFT gives its base.

    Args:
        model: The policy inside its PEFT wrapper.
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


class RolloutEngine:
    """Samples completions with transformers, vLLM or a function of the caller's.

    Args:
        trainer: The trainer; its model, tokenizer and accelerator are used.
        rollout_func: TRL's contract: `(prompts, trainer) -> {"prompt_ids", "completion_ids", ...}`.
    """

    def __init__(self, trainer: "VGFTrainer", rollout_func: RolloutFunc | None = None) -> None:
        self.trainer = trainer
        self.args: VGFConfig = trainer.args
        self.tokenizer = trainer._tokenizer
        self.rollout_func = rollout_func
        self.eos_token_ids = eos_token_ids(trainer.vgf_model, self.tokenizer)
        self.vllm: Any = self._start_vllm() if self.args.use_vllm else None
        self._synced_step = -1

    def __call__(self, prompts: list[Prompt]) -> Rollout:
        """Samples one completion for every prompt (prompts come repeated, as TRL's sampler gives them)."""
        if self.rollout_func is not None:
            return self._from_function(prompts)
        prompt_ids = self.tokenize(prompts)
        check_prompt_lengths(
            prompt_ids, self.trainer.vgf_model.config, self.args.max_completion_length, prompts=prompts
        )
        kl = None
        if self.vllm is not None:
            completion_ids = self._vllm_generate(prompt_ids)
        else:
            completion_ids, kl = self._generate(prompt_ids)
        return Rollout(prompts, prompt_ids, completion_ids, self.decode(prompts, completion_ids), kl)

    def tokenize(self, prompts: list[Prompt]) -> list[list[int]]:
        """Returns the token ids of prompts, through the chat template for conversational ones."""
        return tokenize_prompts(prompts, self.tokenizer, settings_dict(self.args.chat_template_kwargs))

    def decode(self, prompts: list[Prompt], completion_ids: list[list[int]]) -> list[Any]:
        """Returns the texts of completions, as messages for conversational prompts."""
        texts = self.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        if is_conversational({"prompt": prompts[0]}):
            return [[{"role": "assistant", "content": text}] for text in texts]
        return texts

    def _generate(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], Tensor | None]:
        trainer, args = self.trainer, self.args
        tensors = [torch.tensor(ids, device=trainer.accelerator.device) for ids in prompt_ids]
        options = {"padding_side": "left", "pad_to_multiple_of": args.pad_to_multiple_of}
        input_ids = pad(tensors, padding_value=self.tokenizer.pad_token_id, **options)
        attention_mask = pad([torch.ones_like(ids) for ids in tensors], padding_value=0, **options)
        steps = args.rollout_transport_steps
        model = trainer.vgf_model
        was_training = model.training
        model.eval()  # dropout has no place in sampling
        try:
            with trainer.generation_context():
                output = model.generate(
                    input_ids,
                    attention_mask,
                    transport_steps=steps,
                    num_particles=1,
                    selection="none",
                    return_dict_in_generate=steps > 0,
                    **self._sampling_arguments(),
                )
        finally:
            model.train(was_training)
        sequences = cast(Tensor, output if isinstance(output, Tensor) else output.sequences)
        token_kl = None if isinstance(output, Tensor) else output.kl
        tokens = sequences[:, input_ids.shape[1] :]
        mask = mask_after_eos(tokens, self.eos_token_ids)
        kl = None if token_kl is None else token_kl[:, 0].sum(dim=-1) / mask.sum(dim=-1)
        return [row[m.bool()].tolist() for row, m in zip(tokens.cpu(), mask.cpu(), strict=True)], kl

    def _sampling_arguments(self) -> dict[str, Any]:
        args = self.args
        kwargs = {
            "max_new_tokens": args.max_completion_length,
            "do_sample": True,
            "pad_token_id": self.tokenizer.pad_token_id,
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.eos_token_ids,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "top_k": args.top_k,
            "min_p": args.min_p,
            "repetition_penalty": args.repetition_penalty,
            "cache_implementation": args.cache_implementation,
            "disable_compile": True,
        }
        return {**kwargs, **settings_dict(args.generation_kwargs)}

    def _watched(self) -> AbstractContextManager[None]:
        """Names the server in errors, where there is one."""
        if self.args.vllm_mode != "server":
            return nullcontext()
        args = self.args
        url = args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"
        return explained_server(url, self.trainer.state.global_step)

    def _start_vllm(self) -> Any:
        with self._watched():
            return self._vllm_engine()

    def _vllm_engine(self) -> Any:
        args, trainer = self.args, self.trainer
        policy = trainer.vgf_model.policy
        if trainer.vgf_model.policy_adapter is None:
            policy = PlainParameters(inner_model(policy))
        return vllm_generation_class()(
            model=policy,
            accelerator=trainer.accelerator,
            processing_class=self.tokenizer,
            mode=args.vllm_mode,
            structured_outputs_regex=args.vllm_structured_outputs_regex,
            server_base_url=args.vllm_server_base_url,
            server_host=args.vllm_server_host,
            server_port=args.vllm_server_port,
            group_port=args.vllm_group_port,
            server_timeout=args.vllm_server_timeout,
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            max_model_length=args.vllm_max_model_length,
            max_num_seqs=args.per_device_train_batch_size * args.vllm_tensor_parallel_size * args.steps_per_generation,
            enable_sleep_mode=args.vllm_enable_sleep_mode,
            model_impl=args.vllm_model_impl,
            trust_remote_code=args.trust_remote_code,
            repetition_penalty=args.repetition_penalty,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p,
            max_completion_length=args.max_completion_length,
            logprobs=None,
            generation_kwargs=args.generation_kwargs,
        )

    def _vllm_generate(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        trainer = self.trainer
        training = trainer.model.training
        count = trainer.num_generations if training else trainer.num_generations_eval
        with self._watched():
            self._sync_vllm()
            return self.vllm.generate(prompts=prompt_ids, images=None, num_generations=count)[1]

    def _sync_vllm(self) -> None:
        """Sends the policy's weights to vLLM where they are not those of the checkpoint that vLLM loaded."""
        trained = self.args.distill_coef > 0
        # Of a PEFT policy vLLM loads the base alone, so that even a frozen adapter is sent once.
        due = trained or (self._synced_step == -1 and self.trainer.vgf_model.policy_adapter is not None)
        step = self.trainer.state.global_step
        if due and step != self._synced_step:
            self.vllm.sync_weights()
            self._synced_step = step

    def _from_function(self, prompts: list[Prompt]) -> Rollout:
        if self.vllm is not None:
            self._sync_vllm()
        # A copy, because conversations are lists that the function may extend.
        output = dict(self.rollout_func(copy.deepcopy(prompts), self.trainer))  # type: ignore[misc]
        missing = {"prompt_ids", "completion_ids"} - set(output)
        if missing:
            raise ValueError(
                f"`rollout_func` must return 'prompt_ids' and 'completion_ids'; {sorted(missing)} are missing from "
                f"{sorted(output)}."
            )
        prompt_ids, completion_ids = output.pop("prompt_ids"), output.pop("completion_ids")
        output.pop("logprobs", None)
        for name, column in {"prompt_ids": prompt_ids, "completion_ids": completion_ids, **output}.items():
            if len(column) != len(prompts):
                raise ValueError(
                    f"`rollout_func` returned {len(column)} {name} for {len(prompts)} prompts; return one per prompt "
                    "(prompts come repeated `num_generations` times)."
                )
        # A completion without tokens ended at once, which is a choice the value can learn from.
        completion_ids = [list(ids) or [self.tokenizer.eos_token_id] for ids in completion_ids]
        return Rollout(prompts, prompt_ids, completion_ids, self.decode(prompts, completion_ids), extra=output)
