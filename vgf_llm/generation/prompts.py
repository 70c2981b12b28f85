# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What a prompt lost when it became tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
