# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Saving and loading: bit-exact, only safetensors and JSON, and errors that name the file."""

import json
import os
import re
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.layouts import LAYOUTS, VOCAB, prompts, shake, tiny_model, vgf_model
from vgf_llm.models import SequenceValue, TransportConfig, VGFModel, build_value, tensor_files
from vgf_llm.models import origin as origin_module
from vgf_llm.models.origin import base_tensors, fingerprint, record_origin, recorded_origin
from vgf_llm.models.saving import load_policy_or_vgf

KINDS = [
    ("bilinear", "policy", None),
    ("bilinear", "policy", 12),
    ("bilinear", "lora", None),
    ("bilinear", "copy", 12),
    ("vocab", "policy", 12),
    ("vocab", "lora", None),
    ("vocab", "copy", None),
    ("log_ratio", "lora", None),
    ("log_ratio", "copy", None),
]


def assert_same(loaded: VGFModel, model: VGFModel) -> None:
    """Every tensor and the configuration are equal to the last bit."""
    expected, found = model.state_dict(), loaded.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name
    ids, mask = prompts()
    with torch.no_grad():
        scores = [m.score(ids, mask, torch.ones_like(ids[:, 2:])).token_scores for m in (loaded, model)]
    assert torch.equal(*scores)
    assert loaded.transport == model.transport
    assert loaded.vgf_config.parametrization == model.vgf_config.parametrization
    assert loaded.vgf_config.backbone == model.vgf_config.backbone


def assert_policy_alone_loads(directory: Path, base: Any) -> None:
    ids, mask = prompts()
    alone = AutoModelForCausalLM.from_pretrained(directory).eval()
    assert torch.equal(alone(ids, attention_mask=mask).logits, base(ids, attention_mask=mask).logits)


def assert_only_open_formats(directory: Path) -> None:
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}, files
    assert not [path for path in files if path.name.startswith(".")]


@pytest.mark.parametrize(("parametrization", "backbone", "head_hidden_size"), KINDS)
def test_round_trip_of_every_value(
    tmp_path: Path, parametrization: str, backbone: str, head_hidden_size: int | None
) -> None:
    base = tiny_model("llama")
    transport = TransportConfig(transport_steps=3, step_size=0.25, max_kl=0.5, alpha=2.0)
    model = vgf_model(base, parametrization, backbone, head_hidden_size=head_hidden_size, transport=transport)
    model.save_pretrained(tmp_path)
    assert_same(VGFModel.from_pretrained(tmp_path), model)
    assert_policy_alone_loads(tmp_path, base)
    assert_only_open_formats(tmp_path)
    assert (tmp_path / "value_head.safetensors").is_file() == (parametrization != "log_ratio")


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "llama"])
@pytest.mark.parametrize(("parametrization", "backbone"), [("log_ratio", "lora"), ("vocab", "copy")])
def test_round_trip_on_every_layout(tmp_path: Path, layout: str, parametrization: str, backbone: str) -> None:
    base = tiny_model(layout)
    model = vgf_model(base, parametrization, backbone)
    model.save_pretrained(tmp_path)
    assert_same(VGFModel.from_pretrained(str(tmp_path)), model)
    assert_policy_alone_loads(tmp_path, base)


def test_reference_and_value_model_of_its_own_are_kept(tmp_path: Path) -> None:
    model = vgf_model(
        tiny_model("llama"), "log_ratio", value_model=tiny_model("gpt2", seed=3), ref_model=tiny_model("qwen2", seed=4)
    )
    model.save_pretrained(tmp_path)
    loaded = VGFModel.from_pretrained(tmp_path)
    assert_same(loaded, model)
    assert type(loaded.value_model).__name__ == "GPT2LMHeadModel"


def test_reward_kind_is_kept(tmp_path: Path) -> None:
    value = build_value("vocab", width=16, vocab_size=VOCAB, reward_kind="regression")
    VGFModel(tiny_model("llama"), value).save_pretrained(tmp_path)
    assert VGFModel.from_pretrained(tmp_path).value.reward_kind == "regression"


