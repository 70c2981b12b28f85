# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Prompts as token ids, and checks of datasets, tokenizer, model and output folder before anything expensive starts."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from vgf_llm.models.language_model import weight_shape

logger = logging.getLogger(__name__)

# Prompts that are tokenized before training; of the others, those whose texts are long enough to be too long.
NUM_CHECKED_PROMPTS = 1000
_SHOWN_CHARACTERS = 200
# Columns that hold prompts in common datasets, the likeliest first.
_PROMPT_COLUMNS = (
    *("prompts", "question", "problem", "query", "instruction", "messages", "conversations", "input", "text"),
)


def check_dataset(dataset: Any, name: str = "train_dataset") -> None:
    """Refuses a dataset that is of the wrong type, empty, or has a row without a prompt; errors call it `name`.

    A dict of datasets is for evaluation. Of a stream, one row is read.

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
        if name == "train_dataset":
            raise TypeError(
                f"`train_dataset` is a {type(dataset).__name__} with the parts {list(dataset)}; training takes one "
                f"dataset. Pass one of them, e.g. `dataset[{next(iter(dataset))!r}]`."
            )
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
        likely = next((column for column in _PROMPT_COLUMNS if column in row), None)
        likely = likely or next((column for column in columns if column.lower().startswith("prompt")), None)
        hint = f"Rename one, e.g. `dataset.rename_column({likely!r}, 'prompt')`." if likely else "Add one of that name."
        raise ValueError(f"`{name}` has no column `prompt`; its columns are {columns}. {hint}")
    prompts = _column(dataset) if isinstance(dataset, Dataset) else iter([row["prompt"]])
    check_prompts(prompts, f"`{name}`")


def check_prompts(prompts: Iterator[Any] | Sequence[Any], where: str) -> None:
    """Raises TypeError, which names the row, for prompts that are neither all texts nor all lists of messages.

    Example:
        >>> check_prompts(["a", None], "`train_dataset`")
        Traceback (most recent call last):
        ...
        TypeError: Row 1 of `train_dataset`: `prompt` must be a text or a list of messages (dicts with 'role' and
        'content'), got None (NoneType). Correct the row, or filter such rows out.
    """
    first = None
    for row, prompt in enumerate(prompts):
        problem = None if isinstance(prompt, str) else problem_of_messages(prompt)
        if problem is None and row > 0 and type(prompt) is not first:
            problem = "all prompts must be texts, or all lists of messages, as that of row 0 is"
        if problem is not None:
            raise wrong_row(row, where, problem, prompt)
        first = first or type(prompt)


def wrong_row(row: int, where: str, problem: str, found: Any) -> TypeError:
    """The error for a row of a dataset that holds something else than it has to."""
    return TypeError(
        f"Row {row} of {where}: {problem}, got {_show(found)} ({type(found).__name__}). Correct the row, or filter "
        "such rows out."
    )


def problem_of_messages(messages: Any, column: str = "prompt") -> str | None:
    """Says what keeps something from being a list of messages, `None` for nothing; errors name the column."""
    expected = f"`{column}` must be a text or a list of messages (dicts with 'role' and 'content')"
    if not isinstance(messages, list) or not messages:
        return expected
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return expected
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
        if any(not isinstance(part, (str, dict)) for part in parts) or not all(
            isinstance(x, str | None) for x in texts
        ):
            return f"{expected}, and each content a text or a list of parts"
        kinds = {part.get("type", "text") for part in parts if isinstance(part, dict)} - {"text"}
        if kinds:
            return f"the `{column}` has content of the type(s) {sorted(map(str, kinds))}, and text models are trained"
        if not isinstance(content, (str, list)) and not message.get("tool_calls"):
            return f"{expected}; the message of the role {message['role']!r} has no content"
    return None


def _column(dataset: Dataset) -> Iterator[Any]:
    """The prompts of a dataset, read in batches."""
    for batch in dataset.select_columns("prompt").with_format(None).iter(batch_size=1000):
        yield from batch["prompt"]


def check_tokenizer(tokenizer: Any) -> None:
    """Raises ValueError for a tokenizer without an end-of-sequence token, with which completions would never end."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer ({type(tokenizer).__name__}) has no `eos_token`, so completions would only end at "
            "`max_completion_length`. Set one, e.g. `tokenizer.eos_token = '</s>'`, that the model was trained with."
        )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> None:
    """Raises ValueError for a tokenizer that can produce ids for which the model has no embedding.

    Special tokens that neither begin, end nor pad a sequence are let through with a warning: some checkpoints of text
    models carry the tokenizer of a multimodal relative.
    """
    rows = weight_shape(model.get_input_embeddings().weight)[0]  # type: ignore[operator]
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    if not beyond:
        return
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    unused_specials = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special} - used
    token, highest = max(beyond.items(), key=lambda item: item[1])
    problem = (
        f"The tokenizer has {len(beyond)} token(s) with ids from {rows} on, e.g. {token!r} with {highest}, but "
        f"`model` has {rows} embeddings"
    )
    if set(beyond.values()) <= unused_specials:
        logger.warning("%s. They are special tokens; prompts must not contain them.", problem)
        return
    raise ValueError(
        f"{problem}. Use the tokenizer the model was trained with, or `model.resize_token_embeddings({highest + 1})`."
    )


