# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Checks of datasets, prompts, tokenizer, model and output folder, made before anything expensive starts."""

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from trl import is_conversational

logger = logging.getLogger(__name__)

# Prompts whose length is checked before training; the others are checked when completions are sampled.
NUM_CHECKED_PROMPTS = 1000
_SHOWN_CHARACTERS = 200


def check_dataset(dataset: Any, name: str = "train_dataset") -> None:
    """Refuse a dataset that is of the wrong type, empty, or without prompts.

    Args:
        dataset: A `Dataset` or `IterableDataset`, or a dict of them for evaluation. Of a stream, one row is read.
        name: Name of the argument, for errors.

    Raises:
        TypeError: If it is no dataset, or if its prompts are neither texts nor lists of messages.
        ValueError: If it is missing, empty, or has no column `prompt`.

    Example:
        >>> check_dataset(Dataset.from_dict({"prompt": ["1 + 1 ="]}))
        >>> check_dataset(Dataset.from_dict({"question": ["1 + 1 ="]}))
        Traceback (most recent call last):
        ...
        ValueError: `train_dataset` has no column `prompt`; its columns are ['question']. Rename one, e.g.
        `dataset.rename_column('question', 'prompt')`.
    """
    if dataset is None:
        raise ValueError(f"`{name}` is required, got None.")
    if isinstance(dataset, Mapping):
        if not dataset:
            raise ValueError(f"`{name}` is an empty dict; give at least one dataset.")
        for key, part in dataset.items():
            check_dataset(part, f"{name}[{key!r}]")
        return
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise TypeError(f"`{name}` must be a `Dataset` or `IterableDataset`, got `{type(dataset).__name__}`.")
    row = next(iter(dataset), None)
    if row is None:
        raise ValueError(f"`{name}` is empty. Check the path, the split and any filter applied to it.")
    if "prompt" not in row:
        columns = sorted(row)
        raise ValueError(
            f"`{name}` has no column `prompt`; its columns are {columns}. Rename one, e.g. "
            f"`dataset.rename_column({columns[0] if columns else 'question'!r}, 'prompt')`."
        )
    prompt = row["prompt"]
    if not isinstance(prompt, str) and not is_conversational({"prompt": prompt}):
        raise TypeError(
            f"`prompt` in `{name}` must be a text or a list of messages (dicts with 'role' and 'content'), got "
            f"{_show(prompt)} ({type(prompt).__name__})."
        )


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse a tokenizer without an end-of-sequence token, with which completions would never end.

    Args:
        tokenizer: The tokenizer of the policy.

    Raises:
        ValueError: If it has no `eos_token`.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer ({type(tokenizer).__name__}) has no `eos_token`, so completions would only end at "
            "`max_completion_length`. Set one, e.g. `tokenizer.eos_token = '</s>'`, that the model was trained with."
        )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: nn.Module, name: str = "model") -> None:
    """Refuse a tokenizer that can produce ids for which the model has no embedding.

    Special tokens that neither begin, end nor pad a sequence are let through with a warning: some checkpoints of text
    models carry the tokenizer of a multimodal relative.

    Args:
        tokenizer: The tokenizer.
        model: A transformers model.
        name: Name of the model's argument, for errors.

    Raises:
        ValueError: If an id has no embedding.
    """
    weight = model.get_input_embeddings().weight  # type: ignore[operator]
    # DeepSpeed ZeRO-3 leaves an empty tensor in place of the weight and keeps its shape aside.
    rows = getattr(weight, "ds_shape", weight.shape)[0]
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    if not beyond:
        return
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    unused_specials = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special} - used
    token, highest = max(beyond.items(), key=lambda item: item[1])
    problem = (
        f"The tokenizer has {len(beyond)} token(s) with ids from {rows} on, e.g. {token!r} with {highest}, but "
        f"`{name}` has {rows} embeddings"
    )
    if set(beyond.values()) <= unused_specials:
        logger.warning("%s. They are special tokens; prompts must not contain them.", problem)
        return
    raise ValueError(
        f"{problem}. Use the tokenizer the model was trained with, or `model.resize_token_embeddings({highest + 1})`."
    )


def context_length(config: PreTrainedConfig) -> int | None:
    """Return the longest sequence that a model was made for, in tokens, `None` where its config does not say.

    Example:
        >>> from transformers import GPT2Config
        >>> context_length(GPT2Config(n_positions=64))
        64
    """
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def max_prompt_length(config: PreTrainedConfig, max_completion_length: int | None) -> int | None:
    """Return the longest prompt, in tokens, that leaves room for a completion.

    Args:
        config: Config of the model.
        max_completion_length: Longest completion; `None` counts as one token.

    Returns:
        Number of tokens, `None` where the config sets no limit.

    Raises:
        ValueError: If the completion alone fills the context.
    """
    context = context_length(config)
    if context is None:
        return None
    longest = context - (1 if max_completion_length is None else max_completion_length)
    if longest < 1:
        raise ValueError(
            f"`max_completion_length` ({max_completion_length}) leaves no room for a prompt in the model's context of "
            f"{context} tokens. Set it below {context}."
        )
    return longest