def test_a_model_in_bfloat16_keeps_its_dtypes(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    model = vgf_model(base, "bilinear", "lora")
    model.save_pretrained(tmp_path / "saved")
    loaded = VGFModel.from_pretrained(tmp_path / "saved")
    assert loaded.dtype == torch.bfloat16
    assert_same(loaded, model)


@pytest.mark.parametrize("adapter", ["default", "sft"])
def test_a_peft_policy_saves_its_adapter_and_finds_its_base(tmp_path: Path, adapter: str) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    policy = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"), adapter_name=adapter).eval()
    shake(policy, std=0.2)
    ids, mask = prompts()
    with torch.no_grad():
        expected = policy(ids, attention_mask=mask).logits
    model = VGFModel(policy, build_value("log_ratio", width=16, vocab_size=VOCAB), backbone="lora").eval()
    shake(model, std=0.1)
    directory = tmp_path / "saved"
    model.save_pretrained(directory)
    assert_only_open_formats(directory)
    assert not (directory / "model.safetensors").exists()
    score = model.score(ids, mask, torch.ones_like(ids[:, 2:])).token_scores
    for origin in (None, str(tmp_path / "base"), tiny_model("llama")):
        loaded = VGFModel.from_pretrained(directory, base_model=origin)
        with torch.no_grad():
            assert torch.equal(loaded.policy(ids, attention_mask=mask).logits, expected)
        assert torch.equal(loaded.score(ids, mask, torch.ones_like(ids[:, 2:])).token_scores, score)
    alone = PeftModel.from_pretrained(tiny_model("llama"), directory)
    with torch.no_grad():
        assert torch.equal(alone(ids, attention_mask=mask).logits, expected)
        auto = AutoModelForCausalLM.from_pretrained(directory)
        assert torch.equal(auto(ids, attention_mask=mask).logits, expected)


@pytest.mark.parametrize("backbone", ["policy", "lora"])
def test_without_the_policy_the_base_is_asked_for(tmp_path: Path, backbone: str) -> None:
    base = tiny_model("llama")
    model = vgf_model(base, "bilinear", backbone)
    model.save_pretrained(tmp_path, save_policy=False)
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(VGFModel.from_pretrained(tmp_path, base_model=tiny_model("llama")), model)
    with pytest.raises(ValueError, match=r"holds no policy weights.*pass `base_model=`"):
        VGFModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"could not be loaded from '/nowhere'.*Pass `base_model=`"):
        VGFModel.from_pretrained(tmp_path, base_model="/nowhere")


