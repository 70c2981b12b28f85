# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Logged completions: formats, token ids worked out by hand, pairs that are left out, errors that name the row."""

import logging

import pytest
from datasets import Dataset, IterableDataset

from tests.trainer import tiny
from vgf_llm.trainer.choose.logged import grouped, logged_kind
from vgf_llm.trainer.choose.logged import tokenized as tokenized_groups
from vgf_llm.trainer.sample.logged import LoggedSampler
from vgf_llm.trainer.sample.sampler import Request

EOS = tiny.EOS


def tokenized(rows, tokenizer=None, **settings):
    options = {"max_completion_length": 4, "max_prompt_length": 8, "chat_template_kwargs": {}, **settings}
    dataset = grouped(Dataset.from_list(rows) if isinstance(rows, list) else rows, 2)
    return tokenized_groups(dataset, tokenizer or tiny.tokenizer(), eos_token_ids=[EOS], **options)


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
    assert (pair["prompt_ids"], pair["completion_ids"]) == ([4, 5], [[6, EOS], [3, 8, EOS]])
    assert pair["rewards"] == [1, 0]


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
    assert (pair["prompt_ids"], pair["completion_ids"]) == ([3, 4], [[3, 6, EOS], [3, 7, EOS]])


def test_an_end_token_of_the_response_is_kept_once():
    pair = tokenized([{"prompt": "w0", "chosen": "w2 </s>", "rejected": "w3"}])[0]
    assert pair["completion_ids"][0] == [6, EOS]


def test_long_pairs_are_left_out_and_counted(caplog):
    rows = [{"prompt": "w0", "chosen": "w2", "rejected": "w3"}, {"prompt": "w0", "chosen": "w2 " * 9, "rejected": "w3"}]
    with caplog.at_level(logging.WARNING):
        assert len(tokenized(rows)) == 1
    assert "2 of the 4 completions of `train_dataset` are left out" in caplog.text
    with pytest.raises(
        ValueError, match="All 2 completions of `train_dataset` are longer than `max_completion_length`"
    ):
        tokenized(rows[1:])
    stream = IterableDataset.from_generator(lambda: iter(rows))
    assert len(list(tokenized(stream))) == 1


def test_a_dataset_may_begin_with_what_is_left_out():
    rows = [{"prompt": f"w{i}", "completion": "w2 " * 9, "reward": 1.0} for i in range(1001)]  # more than one write
    kept = tokenized([*rows, {"prompt": "w0", "completion": "w2", "reward": 0.5}])
    assert kept["completion_ids"] == [[[6, EOS]]] and kept["rewards"] == [[0.5]]


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
        list(grouped(rows, 2))


def test_what_a_dataset_has_logged():
    for dataset, kind in ((tiny.pairs(2), "pairs"), (tiny.logged(2), "completions"), (tiny.prompts(2), None)):
        assert logged_kind(dataset) == logged_kind(dataset.to_iterable_dataset()) == kind
    assert logged_kind(None) is None and logged_kind({"train": tiny.pairs(2)}) is None


def test_groups_are_handed_out_by_their_place_among_all_rows():
    full = {"completion_ids": [[1], [2]], "rewards": [1.0, 0.0]}
    short = {"completion_ids": [[3]], "rewards": [0.5]}

    def rows_of(groups, first_row, size=2):
        count = len(groups)
        return LoggedSampler()(
            Request(["a"] * count, [[9]] * count, ["base"] * count, size, first_row, "train", 0, 0, groups)
        )

    samples = rows_of([full, full, short, short], first_row=0)
    assert samples.completion_ids == [[1], [2], [3], [3]] and samples.present == [True, True, True, False]
    assert samples.extra == {"logged_reward": [1.0, 0.0, 0.5, 0.5]} and all(samples.finished)
    # The second process begins within a group.
    samples = rows_of([full, short, short], first_row=3)
    assert samples.completion_ids == [[2], [3], [3]] and samples.present == [True, True, False]
    assert rows_of([full], first_row=2, size=3).present == [False]
