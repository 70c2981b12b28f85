# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Reward functions: loading and calling them as TRL does. What a function does to its arguments stays there."""

import asyncio
import atexit
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import apply_chat_template, is_conversational

from vgf_llm._compat import (
    get_config_model_id,
    is_async_callable,
    prepare_deepspeed,
    shutdown_event_loop_in_daemon,
    start_event_loop_in_daemon,
)
from vgf_llm.trainer.choose.prompts import plain_messages
from vgf_llm.trainer.score.checks import (
    FAILURES,
    RewardFunc,
    as_list_of_funcs,
    check_labels,
    check_output,
    check_weights,
    keywords_of,
    show,
    unique_names,
)

logger = logging.getLogger(__name__)

_CALL_ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
# Columns that the trainer itself fills; a dataset's columns of these names are not handed to reward functions.
_RESERVED_COLUMNS = ("prompt", "completion", "completion_ids")


class RewardRunner:
    """Scores completions with one or several reward functions.

    The arguments are those of the trainer of the same names; `model_init_kwargs` and `trust_remote_code` apply to
    functions given as strings, which are loaded as sequence classifiers with one label, `chat_template_kwargs` to
    models on conversational data. Inputs of models and rewards are on `device`. `profile` gives the context manager in
    which the function of a name runs.

    Attributes:
        reward_funcs: The functions, strings replaced by their models.
        reward_func_names: Names used in metrics, each once: the last part of a model id, or the name of a callable.
        reward_weights: Weights `[num_funcs]`.

    Example:
        >>> def length(completions, **kwargs):
        ...     return [float(len(completion)) for completion in completions]
        >>> runner = RewardRunner(length)
        >>> rewards = runner([{}, {}], prompts=["a", "a"], completions=["b", "bcd"], completion_ids_list=[[1], [1, 2]])
        >>> rewards.tolist(), runner.reward_func_names
        ([[1.0], [3.0]], ['length'])
    """

    def __init__(
        self,
        reward_funcs: RewardFunc | Sequence[RewardFunc] | None,
        *,
        reward_weights: Sequence[float] | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        model_init_kwargs: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
        device: torch.device | str = "cpu",
        profile: Callable[[str], AbstractContextManager] | None = None,
    ) -> None:
        self.reward_funcs = as_list_of_funcs(reward_funcs)
        self.reward_weights = check_weights(reward_weights, len(self.reward_funcs))
        if not isinstance(reward_processing_classes, list):
            # One processing class belongs to one function; with several functions it has to be a list, as in TRL.
            several = reward_processing_classes is None
            reward_processing_classes = [reward_processing_classes] * (len(self.reward_funcs) if several else 1)
        if len(reward_processing_classes) != len(self.reward_funcs):
            raise ValueError(
                f"`reward_processing_classes` has {len(reward_processing_classes)} entries, but there are "
                f"{len(self.reward_funcs)} reward functions; the numbers must match. Give one per function, None where "
                "it is not a model."
            )
        self.reward_processing_classes = list(reward_processing_classes)
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.device = torch.device(device)
        self._profile = profile or (lambda name: nullcontext())
        self._load_models({"trust_remote_code": trust_remote_code, **(model_init_kwargs or {})}, trust_remote_code)
        self.reward_func_names = unique_names(self.reward_funcs)
        self._loop: asyncio.AbstractEventLoop | None = None
        if any(is_async_callable(func) for func in self.reward_funcs):
            self._thread, self._loop, ready = start_event_loop_in_daemon(name="VGFTrainer-AsyncRewardLoop")
            ready.wait()
            atexit.register(self.close)

    def close(self) -> None:
        """Stop the event loop of the asynchronous functions, if there are any."""
        if self._loop is not None:
            shutdown_event_loop_in_daemon(self._thread, self._loop)
            self._loop = None
            atexit.unregister(self.close)

    def prepare(self, accelerator: Any, *, deepspeed: bool = False) -> None:
        """Place those functions that are models as the accelerator places models for evaluation."""
        for index, func in enumerate(self.reward_funcs):
            if isinstance(func, PreTrainedModel):
                self.reward_funcs[index] = (
                    prepare_deepspeed(func, accelerator)
                    if deepspeed
                    else accelerator.prepare_model(func, evaluation_mode=True, device_placement=True)
                )

    def check_columns(self, column_names: Sequence[str]) -> None:
        """Refuse a dataset without a column that a function asks for by name, and a function that takes too little."""
        given = {*_CALL_ARGUMENTS, *(name for name in column_names if name not in _RESERVED_COLUMNS)}
        for func, name in zip(self.reward_funcs, self.reward_func_names, strict=True):
            required, accepted = keywords_of(func)
            missing = [argument for argument in required if argument not in given]
            if missing:
                raise ValueError(
                    f"The reward function '{name}' needs the column(s) {missing}, but the dataset has "
                    f"{sorted(column_names)}. Add or rename the column, or give the argument a default."
                )
            if accepted is not None and not given <= accepted:
                raise TypeError(
                    f"The reward function '{name}' does not accept {sorted(given - accepted)}, which it is called with "
                    "(every dataset column is handed over). Add `**kwargs` to its signature."
                )

    def __call__(
        self,
        inputs: Sequence[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
        trainer_state: Any = None,
        log_extra: Callable[[str, list], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
    ) -> Tensor:
        """Call every reward function on the completions of this process.

        `inputs` are the dataset rows, one per completion, whose columns beside the prompt become keyword arguments.
        Prompts and completions are texts or lists of messages. Errors of a function, and of what it returns, name it
        and show the prompt.

        Returns:
            Rewards `[rows, num_funcs]` in float32, NaN where a function returned `None`; not gathered.
        """
        columns = [name for name in inputs[0] if name not in _RESERVED_COLUMNS]
        rows: dict[str, list] = {name: [example.get(name) for example in inputs] for name in columns}
        rows |= {"prompts": prompts, "completions": completions, "completion_ids": completion_ids_list}
        shared = {
            "trainer_state": trainer_state,
            "log_extra": log_extra or (lambda column, values: None),
            "log_metric": log_metric or (lambda name, value: None),
        }
        rewards = torch.full((len(prompts), len(self.reward_funcs)), math.nan, device=self.device)
        waiting = []
        for index, (func, name) in enumerate(zip(self.reward_funcs, self.reward_func_names, strict=True)):
            if is_async_callable(func):
                waiting.append((index, func, name))
                continue
            with self._profile(name):
                output = self._call(index, func, name, rows, shared)
            rewards[:, index] = torch.tensor(check_output(output, name, rows))
        if waiting:
            for index, name, output in self._gather_async(waiting, rows, shared):
                rewards[:, index] = torch.tensor(check_output(output, name, rows))
        self._warn_about_unscored(rewards, rows)
        return rewards

    def _load_models(self, init_kwargs: dict[str, Any], trust_remote_code: bool) -> None:
        for index, func in enumerate(self.reward_funcs):
            revision = None
            if isinstance(func, str):
                revision = init_kwargs.get("revision")
                func = self.reward_funcs[index] = load_reward_model(func, **init_kwargs)
            if not isinstance(func, nn.Module):
                continue
            check_labels(func.config, f"`reward_funcs[{index}]` ({type(func).__name__})")
            func.eval()
            tokenizer = self.reward_processing_classes[index]
            if tokenizer is None and not isinstance(func, PreTrainedModel):
                raise ValueError(
                    f"`reward_funcs[{index}]` is a {type(func).__name__}, for which no tokenizer can be looked up. "
                    "Pass it in `reward_processing_classes`."
                )
            if tokenizer is None:
                tokenizer = AutoTokenizer.from_pretrained(
                    get_config_model_id(func.config), revision=revision, trust_remote_code=trust_remote_code
                )
            if isinstance(func, PreTrainedModel):
                if tokenizer.pad_token_id is None:
                    tokenizer.pad_token = tokenizer.eos_token
                # A classifier scores the last token that is not padding, so both have to agree on what padding is.
                func.config.get_text_config().pad_token_id = tokenizer.pad_token_id
            self.reward_processing_classes[index] = tokenizer

    def _call(self, index: int, func: Any, name: str, rows: dict[str, list], shared: dict[str, Any]) -> Any:
        try:
            if isinstance(func, nn.Module):
                return self._score(func, self.reward_processing_classes[index], rows)
            output = func(**_copied(rows), **shared)
            # A generator runs to its end here, so that it raises here, and to one reward too many, so that it ends.
            return list(islice(output, len(rows["prompts"]) + 1)) if inspect.isgenerator(output) else output
        except FAILURES as error:
            raise RuntimeError(_describe_failure(name, error, rows)) from error

    def _score(self, model: nn.Module, tokenizer: Any, rows: dict[str, list]) -> Tensor:
        pairs = list(zip(rows["prompts"], rows["completions"], strict=True))
        if isinstance(pairs[0][0], str):
            texts = [prompt + completion for prompt, completion in pairs]
        else:
            texts = [
                apply_chat_template({"messages": _conversation(*pair)}, tokenizer, **self.chat_template_kwargs)["text"]
                for pair in pairs
            ]
        encoded = tokenizer(
            text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
        ).to(self.device)
        with torch.inference_mode():
            return model(**encoded).logits[:, 0]

    def _gather_async(
        self, waiting: list[tuple[int, Any, str]], rows: dict[str, list], shared: dict[str, Any]
    ) -> list[tuple[int, str, Any]]:
        if self._loop is None:
            raise RuntimeError("This RewardRunner was closed; asynchronous reward functions cannot run any more.")

        async def call(index: int, func: Any, name: str) -> tuple[int, str, Any]:
            try:
                with self._profile(name):
                    return index, name, await func(**_copied(rows), **shared)
            except FAILURES as error:
                raise RuntimeError(_describe_failure(name, error, rows)) from error

        async def call_all() -> list[tuple[int, str, Any]]:
            return await asyncio.gather(*(call(*item) for item in waiting))

        return asyncio.run_coroutine_threadsafe(call_all(), self._loop).result()

    def _warn_about_unscored(self, rewards: Tensor, rows: dict[str, list]) -> None:
        unscored = rewards.isnan().all(dim=1).nonzero()[:, 0].tolist()
        if unscored:
            example = {name: values[unscored[0]] for name, values in rows.items() if name != "completion_ids"}
            logger.warning(
                "All reward functions returned None for the following kwargs:\n%s\n(%d of %d completions.) Make "
                "at least one reward function return a number for it.",
                show(example),
                len(unscored),
                len(rewards),
            )


def load_reward_model(name: str, num_labels: int | None = 1, **init_kwargs: Any) -> PreTrainedModel:
    """Load a sequence classifier whose head was trained, with `num_labels` labels or, for `None`, as many as it has.

    A checkpoint of a classifier of other labels, and one that lacks weights of a classifier, is a `ValueError`.
    """
    kept = {key: init_kwargs[key] for key in ("revision", "trust_remote_code", "token") if key in init_kwargs}
    config = AutoConfig.from_pretrained(name, **kept)
    if num_labels is not None:
        if any("SequenceClassification" in architecture for architecture in config.architectures or ()):
            check_labels(config, f"The reward model {name!r}")
        init_kwargs["num_labels"] = num_labels
    model, info = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True, **init_kwargs)
    if info["missing_keys"]:
        raise ValueError(
            f"The reward model {name!r} lacks the weights {show(sorted(info['missing_keys']))}, which would start at "
            "random values. Pass a trained sequence classifier; a language model has no reward head."
        )
    return model


def decode_completions(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Any], completion_ids: list[list[int]]
) -> list[Any]:
    """Returns completions as reward functions take them: texts, or of conversational prompts an assistant's message."""
    texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    if is_conversational({"prompt": prompts[0]}):
        return [[{"role": "assistant", "content": text}] for text in texts]
    return texts


