# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A prompt as tokens, and what it lost when it became them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    *,
    raw: bool = False,
    system_prompt: str | None = None,
    switches: Mapping[str, Any] | None = None,
) -> Any:
    """Tokenizes one prompt, as the user's message of a chat if the tokenizer has a template.

    Args:
        tokenizer: The tokenizer.
        prompt: The prompt.
        raw: Whether to leave the chat template out.
        system_prompt: First message of the chat.
        switches: Further arguments of the chat template.

    Returns:
        `input_ids` and `attention_mask`, `[1, P]`.

    Raises:
        ValueError: For an empty prompt, for what only a chat template reads without one, and for messages that the
            template refuses.
    """
    if not prompt:
        raise ValueError("`prompt` is empty; there is nothing to answer.")
    if raw or tokenizer.chat_template is None:
        for name, given in (("system_prompt", system_prompt), ("chat_template_kwargs", switches)):
            if given is not None:
                raise ValueError(f"`--{name}` needs a tokenizer with a chat template, and no `--raw`.")
        return tokenizer(prompt, return_tensors="pt")
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    return encode_messages(tokenizer, [*system, {"role": "user", "content": prompt}], switches)


def encode_messages(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, str]],
    switches: Mapping[str, Any] | None = None,
) -> Any:
    """Tokenizes messages by the tokenizer's chat template; ValueError for messages that it refuses."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            list(messages),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **(switches or {}),
        )
    except TemplateError as error:
        raise ValueError(f"The tokenizer's chat template refuses these messages: {error}") from error


def unknown_tokens_note(tokenizer: "PreTrainedTokenizerBase", prompt_ids: Sequence[int]) -> str:
    """Returns one line about a prompt with unknown tokens, and an empty text about any other.

    A tokenizer whose unknown token also begins or ends texts, as GPT-2's does, reads everything.
    """
    unknown = tokenizer.unk_token_id
    count = list(prompt_ids).count(unknown)
    if count == 0 or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        return ""
    return (
        f"{count} of the prompt's {len(prompt_ids)} tokens are unknown to the tokenizer ({tokenizer.unk_token}); "
        "the model cannot tell what stands there."
    )
