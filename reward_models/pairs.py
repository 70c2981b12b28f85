# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Prompts with responses as token ids that say where the response begins: what reward models are trained and asked on.

Prompt and response are tokenized apart, as they are when a policy samples, so that a response has the same ids in a
preference pair, in a sample and in a particle that is moved.
"""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import extract_prompt

Messages = list[dict[str, Any]]

# Where a response of Anthropic's HH transcripts begins.
_ASSISTANT = "\n\nAssistant:"
_HUMAN = "\n\nHuman:"


def encode_response(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Messages, response: str | Messages, **template_kwargs: Any
) -> tuple[list[int], int]:
    """Returns the ids of prompt and response, and the number of them that are the prompt's.

    Args:
        tokenizer: The reward model's tokenizer.
        prompt: A text, or messages.
        response: A text, closed by the end-of-sequence token where it is not; or messages, closed by the template.
        **template_kwargs: Handed to `apply_chat_template`.

    Raises:
        ValueError: The response has no token, or the chat template writes the prompt otherwise when a response follows.

    Example:
        >>> from recipes.embedded_preference.tokenizer import build_tokenizer
        >>> ids, start = encode_response(build_tokenizer(), "ann reviews", " the soup")
        >>> len(ids), start
        (6, 3)
    """
    if isinstance(prompt, str):
        if not isinstance(response, str):
            raise ValueError(
                f"The prompt is a text and the response is {type(response).__name__}; give both as texts or both as "
                "lists of messages."
            )
        prompt_ids = tokenizer(prompt).input_ids
        response_ids = tokenizer(response, add_special_tokens=False).input_ids
        end = tokenizer.eos_token_id
        if end is not None and response_ids[-1:] != [end]:
            response_ids = [*response_ids, end]
    else:
        if isinstance(response, str):
            response = [{"role": "assistant", "content": response}]
        if tokenizer.chat_template is None:
            raise ValueError(
                "The prompt is a list of messages, and the reward model's tokenizer has no chat template. Set "
                "`tokenizer.chat_template`, or give prompts as texts."
            )
        render = {"tokenize": True, "return_dict": False, **template_kwargs}
        prompt_ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **render)
        whole = tokenizer.apply_chat_template([*prompt, *response], **render)
        if whole[: len(prompt_ids)] != prompt_ids:
            raise ValueError(
                "The chat template writes the prompt in another way when a response follows, so the response has no "
                "start. Use a template whose text for the prompt is a prefix of the text for the conversation."
            )
        response_ids = whole[len(prompt_ids) :]
    if not response_ids:
        raise ValueError(
            f"The response {str(response)[:80]!r} to {str(prompt)[-80:]!r} has no token. Leave the row out, or give "
            "the tokenizer an end-of-sequence token, which then is the response."
        )
    return prompt_ids + response_ids, len(prompt_ids)


def split_transcripts(dataset: Dataset) -> Dataset:
    r"""Brings preference pairs into the columns `prompt`, `chosen` and `rejected`.

    Pairs without a prompt are split at what the two texts share: transcripts in the form of Anthropic's HH
    (`\n\nHuman: ...\n\nAssistant: ...`) after the last `\n\nAssistant:` that both have, others as TRL does.

    Args:
        dataset: Pairs in a preference format of TRL, texts or conversations.

    Raises:
        ValueError: A column is missing, or the two sides of a pair share no prompt.

    Example:
        >>> pair = {"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: go"}
        >>> split_transcripts(Dataset.from_list([pair]))[0]["prompt"]
        '\n\nHuman: hi\n\nAssistant:'
    """
    missing = {"chosen", "rejected"} - set(dataset.column_names)
    if missing:
        raise ValueError(
            f"Preference pairs need the columns 'chosen' and 'rejected' (and 'prompt', where these do not contain it); "
            f"{sorted(missing)} missing, found {dataset.column_names}. Rename the columns that hold them."
        )
    if "prompt" not in dataset.column_names:
        first = dataset[0]["chosen"]
        transcripts = isinstance(first, str) and _HUMAN in first and _ASSISTANT in first
        dataset = dataset.map(_split_transcript if transcripts else extract_prompt, with_indices=transcripts)
    return dataset


def tokenize_pairs(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, num_proc: int | None = None, **template_kwargs: Any
) -> Dataset:
    """Tokenizes pairs into the columns that `BradleyTerryTrainer` reads.

    Args:
        dataset: Columns `prompt`, `chosen` and `rejected`.
        tokenizer: The reward model's tokenizer.
        num_proc: Processes.
        **template_kwargs: Handed to `apply_chat_template`.

    Returns:
        A dataset with `chosen_ids`, `rejected_ids` and `prompt_length`.
    """

    def encode(pair: dict[str, Any]) -> dict[str, Any]:
        chosen, start = encode_response(tokenizer, pair["prompt"], pair["chosen"], **template_kwargs)
        rejected, _ = encode_response(tokenizer, pair["prompt"], pair["rejected"], **template_kwargs)
        return {"chosen_ids": chosen, "rejected_ids": rejected, "prompt_length": start}

    return dataset.map(encode, remove_columns=dataset.column_names, num_proc=num_proc, desc="Tokenizing pairs")


def _split_transcript(pair: dict[str, str], row: int) -> dict[str, str]:
    chosen, rejected = pair["chosen"], pair["rejected"]
    end = -1
    for start in _positions(chosen, _ASSISTANT):
        if chosen[: start + len(_ASSISTANT)] == rejected[: start + len(_ASSISTANT)]:
            end = start + len(_ASSISTANT)
    if end < 0:
        raise ValueError(
            f"Row {row}: the two transcripts share no beginning up to {_ASSISTANT!r}, so they answer different "
            "prompts. Leave the row out, or give the prompt in a column of its own."
        )
    return {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}


def _positions(text: str, part: str) -> Sequence[int]:
    found, start = [], text.find(part)
    while start >= 0:
        found.append(start)
        start = text.find(part, start + 1)
    return found
