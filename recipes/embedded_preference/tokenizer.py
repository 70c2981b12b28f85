# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The tokenizer of the review language: a word is one token, together with the space before it."""

from transformers import PreTrainedTokenizerFast

from recipes.embedded_preference.language import NAMES, vocabulary
from recipes.small_base import build_word_tokenizer

# A prompt opens with a name, the only words without a space before them; a review opens with a space.
_PIECES = r" ?[a-z]+| ?[.,:]"
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def build_tokenizer(max_length: int = 64) -> PreTrainedTokenizerFast:
    """Builds the tokenizer, which puts `<s>` in front of a text.

    Args:
        max_length: The context length of the model it is for, in tokens.

    Returns:
        A tokenizer with left padding and a chat template.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> tokenizer.decode(tokenizer("ann reviews the cafe").input_ids, skip_special_tokens=True)
        'ann reviews the cafe'
    """
    words = [*NAMES, *(f" {word}" for word in vocabulary() if word not in NAMES)]
    return build_word_tokenizer(words, _PIECES, _CHAT_TEMPLATE, max_length)