def test_the_head_says_which_base_it_reads(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    model = vgf_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    model.save_pretrained(tmp_path / "saved", save_policy=False)
    with safe_open(tmp_path / "saved" / "value_head.safetensors", "pt") as file:
        assert file.metadata()["base_model_name_or_path"] == str(tmp_path / "base")
    assert_same(VGFModel.from_pretrained(tmp_path / "saved"), model)


def test_push_to_hub_uploads_what_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: list[str] = []

    class Url(str):
        repo_id = "owner/name"

    def create_commit(self: HfApi, *, operations: list[Any], **kwargs: Any) -> None:
        uploaded.extend(operation.path_in_repo for operation in operations)

    monkeypatch.setattr(HfApi, "create_repo", lambda self, *args, **kwargs: Url("https://hub/owner/name"))
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    vgf_model(tiny_model("llama"), "bilinear", "lora").push_to_hub("owner/name")
    expected = {"config.json", "model.safetensors", "vgf_config.json", "value_head.safetensors"}
    assert expected | {"value/adapter_model.safetensors", "value/adapter_config.json"} <= set(uploaded)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved model with a head and a value adapter."""
    model = vgf_model(tiny_model("llama"), "bilinear", "lora")
    model.save_pretrained(tmp_path)
    return tmp_path


def listing(directory: Path) -> dict[str, str]:
    return json.loads((directory / "vgf_config.json").read_text())["files"]


# Settings that are gone, at what they were by default.
GONE = {"metric": "fisher", "noise": 0.0, "projection": "redecode", "anchor": 0.0, "max_distance": None}


def as_format_1(directory: Path) -> None:
    """Makes a folder what earlier releases wrote: without checksums."""
    path = directory / "vgf_config.json"
    config = json.loads(path.read_text())
    for name in ("files", "base_model_fingerprint", "base_model_dtype", "transformers_version"):
        del config[name]
    config["transport"].update(GONE)
    path.write_text(json.dumps({**config, "format_version": 1}))


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "vgf_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def rename_tensor(path: Path) -> None:
    tensors = load_file(path)
    name = sorted(tensors)[len(tensors) // 2]
    tensors[f"{name}x"] = tensors.pop(name)
    save_file(tensors, path, {"format": "pt"})


def change_number(path: Path) -> None:
    tensors = load_file(path)
    tensors[next(iter(tensors))].view(-1)[0] += 1
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda d: (d / "vgf_config.json").unlink(), FileNotFoundError, r"vgf_config\.json does not exist"),
        (lambda d: truncate(d / "vgf_config.json"), ValueError, r"vgf_config\.json is not valid JSON"),
        (lambda d: (d / "vgf_config.json").write_text("[]"), ValueError, r"vgf_config\.json holds a list"),
        (lambda d: edit_config(d, format_version=99), ValueError, r"format_version 99; this release reads 1 and 2"),
        (lambda d: edit_config(d, novelty=1), ValueError, r"vgf_config\.json has fields .*novelty"),
        (lambda d: edit_config(d, transport={"speed": 1}), ValueError, r"transport fields \['speed'\]"),
        (lambda d: edit_config(d, transport={"step_size": -1.0}), ValueError, r"`step_size` must be .* got -1\.0"),
        (lambda d: edit_config(d, parametrization="q"), ValueError, r"`parametrization` must be one of .*; got 'q'"),
        (lambda d: edit_config(d, parametrization="v_head"), ValueError, r"'v_head'.*Values of a state alone are no"),
        (lambda d: edit_config(d, transport={"projection": "nearest"}), ValueError, "`projection` is no longer"),
        (lambda d: edit_config(d, transport={"noise": 0.1}), ValueError, r"`noise` is no longer a transport setting"),
        (lambda d: edit_config(d, hidden_size=24), ValueError, r"width 16; the value in .* reads width 24"),
        (lambda d: edit_config(d, vocab_size=64), ValueError, r"has 40 logits; .* was saved over 64"),
        (lambda d: edit_config(d, head_hidden_size=5), ValueError, r"value_head\.safetensors holds .* expects"),
        (lambda d: edit_config(d, files=None, head_hidden_size=5), ValueError, r"value_head\.safetensors holds .* exp"),
    ],
)
def test_damaged_folders_are_named(saved: Path, damage: Any, error: type[Exception], message: str) -> None:
    damage(saved)
    with pytest.raises(error, match=message):
        VGFModel.from_pretrained(saved)


def test_a_base_of_another_shape_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"has 41 logits; .* was saved over 40"):
        VGFModel.from_pretrained(saved, base_model=tiny_model("llama", vocab_size=VOCAB + 1))
    with pytest.raises(ValueError, match=r"width 8; the value in .* reads width 16"):
        VGFModel.from_pretrained(saved, base_model=tiny_model("llama", hidden_size=8))


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        VGFModel.from_pretrained(tmp_path / "absent")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(NotADirectoryError, match=r"`save_directory` .*file' is a file"):
        VGFModel(tiny_model("llama")).save_pretrained(file)


PARTS = {
    "policy": "model.safetensors",
    "configuration": "config.json",
    "value head": "value_head.safetensors",
    "value adapter": "value/adapter_model.safetensors",
    "value model": "value_model/model.safetensors",
    "reference": "ref_model/model.safetensors",
    "sequence backbone": "sequence_value/model.safetensors",
    "sequence head": "sequence_value/sequence_head.safetensors",
    "policy adapter": "adapter_model.safetensors",
    "base model": "base_model/model.safetensors",
}
HARMS = {"missing": Path.unlink, "truncated": truncate, "renamed": rename_tensor, "changed": change_number}


def whole_folder(directory: Path, part: str, seed: int = 0) -> VGFModel:
    """Saves a model that has `part`."""
    base, options, kind = tiny_model("llama", seed=seed), {}, ("bilinear", "policy")
    if part == "value adapter":
        kind = ("bilinear", "lora")
    if part == "value model":
        kind = ("bilinear", "copy")
    if part == "reference":
        options["ref_model"] = tiny_model("llama", seed=seed + 4)
    if part.startswith("sequence"):
        options["sequence_value"] = SequenceValue(tiny_model("llama", seed=seed + 5), 2)
    if part in ("policy adapter", "base model"):
        base = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
        shake(base, std=0.2, seed=seed)
    model = vgf_model(base, *kind, seed=seed, **options)
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_a_folder_is_checked(tmp_path: Path, part: str, harm: str) -> None:
    model = whole_folder(tmp_path, part)
    assert_same(VGFModel.from_pretrained(tmp_path), model)
    path = tmp_path / PARTS[part]
    if path.suffix == ".json" and harm in ("renamed", "changed"):
        path.write_text(path.read_text().replace("rms_norm_eps", "rms_norm_epsilon"))
    else:
        HARMS[harm](path)
    error = FileNotFoundError if harm == "missing" else ValueError
    with pytest.raises(error, match=f"{re.escape(str(path))} (does not exist|is not the file that vgf_config.json)"):
        VGFModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", PARTS)
def test_a_file_of_another_model_is_refused(tmp_path: Path, part: str) -> None:
    whole_folder(tmp_path / "one", part)
    whole_folder(tmp_path / "other", part, seed=1)
    if part == "configuration":
        (tmp_path / "other" / "config.json").write_text("{}")
    shutil.copy(tmp_path / "other" / PARTS[part], tmp_path / "one" / PARTS[part])
    with pytest.raises(ValueError, match=f"{re.escape(PARTS[part])} is not the file that .* expected .* found"):
        VGFModel.from_pretrained(tmp_path / "one")


@pytest.mark.parametrize("part", ["policy", "value adapter", "value model", "sequence backbone", "policy adapter"])
def test_a_missing_tensor_is_an_error_without_checksums_too(tmp_path: Path, part: str) -> None:
    model = whole_folder(tmp_path, part)
    as_format_1(tmp_path)
    base = tiny_model("llama") if part == "policy adapter" else None
    with pytest.warns(UserWarning, match=r"vgf_config\.json is of an earlier release and lists no checksums"):
        assert_same(VGFModel.from_pretrained(tmp_path, base_model=base), model)
    rename_tensor(tmp_path / PARTS[part])
    with (
        pytest.warns(UserWarning, match="earlier release"),
        pytest.raises(ValueError, match=r"would be left at random|safetensors holds .* expects"),
    ):
        VGFModel.from_pretrained(tmp_path, base_model=base)


def test_what_a_user_may_edit_is_not_checked(saved: Path) -> None:
    for name in ("README.md", "generation_config.json", "notes.txt", "tokenizer.json"):
        (saved / name).write_text("{}")
    edit_config(saved, transport={**json.loads((saved / "vgf_config.json").read_text())["transport"], "max_kl": 0.3})
    assert VGFModel.from_pretrained(saved).transport.max_kl == 0.3


def test_a_large_file_is_checked_by_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_WHOLE_BYTES", 1000), ("_START_BYTES", 100), ("_BLOCK_BYTES", 10), ("_BLOCKS", 20)):
        monkeypatch.setattr(tensor_files, name, value)
    path = tmp_path / "file"
    content = bytes(range(250)) * 20
    path.write_bytes(content)
    digest = tensor_files.file_digest(path)
    assert digest.startswith("5000 bytes, blake2b of samples ")
    for place, noticed in ((0, True), (99, True), (100, True), (115, False), (4999, True)):
        path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        assert (tensor_files.file_digest(path) != digest) == noticed, place


def test_saving_again_leaves_nothing_of_the_model_before(tmp_path: Path) -> None:
    first = vgf_model(tiny_model("llama"), "log_ratio", "copy", ref_model=tiny_model("llama", seed=4))
    first.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    second = vgf_model(tiny_model("llama", seed=1), "bilinear", "lora")
    second.save_pretrained(tmp_path)
    assert not any((tmp_path / part / "model.safetensors").exists() for part in ("value_model", "ref_model"))
    assert (tmp_path / "tokenizer.json").exists()
    assert_same(VGFModel.from_pretrained(tmp_path), second)
    (tmp_path / "ref_model").mkdir(exist_ok=True)
    tiny_model("llama", seed=8).save_pretrained(tmp_path / "ref_model")  # not listed, so not read
    assert VGFModel.from_pretrained(tmp_path).ref_model is None


# Which weights are written


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A saved plain model."""
    tiny_model("llama").save_pretrained(tmp_path / "origin")
    return tmp_path / "origin"


def merged(policy: Any) -> Any:
    adapted = get_peft_model(policy, LoraConfig(r=2, target_modules="all-linear"))
    shake(adapted, std=0.2)
    return adapted.merge_and_unload()


def edited(policy: Any) -> Any:
    policy.get_output_embeddings().weight.data[0, 0] += 1e-6
    return policy


def scaled(policy: Any) -> Any:
    policy.config.rms_norm_eps = 0.5
    return reloaded(policy)


def reloaded(policy: Any) -> Any:
    """A model of the same weights, built with the configuration as it is now."""
    fresh = type(policy)(policy.config).eval()
    fresh.load_state_dict(policy.state_dict())
    return fresh


def shortened(policy: Any) -> Any:
    policy.model.layers = policy.model.layers[:1]
    policy.config.num_hidden_layers = 1
    return policy


def resized(policy: Any) -> Any:
    policy.resize_token_embeddings(VOCAB + 3)
    return policy


EDITS = {
    "merged": merged,
    "edited": edited,
    "configured": scaled,
    "shortened": shortened,
    "resized": resized,
    "half an edit": lambda policy: policy.to(torch.bfloat16).float(),
}


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("edit", EDITS)
def test_a_policy_that_its_origin_does_not_load_is_written(
    tmp_path: Path, origin: Path, edit: str, recorded: bool
) -> None:
    policy = AutoModelForCausalLM.from_pretrained(origin).eval()
    if recorded:
        record_origin(policy, {})
    model = VGFModel(EDITS[edit](policy), transport=TransportConfig()).eval()
    model.save_pretrained(tmp_path / "saved", save_policy=None)
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    assert_same(VGFModel.from_pretrained(tmp_path / "saved"), model)


@pytest.mark.parametrize("shards", ["10GB", "20KB"])
@pytest.mark.parametrize("layout", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_that_its_origin_loads_is_named(tmp_path: Path, layout: str, dtype: torch.dtype, shards: str) -> None:
    tiny_model(layout).save_pretrained(tmp_path / "origin", max_shard_size=shards)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "origin", dtype=dtype).eval()
    policy.config.pad_token_id = 3  # trainers set it
    model = vgf_model(policy, "log_ratio", "lora")
    model.save_pretrained(tmp_path / "saved", save_policy=None)
    assert "model.safetensors" not in listing(tmp_path / "saved")
    loaded = VGFModel.from_pretrained(tmp_path / "saved")
    assert_same(loaded, model)  # in the dtype that it had
    loaded.save_pretrained(tmp_path / "again", save_policy=None)
    assert "model.safetensors" not in listing(tmp_path / "again")
    assert_same(VGFModel.from_pretrained(tmp_path / "again"), model)
    assert VGFModel.from_pretrained(tmp_path / "saved", dtype="float64").dtype == torch.float64


def test_arguments_that_change_weights_leave_no_origin(origin: Path) -> None:
    policy = AutoModelForCausalLM.from_pretrained(origin)
    for kwargs, known in (({"dtype": "auto", "revision": None}, True), ({"quantization_config": object()}, False)):
        policy.__dict__.pop("_vgf_origin", None)
        record_origin(policy, kwargs)
        assert (recorded_origin(policy, fingerprint(base_tensors(policy))) is not None) == known


def test_a_policy_of_a_saved_model_is_written_again(tmp_path: Path) -> None:
    """A run replaces and removes its own checkpoints, so that they are no origin."""
    model = vgf_model(tiny_model("llama"))
    model.save_pretrained(tmp_path / "checkpoint-3")
    VGFModel.from_pretrained(tmp_path / "checkpoint-3").save_pretrained(tmp_path / "next", save_policy=None)
    shutil.rmtree(tmp_path / "checkpoint-3")
    assert_same(VGFModel.from_pretrained(tmp_path / "next"), model)


@pytest.mark.parametrize("save_policy", [True, None])
def test_the_base_under_an_adapter_is_written_where_it_differs(
    tmp_path: Path, origin: Path, save_policy: bool | None
) -> None:
    base = edited(AutoModelForCausalLM.from_pretrained(origin))
    policy = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    shake(policy, std=0.2)
    model = vgf_model(policy, "log_ratio", "lora")
    model.save_pretrained(tmp_path / "saved", save_policy=save_policy)
    assert_same(VGFModel.from_pretrained(tmp_path / "saved"), model)
    with pytest.raises((OSError, ValueError, TypeError, AttributeError)):  # not silently over the other base
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved")


def test_the_pinned_revision_is_loaded(tmp_path: Path, origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = AutoModelForCausalLM.from_pretrained(origin)
    policy.config._commit_hash = "0123abcd"
    vgf_model(policy).save_pretrained(tmp_path / "saved", save_policy=False)
    asked: list[Any] = []
    load = AutoModelForCausalLM.from_pretrained

    def remember(name: str, **kwargs: Any) -> Any:
        asked.append((name, kwargs.pop("revision"), kwargs["trust_remote_code"], kwargs["dtype"]))
        return load(name, **kwargs)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", remember)
    VGFModel.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    VGFModel.from_pretrained(tmp_path / "saved", base_model=str(origin))
    assert asked == [(str(origin), "0123abcd", True, torch.float32), (str(origin), None, False, torch.float32)]


def test_another_base_is_refused(tmp_path: Path, origin: Path) -> None:
    policy = AutoModelForCausalLM.from_pretrained(origin)
    vgf_model(policy, "log_ratio", "lora").save_pretrained(tmp_path / "saved", save_policy=False)
    other = tiny_model("llama", seed=1)
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules="all-linear"))
    half = tiny_model("llama").to(torch.bfloat16)
    cases = ((other, "other weights"), (half, "in bfloat16, expected .* in float32"), (adapted, "adapter"))
    for wrong, message in cases:
        with pytest.raises(ValueError, match=f"{message}.*strict_base=False"):
            VGFModel.from_pretrained(tmp_path / "saved", base_model=wrong)
    assert VGFModel.from_pretrained(tmp_path / "saved", base_model=other, strict_base=False).policy is not None
    tiny_model("llama", seed=1).save_pretrained(origin)  # what the name stands for has changed
    for base in (None, str(origin)):
        with pytest.raises(ValueError, match=r"has other weights than the one that .* was trained over"):
            VGFModel.from_pretrained(tmp_path / "saved", base_model=base)


