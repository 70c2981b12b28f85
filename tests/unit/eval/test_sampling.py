# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Sampling with a results folder: a killed evaluation goes on as if nothing had happened; choices among samples."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, GenerationMixin, StoppingCriteria, StoppingCriteriaList

from eval import sampling
from eval.loading import LoadedModel, load_model
from eval.sampling import Draw, Samples, _batch_seed, encode, sample
from eval.store import SampleStore
from eval.tasks import Task, TaskOptions, load_task
from tests.unit.eval.models import save_vgf
from vgf_llm.trainer.choose.prompts import tokenize_prompts

PLAIN = {"do_sample": True}
BASE, MOVED = Draw("base", PLAIN, with_values=True), Draw("VGF L=2", {**PLAIN, "transport_steps": 2})


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(save_vgf(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("embedded_math", TaskOptions(num_problems=5, max_new_tokens=8))


def draw(loaded: LoadedModel, task: Task, which: Draw, store: SampleStore | None = None, **options: Any) -> Samples:
    options = {"num_samples": 2, "batch_size": 4, "seed": 3, **options}
    return sample(loaded.model, loaded.tokenizer, task, which, store=store, **options)


def same(a: Samples, b: Samples) -> bool:
    numbers = all(
        torch.allclose(getattr(a, n), getattr(b, n), atol=1e-4) for n in ("gold", "kl", "base_logps", "values")
    )
    return numbers and a.responses == b.responses and torch.equal(a.num_tokens, b.num_tokens)


@pytest.mark.parametrize("which", [BASE, MOVED], ids=["base", "moved"])
def test_a_killed_evaluation_resumes_to_the_same_samples(
    which: Draw, loaded: LoadedModel, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = draw(loaded, task, which, SampleStore(tmp_path / "whole", {}))
    path = tmp_path / "cut" / "samples.jsonl"
    draw(loaded, task, which, SampleStore(tmp_path / "cut", {}))
    written = path.read_bytes().splitlines(keepends=True)
    assert len(written) == 10
    # Killed inside the second batch, in the middle of a line.
    path.write_bytes(b"".join(written[:5]) + written[5][:20])
    calls = []
    real = sampling._generate
    monkeypatch.setattr(
        sampling, "_generate", lambda model, ids, *a: calls.append(len(ids["input_ids"])) or real(model, ids, *a)
    )
    resumed = draw(loaded, task, which, SampleStore(tmp_path / "cut", {}))
    assert calls == [2, 1]  # the first batch of two problems is not sampled again
    assert same(whole, resumed)
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[:5] == written[:5]
    assert len(lines) == 10
    calls.clear()
    assert same(whole, draw(loaded, task, which, SampleStore(tmp_path / "cut", {})))
    assert not calls


def test_samples_depend_on_the_seed_and_leave_other_randomness_alone(loaded: LoadedModel, task: Task) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = draw(loaded, task, BASE)
    assert torch.equal(torch.rand(1), expected)
    assert same(first, draw(loaded, task, BASE))
    assert first.responses != draw(loaded, task, BASE, seed=4).responses


def test_values_and_costs_are_there(loaded: LoadedModel, task: Task) -> None:
    base, moved = draw(loaded, task, BASE), draw(loaded, task, MOVED)
    assert base.value_seconds is not None and moved.value_seconds is not None
    assert bool((base.value_seconds > 0).all()) and not moved.value_seconds.any()
    assert bool((base.kl == 0).all()) and bool((moved.kl > 0).any())
    assert base.values is not None and base.values.shape == (5, 2)
    plain = draw(loaded, task, Draw("plain", PLAIN))
    assert plain.values is None
    with pytest.raises(ValueError, match="have no values to rank by"):
        plain.choose("value")
    with pytest.raises(ValueError, match="at least 1, got 0 and 4"):
        draw(loaded, task, BASE, num_samples=0)


def test_choices_by_hand() -> None:
    zeros = torch.zeros(1, 3)
    samples = Samples(
        gold=torch.tensor([[0.0, 1.0, 1.0]]),
        num_tokens=zeros,
        kl=zeros,
        base_logps=zeros,
        seconds=zeros,
        forwards=zeros,
        answers=[["3", "5", "5"]],
        responses=[["a", "b", "c"]],
        proxy=torch.tensor([[9.0, 1.0, 2.0]]),
        values=torch.tensor([[2.0, 0.5, 1.0]]),
        weights=torch.tensor([[0.7, 0.1, 0.2]]),
    )
    chosen = {name: int(samples.choose(name)) for name in ("value", "proxy", "majority", "weighted_vote")}
    assert chosen == {"value": 0, "proxy": 0, "majority": 1, "weighted_vote": 0}
    assert float(samples.pick(samples.gold, "single")) == pytest.approx(2 / 3)
    assert float(samples.pick(samples.gold, "oracle")) == 1.0
    assert float(samples.pick(samples.gold, "value")) == 0.0
    assert samples.take(2).answers == [["3", "5"]]
    assert int(samples.take(2).choose("majority")) == 0  # a tie goes to the answer that was drawn first
    with pytest.raises(ValueError, match="from 1 to the 3 samples of a problem, got 4"):
        samples.take(4)


def test_every_batch_has_a_seed_of_its_own() -> None:
    keys = [(name, seed, rows) for name in ("base x2", "base x4") for seed in (0, 1) for rows in ((0, 1), (2, 3), (2,))]
    assert len({_batch_seed(*key) for key in keys}) == len(keys)


INSTRUCT = {
    "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "typical_p": 0.9, "top_h": 0.5,
    "epsilon_cutoff": 0.01, "eta_cutoff": 0.01, "repetition_penalty": 1.1, "no_repeat_ngram_size": 3,
    "min_new_tokens": 4, "suppress_tokens": [5], "begin_suppress_tokens": [6], "bad_words_ids": [[7]],
    "exponential_decay_length_penalty": (2, 1.5), "forced_eos_token_id": 1,
}  # fmt: skip


@pytest.fixture
def instruct(loaded: LoadedModel) -> Iterator[LoadedModel]:
    """The model with the generation config of an Instruct checkpoint, and more."""
    policy = loaded.model.policy
    own = policy.generation_config
    ids = {name: getattr(own, name) for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
    policy.generation_config = GenerationConfig(**ids, **INSTRUCT)
    yield loaded
    policy.generation_config = own


@pytest.mark.parametrize(
    ("which", "temperature"),
    [
        (BASE, 1.0),
        (Draw("cool", {"do_sample": True, "temperature": 0.5}), 0.5),
        (Draw("greedy", {"do_sample": False}), None),
        (MOVED, 1.0),
        (Draw("greedy VGF", {"do_sample": False, "transport_steps": 2}), None),
    ],
    ids=lambda value: value.name if isinstance(value, Draw) else "",
)
def test_rows_are_plain_whatever_the_checkpoint_samples_with(
    which: Draw, temperature: float | None, instruct: LoadedModel, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = GenerationMixin._sample

    def spy(self: Any, ids: Any, **kwargs: Any) -> Any:
        names = [type(item).__name__ for item in kwargs["logits_processor"]]
        seen.append((kwargs["generation_config"], [name for name in names if "Transport" not in name]))
        return real(self, ids, **kwargs)

    monkeypatch.setattr(GenerationMixin, "_sample", spy)
    with_config = draw(instruct, task, which, num_samples=1)
    assert seen
    for config, processors in seen:
        assert processors == (["TemperatureLogitsWarper"] if temperature == 0.5 else [])
        assert bool(config.do_sample) == (temperature is not None)
        assert temperature is None or config.temperature == temperature
    instruct.model.policy.generation_config = GenerationConfig(eos_token_id=instruct.tokenizer.eos_token_id)
    assert draw(instruct, task, which, num_samples=1).responses == with_config.responses


def test_processes_share_the_batches_and_all_of_them_have_all_samples(
    loaded: LoadedModel, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = draw(loaded, task, BASE)
    calls: dict[int, int] = {0: 0, 1: 0}
    gathered: dict[int, list[Any]] = {}
    barrier, found, lock = threading.Barrier(2), {}, threading.Lock()
    rank = threading.local()
    real = sampling._sample_batch

    def counted(*args: Any) -> Any:
        with lock:  # threads share the random state; processes do not
            calls[rank.index] += 1
            return real(*args)

    def gather(records: list[Any]) -> list[Any]:
        gathered[rank.index] = records
        barrier.wait(timeout=60)
        return gathered[0] + gathered[1]

    def run(index: int) -> None:
        rank.index = index
        state = SimpleNamespace(num_processes=2, process_index=index)
        found[index] = draw(loaded, task, BASE, processes=state)

    monkeypatch.setattr(sampling, "_sample_batch", counted)
    monkeypatch.setattr(sampling, "gather_object", gather)
    threads = [threading.Thread(target=run, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    # Three batches: both processes sample twice, and what one of them sampled to keep the other company is dropped.
    assert calls == {0: 2, 1: 2}
    assert sum(map(len, gathered.values())) == 10
    assert same(alone, found[0]) and same(alone, found[1])
    with pytest.raises(ValueError, match="`store` keeps the samples of one process"):
        sample(
            loaded.model, loaded.tokenizer, task, BASE, num_samples=1, store=SampleStore(tmp_path, {}),
            processes=SimpleNamespace(num_processes=2, process_index=0),  # type: ignore[arg-type]
        )  # fmt: skip


class StopsAtEvenTokens(StoppingCriteria):
    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return input_ids[:, -1] % 2 == 0


@pytest.mark.parametrize("which", [BASE, MOVED], ids=["base", "moved"])
def test_responses_end_where_what_sampled_them_says(which: Draw, loaded: LoadedModel, task: Task) -> None:
    seen: list[list[int]] = []

    def reward(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        seen.extend(completion_ids)
        return [0.0] * len(completion_ids)

    watched = Task("watched", task.problems, reward, max_new_tokens=8)
    found = draw(loaded, watched, which, stopping_criteria=StoppingCriteriaList([StopsAtEvenTokens()]))
    assert len(seen) == 10 and {len(ids) for ids in seen} == set(found.num_tokens.flatten().int().tolist())
    assert any(len(ids) < 8 and ids[-1] % 2 == 0 for ids in seen)
    assert all(token % 2 for ids in seen for token in ids[:-1])


def test_prompts_are_tokenized_as_in_training(loaded: LoadedModel) -> None:
    texts = ["1 2 3", "3"]
    found = encode(loaded.tokenizer, texts)
    assert [row[m.bool()].tolist() for row, m in zip(found["input_ids"], found["attention_mask"], strict=True)] == (
        tokenize_prompts(texts, loaded.tokenizer)
    )
    assert found["attention_mask"][1].tolist()[-1] == 1 and found["attention_mask"][1].tolist()[0] == 0


def test_conversations_go_through_the_template_with_its_switches(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }}{% endfor %}{% if thinking is defined %}7{% endif %}"
    )
    chats = [[{"role": "user", "content": text}] for text in ("1", "3")]
    plain, switched = encode(tokenizer, chats), encode(tokenizer, chats, {"thinking": True})
    assert tokenizer.batch_decode(plain["input_ids"], skip_special_tokens=True) == ["1", "3"]
    assert tokenizer.batch_decode(switched["input_ids"], skip_special_tokens=True) == ["17", "37"]