def combine(rewards_per_func: Tensor, reward_weights: Tensor) -> Tensor:
    """Add the weighted rewards `[rows, num_funcs]` of the functions, leaving out NaN, of those that returned `None`.

    Rows that no function scored are NaN.

    Example:
        >>> combine(torch.tensor([[1.0, 2.0], [math.nan, 3.0]]), torch.tensor([1.0, 0.5])).tolist()
        [2.0, 1.5]
    """
    unscored = rewards_per_func.isnan().all(dim=1)
    return (rewards_per_func * reward_weights.to(rewards_per_func)).nansum(dim=1).masked_fill(unscored, math.nan)


def _conversation(prompt: list[dict[str, Any]], completion: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages of prompt and completion; a prompt that ends with the assistant is continued by the completion."""
    prompt, completion = plain_messages(prompt), plain_messages(completion)
    if prompt[-1]["role"] == "assistant" and completion:
        whole = f"{prompt[-1].get('content') or ''}{completion[0].get('content') or ''}"
        return [*prompt[:-1], {**prompt[-1], "content": whole}, *completion[1:]]
    return prompt + completion


def _copied(value: Any) -> Any:
    """A value whose lists, dicts and arrays may be changed without anyone else seeing it; texts are shared."""
    if isinstance(value, list):
        return [_copied(item) if isinstance(item, (list, dict, np.ndarray)) else item for item in value]
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return value.copy() if isinstance(value, np.ndarray) else value


def _describe_failure(name: str, error: BaseException, rows: dict[str, list]) -> str:
    count, first = len(rows["prompts"]), show(rows["prompts"][0])
    shown = f"{type(error).__name__}: {error}"
    return f"The reward function '{name}' raised {shown}. First prompt of the batch of {count}: {first}"
