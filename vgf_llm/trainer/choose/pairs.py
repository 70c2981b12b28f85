# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Preference pairs as rounds of training: a pair is a group of two responses with the rewards 1 and 0.

Pairs come in TRL's preference formats, texts or conversations, with a prompt or with the one that both responses begin
with. They are tokenized once, before training starts.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl import apply_chat_template, is_conversational, maybe_extract_prompt

from vgf_llm.trainer.choose.prompts import check_chat_template, plain_messages, problem_of_messages, tokenize_prompts

logger = logging.getLogger(__name__)

COLUMNS = ("chosen", "rejected")


def has_pairs(dataset: Any) -> bool:
    """Whether a dataset has TRL's columns of preference pairs beside its prompts."""
    if not isinstance(dataset, (Dataset, IterableDataset)):
        return False
    row = next(iter(dataset), None)
    return row is not None and all(name in row for name in COLUMNS)


def preferred(completions: list[Any], preferred: list[float], **kwargs: Any) -> list[float]:
    """The reward of a pair's responses: 1 for the chosen one, 0 for the other."""
    return preferred


def check_pairs(args: Any, rollout_func: Any, eval_dataset: Any) -> None:
    """Refuses settings that pairs leave no room for.

    Raises:
        ValueError: If groups are not of two, something asks for samples, or an evaluation dataset has no pairs.
    """
    parts = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
    if any(part is not None and not has_pairs(part) for part in parts):
        raise ValueError(
            "`eval_dataset` must have the columns 'prompt', 'chosen' and 'rejected', as `train_dataset` has; without "
            "`reward_funcs` nothing else can score its responses."
        )
    sizes = {"num_generations": args.num_generations}
    if args.num_generations_eval is not None:
        sizes["num_generations_eval"] = args.num_generations_eval
    for name, size in sizes.items():
        if size != 2:
            raise ValueError(
                f"`{name}` must be 2 with preference pairs, got {size}: a pair is a group of two responses. Set it to "
                "2, or pass `reward_funcs` to sample responses instead of reading pairs."
            )
    sampled = args.rollout_policy in ("value", "transport") or args.rollout_prefetch > 0
    if args.distill_coef > 0 or sampled or rollout_func is not None:
        raise ValueError(
            "`distill_coef`, `rollout_policy`, `rollout_prefetch` and `rollout_func` ask for sampled responses, but "
            "preference pairs are read and not sampled. Train the value on pairs first, then pass `reward_funcs`."
        )


def with_prompts(dataset: Any) -> Any:
    """Gives pairs without a prompt the one that both responses begin with, as TRL does.

    Args:
        dataset: A dataset of pairs, or a dict of them; anything else is passed through.

    Returns:
        The dataset with the columns `prompt`, `chosen` and `rejected`.

    Raises:
        ValueError: If a response is empty, or two responses begin with nothing in common.

    Example:
        >>> pairs = Dataset.from_dict({"chosen": ["The sky is blue."], "rejected": ["The sky is green."]})
        >>> with_prompts(pairs)[0]
        {'chosen': ' blue.', 'rejected': ' green.', 'prompt': 'The sky is'}
    """
    if isinstance(dataset, Mapping):
        return {name: with_prompts(part) for name, part in dataset.items()}
    return dataset.map(_with_prompt, with_indices=True) if has_pairs(dataset) else dataset


def _with_prompt(row: dict[str, Any], index: int) -> dict[str, Any]:
    pair = {name: row[name] for name in ("prompt", *COLUMNS) if row.get(name) is not None}
    for name in COLUMNS:
        response = pair.get(name)
        if isinstance(response, str) and is_conversational({"prompt": pair.get("prompt")}):
            response = pair[name] = [{"role": "assistant", "content": response}]
        problem = None if isinstance(response, str) or not response else problem_of_messages(response, name)
        if problem:
            raise TypeError(
                f"Row {index} of the preference pairs: {problem}, got {str(response)[:80]} ({type(response).__name__})."
            )
        messages = plain_messages(response) if isinstance(response, list) else [{"content": response}]
        if not any(message.get("content") for message in messages):
            raise ValueError(
                f"Row {index} of the preference pairs has an empty response, `{name}` (prompt "
                f"{str(pair.get('prompt'))[:80]!r}); it has no value. Filter such pairs out."
            )
    pair = maybe_extract_prompt(pair)
    if not pair["prompt"]:
        raise ValueError(
            f"Row {index} of the preference pairs has no prompt and its responses begin with nothing in common: "
            f"{str(pair)[:200]}. Add a column `prompt`, or filter such pairs out."
        )
    return pair


