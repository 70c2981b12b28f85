# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Reward functions: loading, naming and calling them as TRL does, with errors that show the prompt they failed on."""

import asyncio
import atexit
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import apply_chat_template, is_conversational

from vgf_llm._compat import (
    get_config_model_id,
    is_async_callable,
    prepare_deepspeed,
    shutdown_event_loop_in_daemon,
    start_event_loop_in_daemon,
)
from vgf_llm.trainer.score.checks import (
    CALL_ARGUMENTS,
    RewardFunc,
    as_list_of_funcs,
    call_func,
    check_output,
    check_weights,
    describe_failure,
    find_failing_row,
    func_name,
    ignore,
    keywords_of,
)

logger = logging.getLogger(__name__)

# Columns that the trainer itself fills; a dataset's columns of these names are not handed to reward functions.
_RESERVED_COLUMNS = ("prompt", "completion", "completion_ids")


class RewardRunner:
    """Scores completions with one or several reward functions.

    Args:
        reward_funcs: One reward function or a list. A string is loaded as a sequence classifier with one label.
        reward_weights: One weight per function; `None` for `1.0` each.
        reward_processing_classes: Tokenizers of those functions that are models, one or a list; `None` loads them.
        model_init_kwargs: Keyword arguments of `from_pretrained` for functions given as strings.
        trust_remote_code: Whether models and tokenizers given as strings may run code of their checkpoint.
        chat_template_kwargs: Keyword arguments of `apply_chat_template` for models on conversational data.
        device: Device of the returned rewards and of the inputs of models.
        profile: Gives the context manager in which the function of a name runs.

    Attributes:
        reward_funcs: The functions, strings replaced by their models.
        reward_func_names: Names used in metrics: the last part of a model id, or the name of a callable.
        reward_weights: Weights `[num_funcs]`.

    Raises:
        ValueError: If there is no function, or if the number of weights or processing classes does not match.
        TypeError: If a function is not callable, or does not accept the arguments it is called with.

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
        reward_funcs: RewardFunc | list[RewardFunc] | None,
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
                f"{len(self.reward_funcs)} reward functions. Give one per function, None where it is not a model."
            )
        self.reward_processing_classes = list(reward_processing_classes)
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.device = torch.device(device)
        self._profile = profile or (lambda name: nullcontext())
        self._load_models({"trust_remote_code": trust_remote_code, **(model_init_kwargs or {})}, trust_remote_code)
        self.reward_func_names = [func_name(func) for func in self.reward_funcs]
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
        """Place those functions that are models as the accelerator places models for evaluation.

        Args:
            accelerator: The trainer's `accelerate.Accelerator`.
            deepspeed: Whether the run uses DeepSpeed.
        """
        for index, func in enumerate(self.reward_funcs):
            if isinstance(func, PreTrainedModel):
                self.reward_funcs[index] = (
                    prepare_deepspeed(func, accelerator)
                    if deepspeed
                    else accelerator.prepare_model(func, evaluation_mode=True, device_placement=True)
                )

    def check_columns(self, column_names: Sequence[str]) -> None:
        """Refuse a dataset without a column that a reward function asks for by name.

        Args:
            column_names: Columns of the training dataset.

        Raises:
            ValueError: If a column is missing, naming the function, the column and the columns there are.
        """
        given = {*CALL_ARGUMENTS, *(name for name in column_names if name not in _RESERVED_COLUMNS)}
        for func, name in zip(self.reward_funcs, self.reward_func_names, strict=True):
            required, accepted = keywords_of(func)
            missing = [argument for argument in required if argument not in given]
            if missing:
                raise ValueError(
                    f"The reward function '{name}' needs the column(s) {missing}, but the dataset has "
                    f"{sorted(column_names)}. Add or rename the column, or give the argument a default."
                )
            if accepted is not None and not given <= accepted:
                raise ValueError(
                    f"The reward function '{name}' does not accept {sorted(given - accepted)}, which it is called with "
                    "because every dataset column is handed over. Add `**kwargs` to its signature."
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

        Args:
            inputs: Dataset rows, one per completion; columns beside the prompt become keyword arguments.
            prompts: Prompts, texts or lists of messages, one per completion.
            completions: Completions, texts or lists of messages.
            completion_ids_list: Token ids of the completions.
            trainer_state: The trainer's state.
            log_extra: Adds a column to the logged completions.
            log_metric: Logs a number.

        Returns:
            Rewards `[rows, num_funcs]` in float32, NaN where a function returned `None`; not gathered.

        Raises:
            RuntimeError: If a function raised; the cause is chained, and the prompt shown.
            ValueError: If a function returned the wrong number of rewards, or NaN or infinity.
            TypeError: If a function returned something else than a list of numbers and `None`.
        """
        columns = [name for name in inputs[0] if name not in _RESERVED_COLUMNS]
        rows = {name: [example[name] for example in inputs] for name in columns}
        rows |= {"prompts": prompts, "completions": completions, "completion_ids": completion_ids_list}
        shared = {
            "trainer_state": trainer_state,
            "log_extra": log_extra or ignore,
            "log_metric": log_metric or ignore,
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
                func = AutoModelForSequenceClassification.from_pretrained(func, num_labels=1, **init_kwargs)
                self.reward_funcs[index] = func
            if isinstance(func, PreTrainedModel):
                tokenizer = self.reward_processing_classes[index]
                if tokenizer is None:
                    tokenizer = AutoTokenizer.from_pretrained(
                        get_config_model_id(func.config), revision=revision, trust_remote_code=trust_remote_code
                    )
                if tokenizer.pad_token_id is None:
                    tokenizer.pad_token = tokenizer.eos_token
                # A classifier scores the last token that is not padding, so both have to agree on what padding is.
                func.config.get_text_config().pad_token_id = tokenizer.pad_token_id
                self.reward_processing_classes[index] = tokenizer
            elif isinstance(func, nn.Module) and self.reward_processing_classes[index] is None:
                raise ValueError(
                    f"`reward_funcs[{index}]` is a {type(func).__name__}, for which no tokenizer can be looked up. "
                    "Pass it in `reward_processing_classes`."
                )

    def _call(self, index: int, func: Any, name: str, rows: dict[str, list], shared: dict[str, Any]) -> Any:
        # Reward functions are the user's code and may raise anything; the cause stays chained.
        try:
            if isinstance(func, nn.Module):
                return self._score(func, self.reward_processing_classes[index], rows)
            return call_func(func, {**rows, **shared})
        except Exception as error:
            culprit = None if isinstance(func, nn.Module) else find_failing_row(func, rows, shared)
            raise RuntimeError(describe_failure(name, error, rows, culprit)) from error

    def _score(self, model: nn.Module, tokenizer: Any, rows: dict[str, list]) -> Tensor:
        pairs = list(zip(rows["prompts"], rows["completions"], strict=True))
        texts = [prompt + completion for prompt, completion in pairs]
        if is_conversational({"prompt": pairs[0][0]}):
            texts = [
                apply_chat_template({"messages": messages}, tokenizer, **self.chat_template_kwargs)["text"]
                for messages in texts
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
                    return index, name, await func(**{**rows, **shared})
            except Exception as error:
                # Not called again row by row: an asynchronous function usually asks a service that counts calls.
                raise RuntimeError(describe_failure(name, error, rows, None)) from error

        async def call_all() -> list[tuple[int, str, Any]]:
            return await asyncio.gather(*(call(*item) for item in waiting))

        return asyncio.run_coroutine_threadsafe(call_all(), self._loop).result()

    def _warn_about_unscored(self, rewards: Tensor, rows: dict[str, list]) -> None:
        unscored = rewards.isnan().all(dim=1).nonzero()[:, 0].tolist()
        if unscored:
            example = {name: values[unscored[0]] for name, values in rows.items() if name != "completion_ids"}
            logger.warning(
                "All reward functions returned None for %d of %d completions, first for the following arguments:\n%s\n"
                "Make at least one reward function return a number for it.",
                len(unscored),
                len(rewards),
                example,
            )


def combine(rewards_per_func: Tensor, reward_weights: Tensor | Sequence[float] | None = None) -> Tensor:
    """Add the weighted rewards of the functions, leaving out those that returned `None`.

    Call it on rewards gathered over all processes, so that every process sees the same error.

    Args:
        rewards_per_func: Rewards `[rows, num_funcs]`, NaN for `None`.
        reward_weights: Weights `[num_funcs]`; `None` for `1.0` each.

    Returns:
        Rewards `[rows]`, NaN for rows that no function scored.

    Raises:
        ValueError: If no row was scored by any function, or if the number of weights does not match.

    Example:
        >>> combine(torch.tensor([[1.0, 2.0], [math.nan, 3.0]]), [1.0, 0.5]).tolist()
        [2.0, 1.5]
    """
    weights = torch.ones(rewards_per_func.shape[1]) if reward_weights is None else torch.as_tensor(reward_weights)
    if weights.shape != rewards_per_func.shape[1:]:
        raise ValueError(
            f"`reward_weights` has shape {tuple(weights.shape)}, but there are {rewards_per_func.shape[1]} reward "
            "functions. Give one weight per function."
        )
    unscored = rewards_per_func.isnan().all(dim=1)
    if bool(unscored.all()):
        raise ValueError(
            f"All reward functions returned None for all {len(unscored)} completions of the batch, so there is nothing "
            "to learn from. Check that the reward functions apply to this dataset (columns, answer format)."
        )
    return (rewards_per_func * weights.to(rewards_per_func)).nansum(dim=1).masked_fill(unscored, math.nan)
