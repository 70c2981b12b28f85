# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Checks of the inputs of a run: each gives a clear error before anything expensive."""

import logging
import os

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, MambaConfig, PreTrainedTokenizerFast

from vgf_llm.trainer.choose import prompts as prompts_module
from vgf_llm.trainer.choose.prompts import (
    check_dataset,
    check_dataset_prompts,
    check_output_dir,
    check_prompt_lengths,
    check_prompts,
    check_tokenizer,
    check_vocabulary,
    context_length,
    max_prompt_length,
    tokenize_prompts,
    usable_holdout_ratio,
)

WORDS = ["<pad>", "<eos>", "<unk>", "user", "go", "a", "b", "c"]
MESSAGES = [{"role": "user", "content": "a b"}]


def make_tokenizer(**arguments):
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, **{"eos_token": "<eos>", "pad_token": "<pad>", **arguments})


def make_chat_tokenizer():
    template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    return make_tokenizer(chat_template=template + "{% if add_generation_prompt %}go{% endif %}")


def make_model(vocab_size=8):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, max_position_embeddings=16, **sizes))


def stream(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


@pytest.mark.parametrize(
    "dataset",
    [
        Dataset.from_dict({"prompt": ["a"], "answer": [1]}),
        Dataset.from_dict({"prompt": [MESSAGES]}),
        Dataset.from_dict({"prompt": [[{"role": "user", "content": [{"type": "text", "text": "a"}]}]]}),
        Dataset.from_dict({"prompt": [[*MESSAGES, {"role": "assistant", "content": None, "tool_calls": ["f"]}]]}),
        Dataset.from_dict({"prompt": ["a", "b", "c"]}).select([2, 0]).with_format("numpy"),
        stream([{"prompt": "a"}]),
        DatasetDict(test=Dataset.from_dict({"prompt": ["a"]})),
        {"one": Dataset.from_dict({"prompt": ["a"]}), "two": stream([{"prompt": "b"}])},
    ],
    ids=["text", "messages", "parts", "tool calls", "one of three", "stream", "dataset dict", "dict"],
)
def test_good_datasets(dataset):
    check_dataset(dataset, "eval_dataset")
    parts = dataset.values() if isinstance(dataset, dict) else [dataset]
    assert all("prompt" in next(iter(part)) for part in parts)  # a stream still has its first row


BAD_DATASETS = [
    # dataset, error, what the message says
    (None, ValueError, "`train_dataset` is required"),
    (["a"], TypeError, "`train_dataset` must be a `Dataset` or `IterableDataset`, got `list`"),
    (Dataset.from_dict({"prompt": []}), ValueError, "`train_dataset` is empty"),
    (Dataset.from_dict({}), ValueError, "`train_dataset` is empty"),
    (stream([]), ValueError, "`train_dataset` is empty"),
    (
        Dataset.from_dict({"question": ["a"], "answer": ["b"]}),
        ValueError,
        r"no column `prompt`; its columns are \['answer', 'question'\]",
    ),
    (stream([{"text": "a"}]), ValueError, r"no column `prompt`; its columns are \['text'\]"),
    (Dataset.from_dict({"answer": ["a"], "question": ["b"]}), ValueError, r"rename_column\('question', 'prompt'\)"),
    (Dataset.from_dict({"a": ["a"], "Prompt_text": ["b"]}), ValueError, r"rename_column\('Prompt_text', 'prompt'\)"),
    (Dataset.from_dict({"answer": ["a"]}), ValueError, r"columns are \['answer'\]. Add one of that name"),
    (
        DatasetDict(train=Dataset.from_dict({"prompt": ["a"]}), test=Dataset.from_dict({"prompt": ["a"]})),
        TypeError,
        r"`train_dataset` is a DatasetDict with the parts \['train', 'test'\].*`dataset\['train'\]`",
    ),
    (Dataset.from_dict({"prompt": [3]}), TypeError, "must be a text or a list of messages.*got 3 .int."),
    (Dataset.from_dict({"prompt": [None, "a"]}), TypeError, "Row 0 of `train_dataset`: .*got None"),
    (Dataset.from_dict({"prompt": ["a"] * 1500 + [None]}), TypeError, "Row 1500 of `train_dataset`: .*got None"),
    (Dataset.from_dict({"prompt": [["a", "b"]]}), TypeError, r"got \['a', 'b'\] .list."),
    (Dataset.from_dict({"prompt": [MESSAGES, []]}), TypeError, r"Row 1 of .*got \[\] .list."),
    (Dataset.from_dict({"prompt": [[MESSAGES]]}), TypeError, r"Row 0 of .*a list of messages"),
    (Dataset.from_dict({"prompt": [MESSAGES[0]]}), TypeError, r"Row 0 of .*a list of messages.*dict"),
    (Dataset.from_dict({"prompt": [[{"from": "human", "value": "a"}]]}), TypeError, "'role' and 'content'"),
    (Dataset.from_dict({"prompt": [[{"role": "user", "content": None}]]}), TypeError, "the role 'user' has no content"),
    (
        Dataset.from_dict({"prompt": [[{"role": "user", "content": [{"type": "image", "text": None}]}]]}),
        TypeError,
        r"Row 0 of .*content of the type\(s\) \['image'\], and text models are trained",
    ),
    ({}, ValueError, "`train_dataset` is an empty dict"),
]


@pytest.mark.parametrize(("dataset", "error", "message"), BAD_DATASETS, ids=lambda value: str(value)[:50])
def test_bad_datasets(dataset, error, message):
    with pytest.raises(error, match=message):
        check_dataset(dataset)


def test_prompts_are_of_one_kind():
    with pytest.raises(TypeError, match="Row 2 of the batch: all prompts must be texts, or all lists of messages"):
        check_prompts(["a", "b", MESSAGES], "the batch")
    with pytest.raises(TypeError, match="Row 1 of the batch"):
        tokenize_prompts([MESSAGES, "a"], make_chat_tokenizer())


def test_the_argument_is_named():
    with pytest.raises(ValueError, match="`eval_dataset` is empty"):
        check_dataset(Dataset.from_dict({"prompt": []}), "eval_dataset")
    with pytest.raises(ValueError, match=r"`eval_dataset\['easy'\]` has no column `prompt`"):
        check_dataset({"easy": Dataset.from_dict({"q": ["a"]})}, "eval_dataset")


def test_a_tokenizer_needs_an_end():
    check_tokenizer(make_tokenizer())
    with pytest.raises(ValueError, match=r"has no `eos_token`.*tokenizer.eos_token ="):
        check_tokenizer(make_tokenizer(eos_token=None))


@pytest.mark.parametrize("rows", [8, 64], ids=["the same", "padded to a round number"])
def test_vocabularies_that_fit_are_taken_silently(rows, caplog):
    with caplog.at_level(logging.WARNING):
        check_vocabulary(make_tokenizer(), make_model(rows))
    assert caplog.records == []


def test_a_larger_vocabulary_is_refused():
    message = r"2 token\(s\) with ids from 6 on, e.g. 'c' with 7, but `model` has 6 emb.*resize_token_embeddings\(8\)"
    with pytest.raises(ValueError, match=message):
        check_vocabulary(make_tokenizer(), make_model(6))


def test_unused_special_tokens_are_warned_about(caplog):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<image>", special=True)])
    with caplog.at_level(logging.WARNING):
        check_vocabulary(tokenizer, make_model(8))
    assert "'<image>' with 8" in caplog.text
    tokenizer.eos_token = "<image>"
    with pytest.raises(ValueError, match="'<image>' with 8"):
        check_vocabulary(tokenizer, make_model(8))


def test_partitioned_embeddings_are_measured_by_their_full_shape():
    model = make_model(6)
    weight = model.get_input_embeddings().weight
    weight.ds_shape = (7, 8)
    with pytest.raises(ValueError, match="but `model` has 7 emb"):
        check_vocabulary(make_tokenizer(), model)
    weight.ds_shape = (8, 8)
    check_vocabulary(make_tokenizer(), model)


def test_context_lengths():
    assert context_length(LlamaConfig(max_position_embeddings=32)) == 32
    assert context_length(GPT2Config(n_positions=24)) == 24
    assert context_length(MambaConfig()) is None
    assert max_prompt_length(LlamaConfig(max_position_embeddings=32), 12) == 20
    assert max_prompt_length(LlamaConfig(max_position_embeddings=32), None) == 31
    assert max_prompt_length(MambaConfig(), 12) is None


@pytest.mark.parametrize("max_completion_length", [32, 100])
def test_completions_that_fill_the_context(max_completion_length):
    with pytest.raises(
        ValueError, match=r"leaves no room for a prompt in the model's context of 32 tokens. Set it bel"
    ):
        max_prompt_length(LlamaConfig(max_position_embeddings=32), max_completion_length)


def test_prompts_are_tokenized_as_trl_does():
    assert tokenize_prompts([], make_tokenizer()) == []
    assert tokenize_prompts(["a b", "c"], make_tokenizer()) == [[5, 6], [7]]
    assert tokenize_prompts([MESSAGES], make_chat_tokenizer()) == [[3, 5, 6, 4]]
    assert tokenize_prompts([MESSAGES], make_tokenizer(), {"chat_template": "a {{ x }}", "x": "c"}) == [[5, 7]]


def test_a_last_message_of_the_assistant_is_continued():
    started = [*MESSAGES, {"role": "assistant", "content": "c"}]
    assert tokenize_prompts([started, MESSAGES, started], make_chat_tokenizer()) == [
        [3, 5, 6, 2, 7],
        [3, 5, 6, 4],
        [3, 5, 6, 2, 7],
    ]


def test_parts_of_a_message_are_joined():
    parts = [{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}]
    assert tokenize_prompts([parts], make_chat_tokenizer()) == [[3, 5, 6, 4]]


def test_end_tokens_that_the_tokenizer_adds_are_left_out(caplog):
    prompts_module._warn_once.cache_clear()
    tokenizer = make_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    for _ in range(2):
        assert tokenize_prompts(["a b", "c"], tokenizer) == [[5, 6], [7]]
    assert [record.message for record in caplog.records] == [
        "The tokenizer puts the end-of-sequence token (eos) behind texts. Prompts are used without it."
    ]
    assert tokenize_prompts(["a <eos>"], make_tokenizer()) == [[5, 1]]  # the text's own
    assert "Prompts end in the end-of-sequence token (eos)" in caplog.text


def test_a_token_that_begins_and_ends_texts_is_kept_where_it_begins_one():
    tokenizer = make_tokenizer(bos_token="<eos>")
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 1)])
    assert tokenize_prompts(["", "a"], tokenizer) == [[1], [1, 5]]


