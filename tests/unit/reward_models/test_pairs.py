# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Splitting and tokenizing preference pairs, and the real transcripts of HH."""

from pathlib import Path

import pytest
from datasets import Dataset

from recipes.sources import load_rows
from reward_models.pairs import encode_response, split_transcripts, tokenize_pairs
from tests.trainer.tiny import CHAT_TEMPLATE, tokenizer

OPENING = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:"


def test_prompt_and_response_are_cut_where_the_response_begins() -> None:
    tok = tokenizer()
    ids, start = encode_response(tok, "w1 w2", " w3")
    assert (ids[:start], ids[start:]) == (tok("w1 w2").input_ids, [tok.convert_tokens_to_ids("w3"), tok.eos_token_id])
    assert encode_response(tok, "w1", "")[0][-1] == tok.eos_token_id, "an empty response is its end"
    assert encode_response(tok, "w1", " w3 </s>")[0].count(tok.eos_token_id) == 1


def test_conversations_go_through_the_chat_template() -> None:
    tok = tokenizer(chat=True)
    user, assistant = {"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3"}
    ids, start = encode_response(tok, [user], [assistant])
    assert ids == encode_response(tok, [user], "w2 w3")[0]
    assert len(ids) - start == 3
    tok.chat_template = "w9 {% if messages | length > 1 %}w8 {% endif %}" + CHAT_TEMPLATE
    with pytest.raises(ValueError, match="writes the prompt in another way when a response follows"):
        encode_response(tok, [user], [assistant])
    with pytest.raises(ValueError, match="no chat template"):
        encode_response(tokenizer(), [user], [assistant])
    with pytest.raises(ValueError, match="both as texts or both as lists"):
        encode_response(tok, "w1", [assistant])


def test_a_response_without_tokens_is_refused() -> None:
    tok = tokenizer()
    tok.eos_token = None
    with pytest.raises(ValueError, match=r"has no token.*end-of-sequence token"):
        encode_response(tok, "w1", "")


def test_transcripts_are_split_at_the_last_shared_turn() -> None:
    rows = [
        {"chosen": OPENING + " four", "rejected": OPENING + " five"},
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b",
            "rejected": "\n\nHuman: a\n\nAssistant: c\n\nHuman: d\n\nAssistant: e",
        },
    ]
    split = split_transcripts(Dataset.from_list(rows))
    assert split[0] == {"prompt": OPENING, "chosen": " four", "rejected": " five"}
    assert split[1]["prompt"] == "\n\nHuman: a\n\nAssistant:"
    assert split[1]["rejected"] == " c\n\nHuman: d\n\nAssistant: e"


def test_other_formats_are_split_as_trl_does_and_prompts_are_kept() -> None:
    chat = [{"role": "user", "content": "q"}]
    pair = {
        "chosen": [*chat, {"role": "assistant", "content": "a"}],
        "rejected": [*chat, {"role": "assistant", "content": "b"}],
    }
    split = split_transcripts(Dataset.from_list([pair]))[0]
    assert (split["prompt"], split["chosen"]) == (chat, [{"role": "assistant", "content": "a"}])
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert split_transcripts(Dataset.from_list([row]))[0] == row


def test_pairs_that_cannot_be_split() -> None:
    rows = [{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"}]
    with pytest.raises(ValueError, match="Row 0: the two transcripts share no beginning"):
        split_transcripts(Dataset.from_list(rows))
    with pytest.raises(ValueError, match=r"\['rejected'\] missing, found \['chosen', 'other'\]"):
        split_transcripts(Dataset.from_dict({"chosen": ["a"], "other": ["b"]}))


def test_tokenized_columns() -> None:
    pairs = Dataset.from_list([{"prompt": "w1 w2", "chosen": "w3", "rejected": "w4 w5", "other": 1}])
    tokenized = tokenize_pairs(pairs, tokenizer())
    assert set(tokenized.column_names) == {"chosen_ids", "rejected_ids", "prompt_length"}
    row = tokenized[0]
    assert row["chosen_ids"][: row["prompt_length"]] == row["rejected_ids"][: row["prompt_length"]]
    assert (len(row["chosen_ids"]), len(row["rejected_ids"])) == (row["prompt_length"] + 2, row["prompt_length"] + 3)


@pytest.mark.data
def test_all_real_pairs_of_hh_are_split(data_dir: Path) -> None:
    pairs = load_rows(str(data_dir / "hh_harmless"), "test")
    split = split_transcripts(pairs)
    assert len(split) == 2312
    for whole, parts in zip(pairs, split, strict=True):
        assert parts["prompt"].endswith("\n\nAssistant:")
        assert whole["chosen"] == parts["prompt"] + parts["chosen"]
        assert whole["rejected"] == parts["prompt"] + parts["rejected"]
        assert parts["chosen"] != parts["rejected"]
