# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Whatever comes from outside is taken or refused by name: rewards, settings, prompts, pairs, saved folders."""

import asyncio
import dataclasses
import json
import math
import shutil
import warnings
from collections.abc import Sequence
from typing import get_type_hints

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments
from trl import GRPOConfig

from tests.trainer import tiny
from vgf_llm import VGFConfig, VGFModel
from vgf_llm.models import SequenceValue, TransportConfig, build_value
from vgf_llm.models.tensor_files import file_digest
from vgf_llm.trainer.choose.logged import grouped, tokenized
from vgf_llm.trainer.choose.prompts import check_dataset, check_prompts, tokenize_prompts
from vgf_llm.trainer.score.rewards import RewardRunner

NAN, INF = math.nan, math.inf
ODD = [
    None, "x", "", -1, 0, 1, 2, 7, 10**9, 2**63, 10**400, 10**5000, 1e308, -0.5, 0.5, 1.5, NAN, INF, -INF, True, False,
    [], [1], {}, {"a": 1}, (), b"1", 1j, object(), "NaN", "1e3", "True", "auto", "/dev/null", "\0", np.float32(0.5),
    np.array([1, 2]), torch.tensor(1), torch.ones(2), range(3), {1}, "é" * 200, int, Ellipsis,
]  # fmt: skip


# By their places: 10**5000 has no text.
odd = st.integers(0, len(ODD) - 1).map(lambda place: ODD[place])


def fuzz(examples):
    """The same examples in every run."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=checks)


# Rewards

BATCH = {
    "inputs": [{"prompt": f"p{row}"} for row in range(3)],
    "prompts": ["p0", "p1", "p2"],
    "completions": ["c0", "c1", "c2"],
    "completion_ids_list": [[1], [2, 3], [4]],
}


class Failing:
    """An object of which one method raises."""

    def __init__(self, method, error):
        self.method, self.error = method, error

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "method"):
            raise object.__getattribute__(self, "error")
        return object.__getattribute__(self, name)


class FailingSequence(Sequence):
    """A sequence whose length is not what it says, or which raises."""

    def __init__(self, error, length=3):
        self.error, self.length = error, length

    def __len__(self):
        if self.length is None:
            raise self.error
        return self.length

    def __getitem__(self, index):
        if index == 1:
            raise self.error
        if index >= 3:
            raise IndexError(index)
        return 0.5


errors = st.sampled_from([ValueError, RuntimeError, IndexError, KeyError, asyncio.CancelledError]).map(
    lambda of: of("x")
)
arrays = st.builds(
    lambda values, dtype, shape: np.resize(np.array(values), shape).astype(dtype),
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.sampled_from(["f2", "f4", "f8", "i1", "u8", "?", "O", "U2", "S2", "M8[s]", "m8[s]", "c8"]),
    st.sampled_from([(), (0,), (3,), (4,), (3, 1), (1, 3)]),
)
tensors = st.builds(
    lambda shape, dtype, device: torch.ones(shape, dtype=dtype, device=device),
    st.sampled_from([(), (0,), (3,), (2,), (3, 1)]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64]),
    st.sampled_from(["cpu", "cpu", "meta"]),
)
objects = (
    st.builds(Failing, st.sampled_from(["dtype", "tolist", "item", "shape"]), errors)
    | st.builds(FailingSequence, errors, st.sampled_from([3, 2, None]))
    | odd
)
numbers = st.none() | st.booleans() | st.integers() | st.floats() | st.floats(-1, 1).map(np.float16)
outputs = st.recursive(
    numbers | st.text(max_size=3) | st.binary(max_size=3) | arrays | tensors | objects,
    lambda parts: (
        st.lists(parts, max_size=4) | st.lists(parts, min_size=3, max_size=3) | st.dictionaries(st.text(), parts)
    ),
    max_leaves=6,
)


def of_three(parts):
    return st.lists(parts, min_size=3, max_size=3)


@given(
    st.one_of(outputs, objects, objects, of_three(objects | numbers), of_three(numbers)),
    st.sampled_from(["returned", "raised", "awaited"]),
    errors,
)
@fuzz(400)
def test_a_reward_is_a_number_or_is_refused_by_name(output, how, error):
    def reward(**kwargs):
        if how == "raised":
            raise error
        return output

    async def later(**kwargs):
        return reward()

    runner = RewardRunner(
        [lambda completions, **kwargs: [0.25] * len(completions), later if how == "awaited" else reward]
    )
    try:
        rewards = runner(**BATCH)
    except (TypeError, ValueError, RuntimeError) as refused:
        assert f"'{runner.reward_func_names[1]}' {'raised' if how == 'raised' else 'returned'}" in str(refused)
        assert len(str(refused)) < 2000
    else:
        assert how != "raised" and rewards.shape == (3, 2) and rewards.dtype == torch.float32
        assert rewards[:, 0].tolist() == [0.25] * 3
        assert not rewards.isinf().any()
        entries = output.tolist() if isinstance(output, np.ndarray | torch.Tensor) else list(output)
        for found, entry in zip(rewards[:, 1].tolist(), entries, strict=True):
            assert math.isnan(found) == (entry is None)
    finally:
        runner.close()


# Settings


def shown(settings):
    return {name: f"{value!r:.50}" if not isinstance(value, int) else "int" for name, value in settings.items()}


def _tried_settings():
    """Fields that have a check: of transformers' own, those that are numbers or switches."""
    loose = {  # paths and integrations are checked by those who use them
        name
        for name, hint in get_type_hints(TrainingArguments).items()
        if not set(getattr(hint, "__args__", (hint,))) <= {bool, int, float, type(None)}
    }
    strict = {"lr_scheduler_type", "save_strategy", "eval_strategy", "logging_strategy"}
    return sorted({item.name for item in dataclasses.fields(VGFConfig)} - loose | strict)