def context_length(config: PreTrainedConfig) -> int | None:
    """Returns the longest sequence that a model was made for, in tokens, `None` where its config does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def max_prompt_length(config: PreTrainedConfig, max_completion_length: int | None) -> int | None:
    """Returns the longest prompt, in tokens, that leaves room for a completion; `None` where the config sets no limit.

    A completion of no given length counts as one token. Raises ValueError if the completion alone fills the context.
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
    """Turns prompts into token ids, without padding, as TRL does: messages by the chat template.

    A conversation that ends with a message of the assistant is continued. An end-of-sequence token that the tokenizer
    itself puts behind a text is left out, because completions follow it; a warning says so once.
    """
    if not prompts:
        return []
    check_prompts(prompts, "the batch")
    end = getattr(processing_class, "eos_token_id", None)
    if isinstance(prompts[0], str):
        encoded = processing_class(text=list(prompts))["input_ids"]
        written = getattr(processing_class, "eos_token", None) or ""
        added = [
            len(row) > 1 and row[-1] == end and not text.endswith(written)
            for text, row in zip(prompts, encoded, strict=True)
        ]
        if any(added):
            _warn_once("The tokenizer puts the end-of-sequence token (eos) behind texts. Prompts are used without it.")
        ids = [row[:-1] if cut else row for row, cut in zip(encoded, added, strict=True)]
    else:
        kwargs = chat_template_kwargs or {}
        check_chat_template(processing_class, kwargs)
        ids = [[] for _ in prompts]
        for continues in (False, True):
            rows = [row for row, prompt in enumerate(prompts) if (prompt[-1]["role"] == "assistant") is continues]
            if rows:
                how = {"continue_final_message": True} if continues else {"add_generation_prompt": True}
                encoded = processing_class.apply_chat_template(
                    conversation=[plain_messages(prompts[row]) for row in rows],
                    **{"tokenize": True, "return_dict": True, **how, **kwargs},
                )["input_ids"]
                for row, tokens in zip(rows, encoded, strict=True):
                    ids[row] = tokens
    if any(len(row) > 1 and row[-1] == end for row in ids):
        _warn_once(
            "Prompts end in the end-of-sequence token (eos), behind which a model has seldom seen a completion. Check "
            "the chat template's generation prompt, or take the token off the texts."
        )
    return ids


