# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Sampling with a results folder: a killed evaluation goes on as if nothing had happened; choices among samples."""

from pathlib import Path
from typing import Any

import pytest
import torch

from eval.loading import LoadedModel, load_model
from eval.sampling import Draw, Samples, _batch_seed, sample
from eval.store import SampleStore
from eval.tasks import Task, TaskOptions, load_task
from tests.unit.eval.models import save_vgf

PLAIN = {"do_sample": True, "top_k": 0, "top_p": 1.0}
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
    real = loaded.model.generate
    monkeypatch.setattr(
        type(loaded.model), "generate", lambda self, ids, *a, **k: calls.append(len(ids)) or real(ids, *a, **k)
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