CPU = {"output_dir": "out", "use_cpu": True, "bf16": False, "report_to": "none"}
OWN = {item.name for item in dataclasses.fields(VGFConfig)} - {item.name for item in dataclasses.fields(GRPOConfig)}


def check_settings(given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            args = VGFConfig(**{**CPU, **given})
        except (TypeError, ValueError) as error:
            assert any(name in str(error) for name in given), f"{error!s:.300} <- {shown(given)}"
            assert len(str(error)) < 2500
        else:
            json.dumps(args.to_dict())


def test_each_own_setting_is_taken_or_refused_by_name():
    for name in sorted(OWN):
        for value in ODD:
            check_settings({name: value})


@given(st.dictionaries(st.sampled_from(_tried_settings()), odd, min_size=1, max_size=3))
@fuzz(300)
def test_settings_are_taken_or_refused_by_name(given):
    check_settings(given)


TRANSPORT = sorted(item.name for item in dataclasses.fields(TransportConfig))


@given(st.dictionaries(st.sampled_from(TRANSPORT), odd, min_size=1, max_size=3))
@fuzz(300)
def test_transport_settings_are_taken_or_refused_by_name(given):
    try:
        transport = TransportConfig(**given)
    except (TypeError, ValueError) as error:
        assert any(f"`{name}" in str(error) for name in given), f"{error} <- {shown(given)}"
        assert len(str(error)) < 1000
    else:
        json.dumps(dataclasses.asdict(transport))
        assert VGFConfig(**CPU, transport=given, **_whole(transport)).transport == transport


def _whole(transport):
    whole = transport.space.startswith("sequence")
    return {"value_parametrization": "sequence", "value_backbone": "copy"} if whole else {}


# Prompts and pairs

MESSAGES = [{"role": "user", "content": "w1 w2"}]
texts = st.text(max_size=5)
content_parts = st.fixed_dictionaries({"type": st.sampled_from(["text", "image"]), "text": st.none() | texts})
odd_parts = st.fixed_dictionaries({"type": st.just("text"), "text": st.none() | texts | st.integers() | st.binary()})
messages = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.just(MESSAGES)
    | st.binary(max_size=2)
    | st.lists(odd_parts, min_size=1).map(lambda parts: [{"role": "user", "content": parts}]),
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "tool_calls"]), parts, max_size=3)
    ),
    max_leaves=8,
)
# Columns of one kind, as Arrow stores them.
columns = st.one_of(
    *(
        st.lists(st.none() | entry, min_size=1, max_size=4)
        for entry in (
            texts,
            st.integers(-5, 5),
            st.floats(),
            st.binary(max_size=2),
            st.lists(texts, max_size=2),
            st.lists(st.fixed_dictionaries({"role": st.none() | texts, "content": st.none() | texts}), max_size=2),
            st.lists(st.fixed_dictionaries({"role": texts, "content": st.lists(texts, max_size=2)}), max_size=2),
            st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.lists(content_parts)}), max_size=2),
            st.fixed_dictionaries({"role": texts, "content": texts}),
        )
    )
)


