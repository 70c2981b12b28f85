# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The word-level tokenizer of the embedded task: a number from 0 to 60 is one token, a word of the templates too.

Text is cut so that the pieces joined without separators are the text again (a word keeps the space before it), so
decoded text has the exact `<<12*2=24>>24` and `#### 24` of the problems.
"""

import re

from transformers import PreTrainedTokenizerFast

from recipes.embedded_math.problems import MAX_NUMBER, make_corpus
from recipes.small_base import build_word_tokenizer

_PIECES = r" ?[A-Za-z]+| ?<<|>>|#### |\.\n|\d+|[^\dA-Za-z]"
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}"
)
_NUM_TEXTS = 1000  # every word of the templates occurs dozens of times in so many


def build_tokenizer(max_length: int = 256) -> PreTrainedTokenizerFast:
    """Builds the tokenizer, which puts `<s>` in front of a text and, in its chat template, a newline after a question.

    Args:
        max_length: The context length of the model it is for, in tokens.

    Returns:
        A tokenizer with left padding and a chat template.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> tokenizer.decode(tokenizer("Ann has <<4*3=12>>12 pens.").input_ids, skip_special_tokens=True)
        'Ann has <<4*3=12>>12 pens.'
    """
    texts = (f"{row['question']}\n{row['answer']}" for row in make_corpus(_NUM_TEXTS))
    numbers = {str(number) for number in range(MAX_NUMBER + 1)}
    pieces = {piece for text in texts for piece in re.findall(_PIECES, text)} | numbers
    words = sorted(pieces - numbers)
    return build_word_tokenizer([*sorted(numbers, key=int), *words], _PIECES, _CHAT_TEMPLATE, max_length)
