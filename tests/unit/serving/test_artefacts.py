# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What an engine is given of a saved model, and the command that starts it; vLLM itself is not needed."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.layouts import VOCAB, prompts, tiny_model, vgf_model
from vgf_llm.cli import main
from vgf_llm.models import StateFeatures, TransportConfig, build_value
from vgf_llm.models.adapter_rows import adapter_rows
from vgf_llm.models.language_model import output_weight
from vgf_llm.serving import ServedTransport, best_of, engine_arguments, load_served_value, policy_view, score
from vgf_llm.serving.captured import CAPTURED, Captured
from vgf_llm.serving.engine import apply_captured
from vgf_llm.serving.pair import PolicyAndValueForCausalLM, _check_engine, check_same_shape
from vgf_llm.serving.plugin import wrap_forward
from vgf_llm.serving.server import server_command
from vgf_llm.serving.transport import read_request


@pytest.fixture
def saved(tmp_path):
    model = vgf_model(tiny_model("llama"), "bilinear")
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model", tmp_path / "view"


def test_the_value_is_loaded_without_the_policy(saved):
    model, path, _ = saved
    value, config = load_served_value(path)
    assert config.vocab_size == VOCAB
    for name, tensor in model.value.state_dict().items():
        assert torch.equal(tensor, value.state_dict()[name])
    assert not any(parameter.requires_grad for parameter in value.parameters())


def test_the_engine_sees_the_policy_s_files_alone(saved):
    _, path, view = saved
    (path / "optimizer.pt").touch()
    (path / "value_buffer.safetensors").touch()
    view.mkdir()
    assert policy_view(path, view) == str(view)
    assert {file.name for file in view.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    loaded = type(tiny_model("llama")).from_pretrained(view)
    assert torch.equal(output_weight(loaded), output_weight(saved[0].policy))


def test_a_policy_elsewhere_is_named(saved):
    model, path, view = saved
    model.config._name_or_path = "owner/base"
    model.save_pretrained(path / "value-only", save_policy=False)
    assert policy_view(path / "value-only", view) == "owner/base"
    assert "revision" not in engine_arguments(path / "value-only", view)


def test_a_policy_elsewhere_is_served_at_its_commit(saved, monkeypatch):
    model, path, view = saved
    model.config._name_or_path, model.config._commit_hash = "owner/base", "c0ffee"
    model.save_pretrained(path / "value-only", save_policy=False)
    assert engine_arguments(path / "value-only", view)["revision"] == "c0ffee"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    command = server_command(path / "value-only", view)
    assert command[command.index("--model") + 1 : command.index("--revision") + 2] == [
        "owner/base",
        "--revision",
        "c0ffee",
    ]
    view.mkdir()
    assert "revision" not in engine_arguments(path, view)


@pytest.mark.parametrize(
    ("parametrization", "backbone"), [("log_ratio", "lora"), ("log_ratio", "copy"), ("vocab", "lora")]
)
def test_the_engine_is_given_the_value_s_model(tmp_path, parametrization, backbone):
    model, view = vgf_model(tiny_model("llama"), parametrization, backbone), tmp_path / "view"
    model.save_pretrained(tmp_path / "model")
    view.mkdir()
    arguments = engine_arguments(tmp_path / "model", view)
    assert arguments["model"] == str(view)
    assert arguments["hf_overrides"] == {"architectures": ["PolicyAndValueForCausalLM"]}
    assert arguments["additional_config"]["vgf_value_logits"] == (parametrization == "log_ratio")
    ratio = "Ratio" if parametrization == "log_ratio" else ""
    assert arguments["logits_processors"] == [f"vgf_llm.serving.engine:VGF{ratio}LogitsProcessor"]
    merged = type(tiny_model("llama")).from_pretrained(arguments["additional_config"]["vgf_value_model"]).eval()
    ids, mask = prompts()
    with torch.no_grad(), adapter_rows(model.policy, *model.value_blocks()[-1:]):
        own = model.policy if backbone == "lora" else model.value_model
        found, expected, plain = (m(ids, attention_mask=mask).logits[:, -1] for m in (merged, own, tiny_model("llama")))
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-2)


def test_a_trained_policy_under_a_log_ratio_value_is_refused(tmp_path):
    model = vgf_model(tiny_model("llama"), "log_ratio", "lora", ref_model=tiny_model("llama"))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"was trained itself.*a third model"):
        engine_arguments(tmp_path, tmp_path / "view")


