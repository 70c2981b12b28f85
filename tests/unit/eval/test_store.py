# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The results folder: what is kept, what a broken one says, and whose results it takes."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.store import SampleStore, fingerprint
from tests.layouts import tiny_model


def record(prompt: int, sample: int = 0, draw: str = "greedy", **extra: Any) -> dict[str, Any]:
    return {"draw": draw, "seed": 0, "prompt": prompt, "sample": sample, "response": "ein Wörtchen\u2028", **extra}


def test_samples_come_back_in_order(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, {"model": "a"})
    store.append([record(1), record(0)])
    again = SampleStore(tmp_path, {"model": "a"})
    assert again.find("greedy", 0, [0, 1], 1) == [record(0), record(1)]
    assert again.find("greedy", 1, [0], 1) is None
    assert again.find("greedy", 0, [0], 2) is None


def test_a_sample_is_written_once(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, {"model": "a"})
    store.append([record(0, gold=1.0)])
    store.append([record(0, gold=0.0), record(1)])
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 3
    assert store.records["greedy", 0, 0, 0]["gold"] == 1.0


def test_a_truncated_last_line_is_cut_off_and_written_again(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, {"model": "a"})
    store.append([record(0), record(1)])
    path = tmp_path / "samples.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    again = SampleStore(tmp_path, {"model": "a"})
    assert list(again.records) == [("greedy", 0, 0, 0)]
    again.append([record(0), record(1)])
    assert path.read_bytes() == whole


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, {"model": "a"})
    store.append([record(0), record(1)])
    path = tmp_path / "samples.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join([lines[0][:9], *lines[1:]]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"samples\.jsonl, line 1 is no sample"):
        SampleStore(tmp_path, {"model": "a"})


def test_a_folder_of_another_model_is_refused_naming_both(tmp_path: Path) -> None:
    SampleStore(tmp_path, {"model": "a", "fingerprint": "01", "batch_size": 4})
    with pytest.raises(ValueError, match=r"holds samples of 'a', not of 'b' .*\(fingerprint: '01' there, '02' now\)"):
        SampleStore(tmp_path, {"model": "b", "fingerprint": "02", "batch_size": 4})
    with pytest.raises(ValueError, match="batch_size: 4 there, 8 now"):
        SampleStore(tmp_path, {"model": "a", "fingerprint": "01", "batch_size": 8})
    # The same model by another path.
    SampleStore(tmp_path, {"model": "./a", "fingerprint": "01", "batch_size": 4})


def test_samples_without_metadata_and_foreign_metadata_are_refused(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has no meta\.json beside it"):
        SampleStore(tmp_path, {"model": "a"})
    (tmp_path / "meta.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="is no metadata of an evaluation"):
        SampleStore(tmp_path, {"model": "a"})
    with pytest.raises(NotADirectoryError, match="is a file"):
        SampleStore(tmp_path / "meta.json", {"model": "a"})


def test_the_fingerprint_sees_weights_and_settings_and_nothing_else(tmp_path: Path) -> None:
    tiny_model(seed=0).save_pretrained(tmp_path / "a")
    tiny_model(seed=0).save_pretrained(tmp_path / "b")
    tiny_model(seed=1).save_pretrained(tmp_path / "c")
    marks = [fingerprint(tmp_path / name) for name in "abc"]
    assert marks[0] == marks[1] != marks[2]
    (tmp_path / "a" / "results.json").write_text("{}", encoding="utf-8")
    assert fingerprint(tmp_path / "a") == marks[0]
    config = json.loads((tmp_path / "a" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "pad_token_id": 1}), encoding="utf-8")
    assert fingerprint(tmp_path / "a") != marks[0]
    with pytest.raises(FileNotFoundError, match="holds no saved model"):
        fingerprint(tmp_path / "nowhere")


def test_a_checkpoint_is_a_model_and_checkpoints_inside_one_are_not(tmp_path: Path) -> None:
    tiny_model(seed=0).save_pretrained(tmp_path / "run")
    mark = fingerprint(tmp_path / "run")
    tiny_model(seed=1).save_pretrained(tmp_path / "run" / "checkpoint-2")
    assert fingerprint(tmp_path / "run") == mark
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    assert fingerprint(tmp_path / "run" / "checkpoint-2") == fingerprint(tmp_path / "other")


def test_weights_in_the_older_format_are_told_apart(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}", encoding="utf-8")
        (tmp_path / name / "pytorch_model.bin").write_bytes(name.encode())
        (tmp_path / name / "training_args.bin").write_bytes(b"same or not, it is no part of the model")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_paths_may_be_written_in_several_ways_and_contents_may_not_differ(tmp_path: Path) -> None:
    here = {"fingerprint": "01", "reward_model": "r", "rewards": {"gold": "a1"}, "dtype": "float32"}
    SampleStore(tmp_path, here)
    SampleStore(tmp_path, {**here, "reward_model": "./r"})
    for changed in ({"rewards": {"gold": "b2"}}, {"dtype": "bfloat16"}, {"base": "other (02)"}):
        with pytest.raises(ValueError) as refused:
            SampleStore(tmp_path, {**here, **changed})
        name, value = next(iter(changed.items()))
        assert f"{name}: {here.get(name)!r} there, {value!r} now" in str(refused.value)


def test_large_weights_are_told_apart_by_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.store._WHOLE_FILE", 1000)
    monkeypatch.setattr("eval.store._BLOCK", 100)
    for name, last in (("a", b"\0"), ("b", b"\1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"\0" * 20_000 + last)
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")