def test_the_fingerprint_reads_every_bit() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    one = fingerprint({"a": tensor})
    assert one == fingerprint({"a": tensor.clone()}) == fingerprint({"a": tensor.t().contiguous().t()})
    nearly = tensor.clone()
    nearly[1, 2] = torch.nextafter(nearly[1, 2], torch.tensor(9.0))
    others = [tensor.flip(0), tensor.view(3, 2), tensor.double(), tensor.half(), nearly, tensor.view(torch.int32)]
    prints = {fingerprint({"a": other}) for other in others} | {fingerprint({"b": tensor}), one}
    assert len(prints) == len(others) + 2
    # 1.0 is 0x3f800000, twice: once in each of two places
    assert origin_module._checksum(torch.ones(2)) == f"torch.float32 (2,) {2 * 0x3F800000} {3 * 0x3F800000}"


# Folders that a trainer is given as `model`


def test_names_are_told_apart(tmp_path: Path, origin: Path, saved: Path) -> None:
    assert isinstance(load_policy_or_vgf(str(saved), VGFModel, dtype="float32", revision=None), VGFModel)
    for plain in (str(origin), str(tmp_path / "nowhere"), "owner/name"):
        assert load_policy_or_vgf(plain, VGFModel) is None
    run = tmp_path / "run"
    (run / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds no model but checkpoint-3; pass one of these"):
        load_policy_or_vgf(str(run), VGFModel)
    (saved / "vgf_config.json").unlink()
    with pytest.raises(ValueError, match=r"holds value_head\.safetensors and value but no vgf_config\.json"):
        load_policy_or_vgf(str(saved), VGFModel)


# Writing


def test_an_interrupted_write_leaves_the_model_before(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = VGFModel.from_pretrained(saved)
    monkeypatch.setattr(tensor_files, "save_file", fail)
    with pytest.raises(OSError, match=f"No space left.*{re.escape(str(saved))}") as raised:
        vgf_model(tiny_model("llama", seed=3), seed=9).save_pretrained(saved)
    assert raised.value.errno == 28
    assert_only_open_formats(saved)
    assert_same(VGFModel.from_pretrained(saved), before)


def test_files_that_are_moved_one_by_one_are_no_model_meanwhile(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    move, moved = os.replace, []

    def stop_at_the_second(source: Any, target: Any) -> None:
        if ".incomplete-" in str(source) and Path(target).parent == saved:
            moved.append(target)
            if len(moved) == 2:
                raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        vgf_model(tiny_model("llama", seed=3), seed=9).save_pretrained(saved)
    with pytest.raises(FileNotFoundError, match=r"vgf_config\.json does not exist.*not a whole one"):
        VGFModel.from_pretrained(saved)


def test_numbers_of_numpy_are_saved(tmp_path: Path) -> None:
    transport = TransportConfig(transport_steps=np.int64(2), step_size=np.float32(0.5), max_kl=Fraction(1, 4))
    vgf_model(tiny_model("llama"), transport=transport).save_pretrained(tmp_path)
    loaded = VGFModel.from_pretrained(tmp_path).transport
    assert loaded == TransportConfig(transport_steps=2, step_size=0.5, max_kl=0.25)
    assert type(transport.transport_steps) is int and type(transport.max_kl) is float


def test_a_foreign_listing_cannot_remove_files_elsewhere(tmp_path: Path) -> None:
    folder, kept = tmp_path / "model", tmp_path / "kept"
    folder.mkdir()
    kept.write_text("")
    for files in ({"../kept": "", str(kept): ""}, ["config.json"], 3):
        (folder / "vgf_config.json").write_text(json.dumps({"files": files}))
        vgf_model(tiny_model("llama")).save_pretrained(folder)
        assert kept.exists()
    VGFModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "adapter"}, "`backbone` must be one of 'policy', 'lora', 'model'; got 'adapter'"),
        ({"reward_kind": None}, "`reward_kind` must be one of 'bernoulli', 'regression'; got None"),
        ({"hidden_size": 0}, "`hidden_size` must be an integer >= 1"),
        ({"head_hidden_size": "8"}, "`head_hidden_size` must be an integer or None, got '8'"),
        ({"base_model_dtype": "float33"}, "`base_model_dtype` must be the name of a dtype of torch, got 'float33'"),
        ({"base_model_name_or_path": 3}, "`base_model_name_or_path` must be text or null, got 3"),
        ({"files": ["a"]}, "`files` must hold a checksum by the path of every file, got ['a']"),
        ({"transport": [1]}, "has transport fields"),
    ],
)
def test_settings_that_cannot_be_are_refused(saved: Path, changes: dict, message: str) -> None:
    edit_config(saved, **changes)
    with pytest.raises(ValueError, match=f"vgf_config.json:? .*{re.escape(message)}"):
        VGFModel.from_pretrained(saved)


def test_errors_of_writing_name_the_path(tmp_path: Path) -> None:
    target = tmp_path / "absent" / "file.json"
    with pytest.raises(OSError, match=re.escape(str(target))):
        tensor_files.write_json({}, target)
    with pytest.raises(OSError, match=re.escape(str(target))):
        tensor_files.write_tensors({"a": torch.ones(1)}, target)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "file" / "model"))):
        vgf_model(tiny_model("llama")).save_pretrained(tmp_path / "file" / "model")