def tokenized_pairs(
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    eos_token_ids: Collection[int],
    max_completion_length: int | None,
    max_prompt_length: int | None,
    chat_template_kwargs: dict[str, Any],
    name: str = "train_dataset",
) -> Any:
    """Adds the columns `prompt_ids`, `chosen_ids` and `rejected_ids`, and leaves out pairs that are too long.

    Args:
        dataset: What `with_prompts` returned.
        tokenizer: The policy's tokenizer; conversations go through its chat template.
        eos_token_ids: Tokens that end a response; one is added where a response has none.
        max_completion_length: The longest response, in tokens.
        max_prompt_length: The longest prompt.
        chat_template_kwargs: Further arguments of the chat template.
        name: Name of the argument, for messages.

    Returns:
        The dataset; one that has the columns already, as it is. What was left out is counted in a warning; of a stream
        the first such pair is told.

    Raises:
        ValueError: If no pair is left, or a prompt has no tokens.
    """
    if "chosen_ids" in (dataset.column_names or ()):
        return dataset
    encoding = {"tokenizer": tokenizer, "eos_token_ids": list(eos_token_ids), "template_kwargs": chat_template_kwargs}
    limits = f"`max_completion_length` ({max_completion_length})"
    if max_prompt_length is not None:
        limits += f", or a prompt longer than the {max_prompt_length} tokens that the model's context leaves for it"

    def fits(pair: dict[str, Any]) -> bool:
        responses = max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))
        return (max_completion_length is None or responses <= max_completion_length) and (
            max_prompt_length is None or len(pair["prompt_ids"]) <= max_prompt_length
        )

    if isinstance(dataset, IterableDataset):
        return dataset.map(_encode, fn_kwargs=encoding).filter(_told_once(fits, name, limits))
    with PartialState().main_process_first():  # the others find what it has cached
        encoded = dataset.map(_encode, fn_kwargs=encoding, desc=f"Tokenizing the pairs of {name}")
        kept = encoded.filter(fits, desc=f"Leaving out long pairs of {name}")
    if len(kept) == 0:
        raise ValueError(
            f"All {len(encoded)} pairs of `{name}` have a response longer than {limits}. Raise `max_completion_length`."
        )
    if len(kept) < len(encoded) and PartialState().is_main_process:
        logger.warning(
            "%d of the %d pairs of `%s` are left out: those with a response longer than %s. Raise "
            "`max_completion_length` to keep responses whole.",
            len(encoded) - len(kept),
            len(encoded),
            name,
            limits,
        )
    return kept


def _told_once(fits: Callable[[dict[str, Any]], bool], name: str, limits: str) -> Callable[[dict[str, Any]], bool]:
    told = False

    def fits_and_tells(pair: dict[str, Any]) -> bool:
        nonlocal told
        if fits(pair):
            return True
        if not told:
            logger.warning("Pairs of the stream `%s` are left out: those with a response longer than %s.", name, limits)
            told = True
        return False

    return fits_and_tells


def _encode(
    row: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    eos_token_ids: list[int],
    template_kwargs: dict[str, Any],
) -> dict[str, list[int]]:
    """Tokenizes a pair as a policy samples: prompt and response of a text apart, of a conversation what is rendered."""
    if is_conversational({"prompt": row["prompt"]}):
        check_chat_template(tokenizer, template_kwargs)
        pair = {name: plain_messages(row[name]) for name in ("prompt", *COLUMNS)}
        texts = apply_chat_template(pair, tokenizer, **template_kwargs)
        prompt_ids = tokenizer(texts["prompt"], add_special_tokens=False)["input_ids"]
        wholes = [tokenizer(texts["prompt"] + texts[name], add_special_tokens=False)["input_ids"] for name in COLUMNS]
    else:
        texts = row
        prompt_ids = tokenize_prompts([row["prompt"]], tokenizer)[0]
        wholes = [[], []]
    if not prompt_ids:
        raise ValueError(
            f"A prompt of a preference pair has no tokens, so nothing can follow it: {str(row)[:200]}. Filter such "
            "pairs out."
        )
    encoded = {"prompt_ids": prompt_ids}
    for name, whole in zip(COLUMNS, wholes, strict=True):
        if whole[: len(prompt_ids)] == prompt_ids:
            ids = whole[len(prompt_ids) :]
        else:  # a text, or a token that would reach over the prompt's end
            ids = tokenizer(texts[name], add_special_tokens=False)["input_ids"]
        encoded[f"{name}_ids"] = _ended(ids, tokenizer, eos_token_ids)
    return encoded


def _ended(ids: list[int], tokenizer: PreTrainedTokenizerBase, eos_token_ids: list[int]) -> list[int]:
    """Ends a response with an end-of-sequence token; blanks that a template writes behind it are cut."""
    last = max((index for index, token in enumerate(ids) if token in eos_token_ids), default=None)
    if last is not None and not tokenizer.decode(ids[last + 1 :]).strip():
        return ids[: last + 1]
    return [*ids, tokenizer.eos_token_id]


def pair_labels(count: int, first_row: int) -> list[float]:
    """Which of adjacent rows, a pair each two, are chosen responses (1) and which rejected ones (0).

    Args:
        count: Number of rows.
        first_row: The number of the first row among those of all processes.
    """
    return [1.0 - (first_row + index) % 2 for index in range(count)]


@dataclass
class PairRows:
    """Responses of preference pairs in the place of samples: texts or messages, token ids, and which was chosen."""

    prompts: list[Any]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    labels: list[float]


def pair_rows(inputs: Sequence[dict[str, Any]], first_row: int) -> PairRows:
    """Turns rows of a dataset of pairs, each repeated twice, into chosen and rejected responses in turn.

    Args:
        inputs: Rows that `tokenized_pairs` prepared.
        first_row: The number of the first row among those of all processes.

    Example:
        >>> row = {"prompt": "a", "prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}
        >>> pair_rows([row, row], first_row=0).completion_ids
        [[2], [3]]
    """
    labels = pair_labels(len(inputs), first_row)
    ids = [row["chosen_ids" if label else "rejected_ids"] for row, label in zip(inputs, labels, strict=True)]
    return PairRows([row["prompt"] for row in inputs], [row["prompt_ids"] for row in inputs], ids, labels)
