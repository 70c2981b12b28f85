# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Where completions come from: transformers, vLLM, a function of the user's or a dataset, behind one protocol."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor

from vgf_llm.models.valued_policy import ValuedPolicy
from vgf_llm.trainer.sample.arguments import generation_arguments
from vgf_llm.trainer.sample.function import FunctionSampler
from vgf_llm.trainer.sample.logged import LoggedSampler
from vgf_llm.trainer.sample.prefetch import PrefetchingSampler
from vgf_llm.trainer.sample.sampler import WHO, Prompt, Request, Sampler, Samples
from vgf_llm.trainer.sample.transformers import TransformersSampler

# TRL's contract: `(prompts, trainer) -> {"prompt_ids", "completion_ids", ...}`.
RolloutFunc = Callable[[list[Prompt], Any], dict[str, Any]]

__all__ = ["WHO", "Prompt", "Request", "RolloutFunc", "Sampler", "Samples", "build_sampler"]


def build_sampler(
    args: Any,
    *,
    logged: bool = False,
    model: Callable[[], ValuedPolicy],
    gathered: Callable[[], AbstractContextManager[Any]],
    accelerator: Any,
    tokenizer: Any,
    end_token_ids: list[int],
    step: Callable[[], int],
    function: Callable[[list[Prompt]], dict[str, Any]] | None,
    adapter_state: Callable[[bool], dict[str, Tensor]],
) -> Sampler:
    """Builds the sampler that a configuration asks for.

    Completions that a dataset has `logged` are read and not sampled. The callables give what changes in training: the
    unwrapped model, a context in which sharded weights are whole, the optimisation step, and the whole tensors of the
    value's adapter, as `ValueAdapter` takes them.
    """
    if logged:
        return LoggedSampler()
    engine = None
    if args.use_vllm:
        if function is not None and args.samples_from != "base":
            raise ValueError(
                "`rollout_func` may ask `trainer.vllm_generation`, which samples the base, but `rollout_policy` comes "
                f"to {args.samples_from!r}. Set `rollout_policy='base'`, or leave `rollout_func` or `use_vllm` out."
            )
        from vgf_llm.trainer.sample.vllm import VLLMSampler  # TRL imports vLLM with it

        engine = VLLMSampler(
            model(),
            accelerator,
            tokenizer,
            args,
            step=step,
            end_token_ids=end_token_ids,
            adapter_state=adapter_state,
        )
    if function is not None:
        if args.rollout_prefetch > 0:
            raise ValueError(
                f"`rollout_prefetch` ({args.rollout_prefetch}) samples in a thread while the trainer trains, and "
                "`rollout_func` is given that trainer. Leave `rollout_func` out, or set `rollout_prefetch=0`."
            )
        return FunctionSampler(
            function, eos_token_id=tokenizer.eos_token_id, end_token_ids=end_token_ids, engine=engine
        )
    if engine is None:
        return TransformersSampler(
            model,
            gathered,
            pad_token_id=tokenizer.pad_token_id,
            generation_kwargs=generation_arguments(args, tokenizer, end_token_ids),
            pad_to_multiple_of=args.pad_to_multiple_of,
            most=lambda number: max(gather_object([number])) if accelerator.num_processes > 1 else number,
        )
    return PrefetchingSampler(engine, engine.description)