def test_a_value_model_of_another_shape_is_refused(saved):
    _, path, view = saved
    view.mkdir()
    tiny_model("qwen2").save_pretrained(view)
    with pytest.raises(ValueError, match=r"`architectures` \['LlamaForCausalLM'\] and .*began as a copy"):
        check_same_shape(str(path), view, None)


def test_the_command_of_the_server(saved, monkeypatch):
    _, path, view = saved
    view.mkdir()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    command = server_command(path, view, ["--port", "8123"])
    assert command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    options = dict(zip(command[3::2], command[4::2], strict=True))
    assert options["--model"] == str(view)
    assert options["--served-model-name"] == "model"
    assert options["--logits-processors"] == "vgf_llm.serving.engine:VGFLogitsProcessor"
    assert json.loads(options["--additional-config"]) == {"vgf_model": str(path)}
    assert options["--logprobs-mode"] == "processed_logprobs"
    assert options["--port"] == "8123"
    # Nobody else's machine reaches a server whose caller did not say so, and what the caller says comes last.
    assert options["--host"] == "127.0.0.1"
    other = view.parent / "other"
    other.mkdir()
    shared = server_command(path, other, ["--host", "0.0.0.0", "--api-key", "secret"])
    assert shared[-4:] == ["--host", "0.0.0.0", "--api-key", "secret"]
    assert shared.index("127.0.0.1") < shared.index("0.0.0.0")