@given(st.lists(messages, min_size=1, max_size=4))
@fuzz(200)
def test_prompts_are_tokenized_or_refused_by_row(prompts):
    try:
        check_prompts(prompts, "`train_dataset`")
    except TypeError as error:
        assert str(error).startswith("Row ") and " of `train_dataset`: " in str(error)
        assert "`prompt`" in str(error) or "all prompts" in str(error)
    else:
        ids = tokenize_prompts(prompts, tiny.tokenizer(chat=True))
        assert all(isinstance(token, int) for row in ids for token in row)


@given(columns, st.sampled_from(["prompt", "prompt", "Prompt", "question"]), st.booleans(), st.booleans())
@fuzz(100)
def test_a_dataset_is_taken_or_refused_by_argument_row_and_column(column, name, streams, several):
    rows = [{name: entry, "index": row} for row, entry in enumerate(column)]
    dataset = IterableDataset.from_generator(lambda: iter(rows)) if streams else Dataset.from_list(rows)
    argument = "`eval_dataset['hard']`" if several else "`eval_dataset`"
    try:
        check_dataset({"hard": dataset} if several else dataset, "eval_dataset")
    except (TypeError, ValueError) as error:
        assert argument in str(error) and ("`prompt`" in str(error) or "all prompts" in str(error))
        assert name != "prompt" or str(error).startswith("Row ")
    else:
        read = dataset[:]["prompt"] if not streams else [column[0]]
        assert len({type(prompt) for prompt in read}) == 1 and name == "prompt"


@given(columns, columns, st.none() | columns)
@fuzz(100)
def test_pairs_are_read_or_refused_by_row_and_column(chosen, rejected, prompts):
    count = min(map(len, (chosen, rejected, prompts or chosen)))
    pairs = {"chosen": chosen[:count], "rejected": rejected[:count], **({"prompt": prompts[:count]} if prompts else {})}
    dataset = Dataset.from_dict(pairs)
    limits = {"eos_token_ids": [tiny.EOS], "max_completion_length": None, "max_prompt_length": None}
    try:
        found = grouped(dataset, 2)
    except (TypeError, ValueError) as error:
        assert "of the preference pairs" in str(error) and str(error).startswith("Row ")
        assert any(f"`{name}`" in str(error) for name in ("prompt", "chosen", "rejected"))
    else:
        assert all(row["prompt"] and all(row["completions"]) and row["rewards"] == [1.0, 0.0] for row in found)
        try:
            check_dataset(found)
        except TypeError as error:
            assert str(error).startswith("Row ") and "of `train_dataset`: " in str(error)
            return
        stream = found.to_iterable_dataset()
        try:
            rows = list(tokenized(stream, tiny.tokenizer(chat=True), chat_template_kwargs={}, **limits))
        except ValueError as error:
            assert str(error).startswith("A prompt of logged completions ")
        else:
            assert all(ids[-1] == tiny.EOS for row in rows for ids in row["completion_ids"])


# Saved folders


def save(folder, **parts):
    value = build_value("bilinear", width=32, vocab_size=tiny.VOCAB, head_hidden_size=4)
    VGFModel(tiny.llama(), value, backbone="lora", **parts).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with every part that a model with a frozen policy can have."""
    parts = {"sequence_value": SequenceValue(tiny.llama(1), 2), "ref_model": tiny.llama(2)}
    return save(tmp_path_factory.mktemp("saved"), **parts)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder with a policy and a head on an adapter."""
    return save(tmp_path_factory.mktemp("bare"))


def names_of(folder):
    return sorted(json.loads((folder / "vgf_config.json").read_text())["files"])