def test_a_small_dataset_is_not_held_out_as_a_whole(caplog):
    tokenizer, dataset = make_tokenizer(), Dataset.from_dict({"prompt": ["a", "b"]})
    assert usable_holdout_ratio(dataset, tokenizer, 0.05, lambda ids: ids == [5]) == 0.05
    assert usable_holdout_ratio(stream([{"prompt": "a"}]), tokenizer, 0.05, lambda ids: True) == 0.05
    assert caplog.records == []
    assert usable_holdout_ratio(dataset, tokenizer, 0.05, lambda ids: True) == 0.0
    assert "All 2 prompts of `train_dataset` would be held out by `value_holdout_ratio` (0.05)" in caplog.text
    pairs = Dataset.from_dict({"prompt": ["a"], "prompt_ids": [[3]]})
    assert usable_holdout_ratio(pairs, tokenizer, 0.05, lambda ids: ids == [3]) == 0.0


def test_messages_need_a_chat_template():
    with pytest.raises(ValueError, match="has no chat template"):
        tokenize_prompts([MESSAGES], make_tokenizer())


def test_prompt_lengths():
    config = make_model().config
    check_prompt_lengths([[1] * 12], config, 4, prompts=["a"])
    with pytest.raises(ValueError, match=r"has 13 tokens, .* of 16 leaves room for 12 .*\(4\).* Row 1: 'b'"):
        check_prompt_lengths([[1], [1] * 13], config, 4, prompts=["a", "b"])
    with pytest.raises(ValueError, match=r"has no tokens.*Row 0: ''"):
        check_prompt_lengths([[]], config, 4, prompts=[""])
    check_prompt_lengths([[1] * 10_000], MambaConfig(), 4, prompts=["a"])


