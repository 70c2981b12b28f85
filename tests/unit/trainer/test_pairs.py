# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Preference pairs: formats, token ids worked out by hand, pairs that are left out, and errors that name the row."""

import logging

import pytest
from datasets import Dataset, IterableDataset

from tests.trainer import tiny
from vgf_llm.trainer.choose.pairs import has_pairs, pair_labels, pair_rows, tokenized_pairs, with_prompts

EOS = tiny.EOS


def tokenized(rows, tokenizer=None, **settings):
    options = {"max_completion_length": 4, "max_prompt_length": 8, "chat_template_kwargs": {}, **settings}
    dataset = with_prompts(Dataset.from_list(rows) if isinstance(rows, list) else rows)
    return tokenized_pairs(dataset, tokenizer or tiny.tokenizer(), eos_token_ids=[EOS], **options)


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "w0 w1", "chosen": " w2", "rejected": " other w4"},
        {"chosen": "w0 w1 w2", "rejected": "w0 w1 other w4"},
    ],
    ids=["explicit", "implicit"],
)
def test_texts(row):
    pair = tokenized([row])[0]
    assert (pair["prompt_ids"], pair["chosen_ids"], pair["rejected_ids"]) == ([4, 5], [6, EOS], [3, 8, EOS])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": user("w0"), "chosen": assistant("w2"), "rejected": assistant("w3")},
        {"prompt": user("w0"), "chosen": "w2", "rejected": "w3"},
        {"chosen": user("w0") + assistant("w2"), "rejected": user("w0") + assistant("w3")},
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": "w0"}]}],
            "chosen": assistant("w2"),
            "rejected": assistant("w3"),
        },
    ],
    ids=["explicit", "texts for answers", "implicit", "parts"],
)
def test_conversations(row):
    pair = tokenized([row], tiny.tokenizer(chat=True))[0]  # the template writes roles, which are unknown words
    assert (pair["prompt_ids"], pair["chosen_ids"], pair["rejected_ids"]) == ([3, 4], [3, 6, EOS], [3, 7, EOS])


def test_an_end_token_of_the_response_is_kept_once():
    pair = tokenized([{"prompt": "w0", "chosen": "w2 </s>", "rejected": "w3"}])[0]
    assert pair["chosen_ids"] == [6, EOS]


def test_long_pairs_are_left_out_and_counted(caplog):
    rows = [{"prompt": "w0", "chosen": "w2", "rejected": "w3"}, {"prompt": "w0", "chosen": "w2 " * 9, "rejected": "w3"}]
    with caplog.at_level(logging.WARNING):
        assert len(tokenized(rows)) == 1
    assert "1 of the 2 pairs of `train_dataset` are left out" in caplog.text
    with pytest.raises(ValueError, match="All 1 pairs of `train_dataset` have a response longer"):
        tokenized(rows[1:])
    stream = IterableDataset.from_generator(lambda: iter(rows))
    assert len(list(tokenized(stream))) == 1


def test_pairs_that_are_tokenized_stay_as_they_are():
    pairs = tokenized([{"prompt": "w0", "chosen": "w2", "rejected": "w3"}])
    assert tokenized(pairs)[0] == pairs[0]


BAD_PAIRS = [
    ({"prompt": "w0", "chosen": "w1", "rejected": ""}, ValueError, "Row 1 .*empty response, `rejected`"),
    ({"prompt": "w0", "chosen": None, "rejected": "w1"}, ValueError, "Row 1 .*empty response, `chosen`"),
    (
        {"prompt": None, "chosen": "w1", "rejected": "other"},
        ValueError,
        "Row 1 .*no prompt and its responses",
    ),
    ({"prompt": "w0", "chosen": 3, "rejected": 4}, TypeError, "Row 1 .*`chosen` must be a text or a list of messages"),
    (
        {"prompt": user("w0"), "chosen": assistant("w1"), "rejected": [{"role": None, "content": "w2"}]},
        TypeError,
        "Row 1 .*`rejected` must be a text or a list of messages",
    ),
    (
        {"prompt": user("w0"), "chosen": assistant([{"type": "image", "text": "w1"}]), "rejected": assistant("w2")},
        TypeError,
        r"Row 1 .*the `chosen` has content of the type\(s\) \['image'\]",
    ),
    (
        {"prompt": user("w0"), "chosen": assistant([{"type": "text", "text": ""}]), "rejected": assistant("w2")},
        ValueError,
        "Row 1 .*empty response, `chosen`",
    ),
]


@pytest.mark.parametrize(("row", "error", "message"), BAD_PAIRS, ids=lambda value: str(value)[:40])
def test_bad_pairs_name_the_row(row, error, message):
    good = {"prompt": "w0", "chosen": "w1", "rejected": "w2"}
    rows = IterableDataset.from_generator(lambda: iter([good, row]))
    with pytest.raises(error, match=message):
        list(with_prompts(rows))


def test_what_has_pairs():
    assert has_pairs(tiny.pairs(2)) and has_pairs(tiny.pairs(2).to_iterable_dataset())
    assert not has_pairs(tiny.prompts(2)) and not has_pairs(None) and not has_pairs({"train": tiny.pairs(2)})


def test_rows_of_a_pair_are_its_two_responses_in_turn():
    pairs = [
        {"prompt": name, "prompt_ids": [n], "chosen_ids": [n, 1], "rejected_ids": [n, 0]} for n, name in enumerate("ab")
    ]
    rows = pair_rows([pairs[0], pairs[0], pairs[1], pairs[1]], first_row=0)
    assert rows.completion_ids == [[0, 1], [0, 0], [1, 1], [1, 0]]
    assert (rows.prompts, rows.prompt_ids, rows.labels) == ([*"aabb"], [[0], [0], [1], [1]], [1, 0, 1, 0])
    assert pair_labels(3, first_row=1) == [0, 1, 0]
    assert pair_rows([pairs[1]], first_row=3).completion_ids == [[1, 0]]