def harm(folder, path, how, place, other):
    """Changes a file; tells whether anything is different afterwards."""
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: int(place * len(content))])
    elif how == "grown":
        path.write_bytes(content + b"\0")
    elif how == "flipped":
        index = int(place * (len(content) - 1))
        path.write_bytes(content[:index] + bytes([content[index] ^ (1 << other % 8)]) + content[index + 1 :])
    elif how == "deleted":
        path.unlink()
    elif how == "renamed":
        path.rename(path.with_name(f"{path.name}.old"))
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "swapped":
        second = folder / names_of(folder)[other % len(names_of(folder))]
        path.write_bytes(second.read_bytes())
        second.write_bytes(content)
        return second.read_bytes() != path.read_bytes()
    return True


@given(
    st.integers(0, 99),
    st.sampled_from(["cut", "grown", "flipped", "deleted", "renamed", "a folder", "swapped"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 99),
)
@fuzz(60)
def test_a_listed_file_that_changed_is_refused_by_name(saved, tmp_path_factory, which, how, place, other):
    folder = tmp_path_factory.mktemp("harmed") / "model"
    shutil.copytree(saved, folder)
    name = names_of(folder)[which % len(names_of(folder))]
    changed = harm(folder, folder / name, how, place, other)
    if not changed:
        return
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        VGFModel.from_pretrained(folder)
    assert str(folder / name) in str(caught.value) or (how == "swapped" and str(folder) in str(caught.value))
    shutil.rmtree(folder)


@given(st.integers(0, 99), st.sampled_from(["dropped", "renamed", "another shape"]), st.integers(0, 999))
@fuzz(15)
def test_a_tensor_that_is_not_there_is_refused_whatever_the_checksums(saved, tmp_path_factory, which, how, place):
    folder = tmp_path_factory.mktemp("harmed") / "model"
    shutil.copytree(saved, folder)
    files = [name for name in names_of(folder) if name.endswith(".safetensors")]
    path = folder / files[which % len(files)]
    tensors = load_file(path)
    name = sorted(tensors)[place % len(tensors)]
    tensor = tensors.pop(name)
    if how != "dropped":
        tensors[f"{name}_" if how == "renamed" else name] = tensor[:-1] if how == "another shape" else tensor
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, {"format": "pt"})
    settings = json.loads((folder / "vgf_config.json").read_text())
    settings["files"][path.relative_to(folder).as_posix()] = file_digest(path)
    (folder / "vgf_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError) as caught:
        VGFModel.from_pretrained(folder)
    assert str(path.parent) in str(caught.value)
    shutil.rmtree(folder)


@given(st.sampled_from(["cut", "grown", "flipped", "a folder"]), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
@fuzz(40)
def test_the_listing_itself_is_read_or_refused_by_folder(bare, tmp_path_factory, how, place, other):
    folder = tmp_path_factory.mktemp("harmed") / "model"
    shutil.copytree(bare, folder)
    harm(folder, folder / "vgf_config.json", how, place, other)
    try:
        model = VGFModel.from_pretrained(folder)
    except (FileNotFoundError, ValueError) as error:
        assert str(folder) in str(error)
    else:
        assert how == "flipped" and model.value.parametrization == "bilinear" and model.has_value_adapter
    shutil.rmtree(folder)


@given(st.data())
@fuzz(60)
def test_settings_of_a_folder_are_read_or_refused_by_file(bare, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("harmed") / "model"
    shutil.copytree(bare, folder)
    path = folder / "vgf_config.json"
    content = json.loads(path.read_text())
    name = data.draw(st.sampled_from(sorted(content)))
    kinds = type(None) | str | int | float | list | dict
    plain = [value for value in ODD if type(value) is not int and isinstance(value, kinds)] + [-1, 0, 1, 7, 10**9]
    value = data.draw(st.integers(0, len(plain) - 1).map(lambda place: plain[place]))
    path.write_text(json.dumps({**content, name: value}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = VGFModel.from_pretrained(folder)
        except (FileNotFoundError, ValueError) as error:
            assert str(folder) in str(error), f"{error} <- {name}={value!r:.50}"
        else:
            assert model.value.parametrization == "bilinear" and model.has_value_adapter, f"{name}={value!r:.50}"
    shutil.rmtree(folder)