def test_prompts_of_a_dataset():
    config = make_model().config
    short, long = Dataset.from_dict({"prompt": ["a b"]}), Dataset.from_dict({"prompt": ["a", "b " * 13]})
    check_dataset_prompts(short, make_tokenizer(), config, 4)
    check_dataset_prompts(stream([{"prompt": "b " * 13}]), make_tokenizer(), config, 4)
    with pytest.raises(ValueError, match=r"`train_dataset`: A prompt has 13 tokens.*Row 1: 'b"):
        check_dataset_prompts(long, make_tokenizer(), config, 4)
    with pytest.raises(ValueError, match=r"`eval_dataset\['long'\]`: A prompt has 13 tokens"):
        check_dataset_prompts({"short": short, "long": long}, make_tokenizer(), config, 4, name="eval_dataset")
    with pytest.raises(ValueError, match=r"`max_completion_length` .16. leaves no room"):
        check_dataset_prompts(stream([]), make_tokenizer(), config, 16)


@pytest.mark.parametrize("prompt", ["c " * 13, ""], ids=["long", "empty"])
def test_a_prompt_that_does_not_fit_is_found_in_every_row(monkeypatch, prompt):
    monkeypatch.setattr(prompts_module, "NUM_CHECKED_PROMPTS", 2)
    tokenized = []
    monkeypatch.setattr(
        prompts_module, "tokenize_prompts", lambda *args: tokenized.extend(args[0]) or tokenize_prompts(*args)
    )
    dataset = Dataset.from_dict({"prompt": [*"abcabc", prompt]})
    with pytest.raises(ValueError, match=r"`train_dataset`: A prompt has .*Row 6: "):
        check_dataset_prompts(dataset, make_tokenizer(), make_model().config, 4)
    assert tokenized == ["a", "b", prompt]


def test_long_prompts_are_shortened_in_errors():
    with pytest.raises(ValueError) as caught:
        check_prompt_lengths([[1] * 50], make_model().config, 4, prompts=["a" * 50_000])
    assert len(str(caught.value)) < 600


def test_output_folders(tmp_path):
    check_output_dir(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path / "new" / "folder") == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=f"`output_dir` '{path}' cannot be written to"):
            check_output_dir(path)


def test_a_folder_without_permission(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", dir)

    # Permission bits do not bind the superuser, as whom the tests may run.
    monkeypatch.setattr(prompts_module.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError, match=rf"'{tmp_path}' cannot be written to .*Permission denied") as caught:
        check_output_dir(tmp_path)
    assert isinstance(caught.value.__cause__, PermissionError)
