# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Saving and loading: bit-exact, only safetensors and JSON, and errors that name the file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.layouts import LAYOUTS, VOCAB, prompts, shake, tiny_model, vgf_model
from vgf_llm.models import TransportConfig, VGFModel, build_value

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


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "vgf_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def cut_adapter_row(directory: Path) -> None:
    path = directory / "value" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name][:1].clone()}, path)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda d: (d / "vgf_config.json").unlink(), FileNotFoundError, r"vgf_config\.json does not exist"),
        (lambda d: truncate(d / "vgf_config.json"), ValueError, r"vgf_config\.json is not valid JSON"),
        (lambda d: (d / "vgf_config.json").write_text("[]"), ValueError, r"vgf_config\.json has format_version None"),
        (lambda d: edit_config(d, format_version=99), ValueError, r"format_version 99; this release reads 1"),
        (lambda d: edit_config(d, novelty=1), ValueError, r"vgf_config\.json has fields .*novelty"),
        (lambda d: edit_config(d, transport={"speed": 1}), ValueError, r"transport fields \['speed'\]"),
        (lambda d: edit_config(d, transport={"step_size": -1.0}), ValueError, r"`step_size` must be .* got -1\.0"),
        (lambda d: edit_config(d, parametrization="q"), ValueError, r"parametrization 'q'; expected one of"),
        (lambda d: edit_config(d, parametrization="v_head"), ValueError, r"'v_head'.*Values of a state alone are no"),
        (lambda d: edit_config(d, transport={"noise": 0.1}), ValueError, r"`noise` is no longer a transport setting"),
        (lambda d: edit_config(d, hidden_size=24), ValueError, r"width 16; the value in .* reads width 24"),
        (lambda d: edit_config(d, vocab_size=64), ValueError, r"has 40 logits; .* was saved over 64"),
        (lambda d: edit_config(d, head_hidden_size=5), ValueError, r"value_head\.safetensors holds .* expects"),
        (lambda d: (d / "value_head.safetensors").unlink(), FileNotFoundError, r"value_head\.safetensors does not"),
        (lambda d: truncate(d / "value_head.safetensors"), ValueError, r"value_head\.safetensors is not a whole"),
        (lambda d: truncate(d / "model.safetensors"), ValueError, r"policy of .* could not be loaded"),
        (lambda d: truncate(d / "value" / "adapter_model.safetensors"), ValueError, r"adapter_model\.safetensors is"),
        (cut_adapter_row, ValueError, r"adapter_model\.safetensors holds .* expects"),
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


def test_a_failed_write_leaves_the_old_head(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vgf_llm.models import tensor_files

    def fail(tensors: Any, path: str, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    before = (saved / "value_head.safetensors").read_bytes()
    monkeypatch.setattr(tensor_files, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        vgf_model(tiny_model("llama"), seed=9).save_pretrained(saved)
    assert (saved / "value_head.safetensors").read_bytes() == before
    assert_only_open_formats(saved)