def tokenize_prompts(
    prompts: Sequence[Any], processing_class: Any, chat_template_kwargs: dict[str, Any] | None = None
) -> list[list[int]]:
    """Turn prompts into token ids as TRL does: the chat template for messages, plain tokenization for texts.

    Args:
        prompts: Texts or lists of messages.
        processing_class: Tokenizer or processor.
        chat_template_kwargs: Further arguments of `apply_chat_template`.

    Returns:
        Token ids of each prompt, without padding.

    Raises:
        ValueError: If the prompts are messages and there is no chat template.
    """
    if not prompts:
        return []
    if not is_conversational({"prompt": prompts[0]}):
        return processing_class(text=list(prompts))["input_ids"]
    kwargs = chat_template_kwargs or {}
    check_chat_template(processing_class, kwargs)
    return processing_class.apply_chat_template(
        conversation=list(prompts), add_generation_prompt=True, tokenize=True, return_dict=True, **kwargs
    )["input_ids"]


def check_chat_template(processing_class: Any, chat_template_kwargs: dict[str, Any]) -> None:
    """Raise ValueError if there is no chat template for prompts that are lists of messages."""
    if getattr(processing_class, "chat_template", None) is None and "chat_template" not in chat_template_kwargs:
        raise ValueError(
            f"The prompts are lists of messages, but the {type(processing_class).__name__} has no chat template. Use "
            "the tokenizer of a chat model, set `chat_template`, or give the prompts as texts."
        )


def check_prompt_lengths(
    prompt_ids: Sequence[Sequence[int]],
    config: PreTrainedConfig,
    max_completion_length: int | None,
    *,
    prompts: Sequence[Any],
) -> None:
    """Refuse prompts that are empty or do not fit the model's context.

    Args:
        prompt_ids: Token ids of each prompt.
        config: Config of the model.
        max_completion_length: Longest completion; `None` counts as one token.
        prompts: The prompts themselves, shown in errors.

    Raises:
        ValueError: If a prompt has no tokens or too many.

    Example:
        >>> from transformers import GPT2Config
        >>> check_prompt_lengths([[1, 2, 3]], GPT2Config(n_positions=8), max_completion_length=6, prompts=["a b c"])
        Traceback (most recent call last):
        ...
        ValueError: A prompt has 3 tokens, but the model's context of 8 leaves room for 2 beside `max_completion_length`
        (6). Lower `max_completion_length`, or filter long prompts out of the dataset. Prompt 0 of 1: 'a b c'
    """
    longest = max_prompt_length(config, max_completion_length)
    for row, ids in enumerate(prompt_ids):
        where = f"Prompt {row} of {len(prompts)}: {_show(prompts[row])}"
        if len(ids) == 0:
            raise ValueError(f"A prompt has no tokens, so nothing can follow it. Remove it from the dataset. {where}")
        if longest is not None and len(ids) > longest:
            raise ValueError(
                f"A prompt has {len(ids)} tokens, but the model's context of {context_length(config)} leaves room for "
                f"{longest} beside `max_completion_length` ({max_completion_length}). Lower `max_completion_length`, "
                f"or filter long prompts out of the dataset. {where}"
            )


def check_dataset_prompts(
    dataset: Any,
    processing_class: Any,
    config: PreTrainedConfig,
    max_completion_length: int | None,
    chat_template_kwargs: dict[str, Any] | None = None,
    name: str = "train_dataset",
) -> None:
    """Check the lengths of the first prompts of a dataset; of a stream, only that a completion leaves room for one.

    Args:
        dataset: A dataset that passed `check_dataset`, or a dict of them.
        processing_class: Tokenizer or processor.
        config: Config of the model.
        max_completion_length: Longest completion.
        chat_template_kwargs: Further arguments of `apply_chat_template`.
        name: Name of the argument, for errors.

    Raises:
        ValueError: If one of the first `NUM_CHECKED_PROMPTS` prompts does not fit, or they cannot be tokenized.
    """
    max_prompt_length(config, max_completion_length)
    if isinstance(dataset, Mapping):
        for key, part in dataset.items():
            part_name = f"{name}[{key!r}]"
            check_dataset_prompts(
                part, processing_class, config, max_completion_length, chat_template_kwargs, part_name
            )
    elif isinstance(dataset, Dataset):
        prompts = [row["prompt"] for row in islice(dataset.select_columns("prompt"), NUM_CHECKED_PROMPTS)]
        prompt_ids = tokenize_prompts(prompts, processing_class, chat_template_kwargs)
        try:
            check_prompt_lengths(prompt_ids, config, max_completion_length, prompts=prompts)
        except ValueError as error:
            raise ValueError(f"`{name}`: {error}") from None


def check_output_dir(output_dir: str | os.PathLike) -> None:
    """Create the output folder and write to it once, so that no result is lost at the end of a run.

    Args:
        output_dir: The folder.

    Raises:
        OSError: If it cannot be created or written to.
    """
    try:
        os.makedirs(output_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=os.fspath(output_dir)) as file:
            file.write(b"0")
    except OSError as error:
        raise OSError(
            f"`output_dir` {os.fspath(output_dir)!r} cannot be written to ({error}). Set it to a folder that can."
        ) from error


def _show(prompt: Any) -> str:
    text = repr(prompt)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}... ({len(text)} characters)"