@pytest.mark.parametrize(
    ("folder", "message"), [("model", "vLLM is not installed.*vgf-llm\\[vllm\\]"), ("nowhere", "does not exist")]
)
def test_serve_says_what_is_missing(saved, monkeypatch, capsys, folder, message):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else find_spec(name, *rest)
    )
    assert main(["serve", str(saved[1].parent / folder), "--port", "8000"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("vgf: error:")
    assert re.search(message, error)


class Layer(nn.Module):
    """The signature of vLLM's logits layer."""

    def forward(self, lm_head, hidden_states, embedding_bias=None):
        return hidden_states @ lm_head.weight.T


def test_the_logits_layer_leaves_its_input(monkeypatch):
    monkeypatch.setattr(CAPTURED, "hidden", None)
    monkeypatch.setattr(CAPTURED, "lm_head", None)
    plain = Layer.forward
    wrap_forward(Layer)
    wrapped = Layer.forward
    wrap_forward(Layer)
    assert Layer.forward is wrapped is not plain
    head, hidden = nn.Linear(4, VOCAB, bias=False), torch.randn(2, 4)
    assert torch.equal(Layer()(head, hidden), plain(None, head, hidden))
    assert CAPTURED.hidden is hidden
    assert torch.equal(CAPTURED.embedding(30), head.weight[:30])
    with pytest.raises(ValueError, match="tensor_parallel_size=1"):
        CAPTURED.embedding(VOCAB + 1)


class EngineModel(nn.Module):
    """What vLLM's models have that the two of a value are asked for."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(4, VOCAB, bias=False)

    def forward(self, input_ids, positions):
        return torch.ones(len(input_ids), 4)

    def compute_logits(self, hidden):
        return self.head(hidden)

    def load_weights(self, weights):
        found = dict(weights)
        self.load_state_dict(found)
        return set(found)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"load_config": {"load_format": "dummy"}}, "`load_format` 'dummy'.*auto, hf, safetensors"),
        ({"model_config": {"quantization": "fp8", "enable_prompt_embeds": False}}, "`quantization`"),
        ({"model_config": {"quantization": None, "enable_prompt_embeds": True}}, "`enable_prompt_embeds`"),
        ({"speculative_config": {"method": "ngram"}}, "`speculative_config`"),
        ({"parallel_config": {"pipeline_parallel_size": 2}}, "`pipeline_parallel_size` above 1"),
    ],
)
def test_engines_that_cannot_run_two_models_are_refused(asked, name):
    plain = {
        "load_config": {"load_format": "auto"},
        "model_config": {"quantization": None, "enable_prompt_embeds": False},
        "speculative_config": None,
        "parallel_config": {"pipeline_parallel_size": 1},
    }

    def engine(settings):
        return SimpleNamespace(**{key: item and SimpleNamespace(**item) for key, item in settings.items()})

    _check_engine(engine(plain))
    config = engine({**plain, **asked})
    with pytest.raises(ValueError, match=f"is not served with {name}"):
        _check_engine(config)


def test_policy_and_value_as_one_model(monkeypatch):
    monkeypatch.setattr("vgf_llm.serving.pair.CAPTURED", captured := Captured())
    both = PolicyAndValueForCausalLM.__new__(PolicyAndValueForCausalLM)
    nn.Module.__init__(both)
    both.policy, both.value, both.reads_logits = EngineModel(0), EngineModel(1), True
    policy, value = torch.randn(VOCAB, 4), torch.randn(VOCAB, 4)
    with pytest.raises(ValueError, match="no weights of the value"):
        both.load_weights([("head.weight", policy)])
    loaded = both.load_weights([("head.weight", policy), ("vgf_value.head.weight", value)])
    assert loaded == {"policy.head.weight", "value.head.weight"}
    ids = torch.tensor([3, 5])
    logits = both.compute_logits(both(ids, ids))
    logits[:] = -torch.inf  # as an engine may
    features = captured.features(build_value("log_ratio", width=4, vocab_size=VOCAB), VOCAB - 1)
    assert torch.allclose(features.ref_logits, policy.sum(1).expand(2, -1)[:, :-1])
    assert torch.allclose(features.value_logits, value.sum(1).expand(2, -1)[:, :-1])


def test_the_engine_s_batch_is_moved_by_what_was_captured(saved, monkeypatch):
    model, path, _ = saved
    value, config = load_served_value(path)
    serving = ServedTransport(value, config.transport, vocab_size=VOCAB)
    requests = {
        0: serving.request({"transport_steps": 0}),
        1: serving.request({"transport_steps": 8, "step_size": 1.0}),
    }
    hidden = torch.randn(2, config.hidden_size)
    logits = hidden @ output_weight(model.policy).detach().T
    monkeypatch.setattr("vgf_llm.serving.engine.CAPTURED", Captured())
    with pytest.raises(RuntimeError, match="VLLM_PLUGINS"):
        apply_captured(serving, logits.clone(), requests)
    captured = Captured(hidden, SimpleNamespace(weight=torch.cat([output_weight(model.policy).detach()] * 2)))
    monkeypatch.setattr("vgf_llm.serving.engine.CAPTURED", captured)
    found = apply_captured(serving, logits.clone(), requests)
    features = StateFeatures(hidden=hidden, embedding=output_weight(model.policy).detach())
    expected = serving.apply(logits.clone(), features, requests)
    assert torch.equal(found, expected)
    assert torch.equal(found[0], logits[0])


def test_parameters_are_checked_before_they_reach_the_engine():
    request = read_request({"transport_steps": 4, "vgf_score_token": 100_000}, TransportConfig())
    assert request.score_token == 100_000
    with pytest.raises(ValueError, match="`step_size`"):
        read_request({"step_size": -1.0}, TransportConfig())


class Endpoint:
    """Answers like an OpenAI client whose server scores a response by its last token."""

    def __init__(self):
        self.completions = self
        self.calls = []

    def create(self, **kwargs):
        self.calls.append(kwargs)
        xargs = kwargs["extra_body"]["vllm_xargs"]
        if "vgf_score_token" in xargs:
            token = xargs["vgf_score_token"]
            partner = 1 if token == 0 else 0
            pair = torch.tensor([token / 10, 0.0]).log_softmax(-1)
            found = {f"token_id:{token}": float(pair[0]), f"token_id:{partner}": float(pair[1])}
            return SimpleNamespace(choices=[SimpleNamespace(logprobs=SimpleNamespace(top_logprobs=[found]))])
        tokens = [[5, 3], [5, 9], [5, 7]]
        choices = [SimpleNamespace(prompt_token_ids=[1, 2], token_ids=ids, text=str(ids)) for ids in tokens]
        return SimpleNamespace(choices=choices)


def test_best_of_takes_the_response_of_highest_value():
    endpoint = Endpoint()
    chosen = best_of(endpoint, "m", "two cats", 3, transport={"transport_steps": 4}, max_tokens=8)
    assert chosen.token_ids == [5, 9]
    assert chosen.value == pytest.approx(0.9)
    assert endpoint.calls[0]["n"] == 3
    assert endpoint.calls[0]["extra_body"]["vllm_xargs"] == {"transport_steps": 4}
    assert [call["prompt"] for call in endpoint.calls[1:]] == [[1, 2, 5]] * 3
    with pytest.raises(ValueError, match="`response_ids` is empty"):
        score(endpoint, "m", [1], [])


def test_the_entry_point_is_declared():
    project = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {"vgf": "vgf_llm.serving.plugin:register"}


def test_a_model_without_a_budget_of_its_own_serves_the_base():
    value = build_value("vocab", width=4, vocab_size=VOCAB)
    assert ServedTransport(value, TransportConfig(transport_steps=0), vocab_size=VOCAB).request(None).is_plain