def plain_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose content is a text, where parts were given: what the chat templates of text models read.

    Example:
        >>> plain_messages([{"role": "user", "content": [{"type": "text", "text": "1 + 1 ="}]}])
        [{'role': 'user', 'content': '1 + 1 ='}]
    """
    return [
        {**message, "content": "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)}
        if isinstance(content := message.get("content"), list)
        else message
        for message in messages
    ]


@lru_cache(maxsize=8)
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


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
    rows: Sequence[int] | None = None,
) -> None:
    """Raises ValueError for prompts that are empty or do not fit the model's context.

    Errors show the prompt and say where it stands in the dataset: its place in `rows`, or among `prompts`.

    Example:
        >>> from transformers import GPT2Config
        >>> check_prompt_lengths([[1, 2, 3]], GPT2Config(n_positions=8), max_completion_length=6, prompts=["a b c"])
        Traceback (most recent call last):
        ...
        ValueError: A prompt has 3 tokens, but the model's context of 8 leaves room for 2 beside `max_completion_length`
        (6). Lower `max_completion_length`, or filter long prompts out of the dataset. Row 0: 'a b c'
    """
    longest = max_prompt_length(config, max_completion_length)
    for row, ids in enumerate(prompt_ids):
        where = f"Row {row if rows is None else rows[row]}: {_show(prompts[row])}"
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
    """Checks the lengths of the prompts of a dataset; of a stream, only that a completion leaves room for one.

    Of a large dataset, the first `NUM_CHECKED_PROMPTS` are tokenized and those whose text may be too long. Raises
    ValueError if a prompt does not fit.
    """
    longest = max_prompt_length(config, max_completion_length)
    settings = (processing_class, config, max_completion_length, chat_template_kwargs)
    if isinstance(dataset, Mapping):
        for key, part in dataset.items():
            check_dataset_prompts(part, *settings, f"{name}[{key!r}]")
    elif isinstance(dataset, Dataset):
        # A token is at least a byte, and a template adds less than half of the room.
        suspicious = [
            (row, prompt)
            for row, prompt in enumerate(_column(dataset))
            if row < NUM_CHECKED_PROMPTS
            or not prompt
            or (longest and 2 * len(str(prompt).encode(errors="replace")) > longest)
        ]
        for start in range(0, len(suspicious), 1000):
            rows, prompts = zip(*suspicious[start : start + 1000], strict=True)
            prompt_ids = tokenize_prompts(prompts, processing_class, chat_template_kwargs)
            try:
                check_prompt_lengths(prompt_ids, config, max_completion_length, prompts=prompts, rows=rows)
            except ValueError as error:
                raise ValueError(f"`{name}`: {error}") from None


def usable_holdout_ratio(
    dataset: Any,
    processing_class: Any,
    ratio: float,
    is_held_out: Callable[[Sequence[int]], bool],
    chat_template_kwargs: dict[str, Any] | None = None,
) -> float:
    """Returns the share of prompts to hold out, or 0 with a warning where a small training set would be held out whole.

    `is_held_out` says of a prompt's token ids whether it is held out. Streams have prompts enough.
    """
    if ratio == 0 or not isinstance(dataset, Dataset):
        return ratio
    known = "prompt_ids" in dataset.column_names
    for row in range(len(dataset)):  # the first one or two settle it
        prompt = dataset[row]["prompt_ids" if known else "prompt"]
        ids = prompt if known else tokenize_prompts([prompt], processing_class, chat_template_kwargs)[0]
        if not is_held_out(ids):
            return ratio
    logger.warning(
        "All %d prompts of `train_dataset` would be held out by `value_holdout_ratio` (%g) with this seed, and "
        "nothing would train. None is held out, and the gate is not measured. Set `value_holdout_ratio=0`, or give "
        "more prompts.",
        len(dataset),
        ratio,
    )
    return 0.0


def check_output_dir(output_dir: str | os.PathLike) -> None:
    """Creates the output folder and writes to it once, so that no result is lost at the end; raises OSError."""
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
