# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`VGFModel`: what trains, what is refused, scores, gradients and candidates."""

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from tests.layouts import EOS, LAYOUTS, PAD, VOCAB, prompts, shake, tiny_model, vgf_model
from vgf_llm.functional import candidate_set
from vgf_llm.generation import mask_after_eos
from vgf_llm.models import language_model
from vgf_llm.models.language_model import chosen_logps, logits_of_states, output_weight, output_width
from vgf_llm.models.sampling import Sampling
from vgf_llm.models.value import build_value
from vgf_llm.vgf_model import VGFModel

LOG_RATIO = {"parametrization": "log_ratio", "width": 16, "vocab_size": VOCAB}


def responses() -> tuple[Tensor, Tensor, Tensor]:
    """Prompts with responses of 4, 2 and 4 tokens: ids, attention mask, completion mask."""
    ids, mask = prompts()
    tokens = torch.tensor([[7, 9, 30, 12], [5, EOS, PAD, PAD], [22, 3, 19, EOS]])
    completion_mask = mask_after_eos(tokens, [EOS])
    return torch.cat([ids, tokens], dim=1), torch.cat([mask, completion_mask], dim=1), completion_mask


def lora_policy(name: str = "default") -> Any:
    """A policy with a random LoRA adapter of its own."""
    policy = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules="all-linear"), adapter_name=name)
    shake(policy, std=0.1)
    return policy.eval()


def trained(model: VGFModel) -> set[str]:
    """The parts of a model that hold trained parameters."""
    parts = set()
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        if part == "policy":
            part = next((f"policy.{a}" for a in ("value", "default") if f".{a}." in name and "lora_" in name), part)
        if part == "value_model" and "lm_head" in name:
            part = "value_model.lm_head"
        if parameter.requires_grad:
            parts.add(part)
    return parts


@pytest.mark.parametrize(
    ("parametrization", "backbone", "own_adapter", "value", "policy", "expected"),
    [
        ("bilinear", "policy", False, True, False, {"value"}),
        ("bilinear", "policy", False, True, True, {"value", "policy"}),
        ("bilinear", "policy", False, False, True, {"policy"}),
        ("bilinear", "policy", False, False, False, set()),
        ("bilinear", "policy", True, True, True, {"value", "policy.default"}),
        ("bilinear", "lora", False, True, False, {"value", "policy.value"}),
        ("log_ratio", "lora", False, True, False, {"policy.value"}),
        ("log_ratio", "lora", False, False, True, {"policy"}),
        ("log_ratio", "lora", True, True, False, {"policy.value"}),
        ("log_ratio", "lora", True, False, True, {"policy.default"}),
        ("log_ratio", "lora", True, True, True, {"policy.value", "policy.default"}),
        ("log_ratio", "copy", False, True, False, {"value_model", "value_model.lm_head"}),
        ("vocab", "copy", False, True, False, {"value", "value_model"}),
        ("vocab", "copy", False, True, True, {"value", "value_model", "policy"}),
    ],
)
def test_set_trainable(
    parametrization: str, backbone: str, own_adapter: bool, value: bool, policy: bool, expected: set[str]
) -> None:
    base = lora_policy() if own_adapter else tiny_model("llama")
    head = build_value(parametrization, width=16, vocab_size=VOCAB)
    model = VGFModel(base, head, backbone=backbone, ref_model=tiny_model("llama"))
    assert trained(model) == trained_by_default(parametrization, backbone)
    model.set_trainable(value=value, policy=policy)
    assert trained(model) == expected


def trained_by_default(parametrization: str, backbone: str) -> set[str]:
    """A new model trains its value alone."""
    parts = set() if parametrization == "log_ratio" else {"value"}
    if backbone == "lora":
        parts.add("policy.value")
    if backbone == "copy":
        parts |= {"value_model"} | ({"value_model.lm_head"} if parametrization == "log_ratio" else set())
    return parts


def test_frozen_models_keep_evaluation_mode() -> None:
    model = vgf_model(tiny_model("llama"), "log_ratio", "copy", ref_model=tiny_model("llama")).train()
    assert (model.policy.training, model.value_model.training, model.ref_model.training) == (False, True, False)
    model.set_trainable(value=False, policy=True)
    assert (model.policy.training, model.value_model.training, model.ref_model.training) == (True, False, False)
    model.eval()
    assert not any(module.training for module in model.modules())


def test_a_value_adapter_leaves_the_policy_as_it_was() -> None:
    base, (ids, mask) = tiny_model("llama"), prompts()
    expected = base(ids, attention_mask=mask).logits
    model = vgf_model(base, "log_ratio", "lora")
    assert torch.equal(model.policy(ids, attention_mask=mask).logits, expected)
    policy = lora_policy()
    expected = policy(ids, attention_mask=mask).logits
    model = VGFModel(policy, build_value(**LOG_RATIO), backbone="lora")
    assert torch.equal(model.policy(ids, attention_mask=mask).logits, expected)


def test_the_policys_own_adapter_is_the_active_one() -> None:
    policy = lora_policy()
    policy.add_adapter("second", LoraConfig(r=2, target_modules="all-linear"))
    assert VGFModel(policy).policy_adapter == "default"
    policy.set_adapter("second")
    assert VGFModel(policy).policy_adapter == "second"
    assert vgf_model(tiny_model("llama"), "log_ratio", "lora").policy_adapter is None


@pytest.mark.parametrize("own_reference", [False, True])
@pytest.mark.parametrize("own_adapter", [False, True])
@pytest.mark.parametrize("backbone", ["lora", "copy"])
@torch.no_grad()
def test_log_ratio_scores_are_log_probability_ratios(backbone: str, own_adapter: bool, own_reference: bool) -> None:
    ids, mask, completion_mask = responses()
    base = lora_policy() if own_adapter else tiny_model("llama")
    kwargs = {"value_model": tiny_model("llama", seed=5)} if backbone == "copy" else {}
    if own_reference:
        kwargs["ref_model"] = tiny_model("gpt2", seed=7)
    model = vgf_model(base, "log_ratio", backbone, **kwargs)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)

    def logps(network: Any) -> Tensor:
        logits = network(ids, attention_mask=mask, position_ids=positions).logits[:, 4:-1]
        return logits.log_softmax(-1).gather(-1, ids[:, 5:, None]).squeeze(-1)

    if own_reference:
        ref = logps(model.ref_model)
    elif own_adapter:
        with model.policy.disable_adapter():
            ref = logps(model.policy)
    else:
        ref = logps(tiny_model("llama"))
    if backbone == "copy":
        value = logps(model.value_model)
    else:
        model.policy.base_model.enable_adapter_layers()
        model.policy.set_adapter("value")
        value = logps(model.policy)
        model.policy.set_adapter("default") if own_adapter else model.policy.base_model.disable_adapter_layers()
    real = completion_mask.bool()
    found = model.score(ids, mask, completion_mask)
    torch.testing.assert_close(found.token_scores[real], (value - ref)[real], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.values, ((value - ref) * completion_mask).sum(-1), atol=1e-5, rtol=1e-4)
    cached = model(ids, mask, 4, ref_logps=model.ref_logps(ids, mask, 4)).scores
    torch.testing.assert_close(cached, found.token_scores)


@torch.no_grad()
def test_head_scores_read_the_state_before_a_token() -> None:
    ids, mask, completion_mask = responses()
    base = tiny_model("llama")
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    hidden = base.model(ids, attention_mask=mask, position_ids=positions).last_hidden_state
    q = vgf_model(base, "bilinear")
    head = q.value.head
    expected = (head.out(hidden) * base.lm_head.weight[ids.roll(-1, 1)]).sum(-1) + head.baseline(hidden).squeeze(-1)
    scored = q.score(ids, mask, completion_mask)
    torch.testing.assert_close(scored.token_scores, expected[:, 4:-1], atol=1e-5, rtol=1e-4)
    assert torch.equal(scored.values, scored.token_scores[torch.arange(3), torch.tensor([3, 1, 3])])


def test_an_empty_response_has_value_zero() -> None:
    ids, mask, completion_mask = responses()
    completion_mask[1] = 0
    mask[1, 5:] = 0
    assert vgf_model(tiny_model("llama"), "vocab").score(ids, mask, completion_mask).values[1] == 0


@torch.no_grad()
def test_candidate_values_are_the_references_candidates_with_their_potentials() -> None:
    ids, mask, _ = responses()
    model = vgf_model(tiny_model("llama"), "vocab")
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    hidden = model.policy.model(ids, attention_mask=mask, position_ids=positions).last_hidden_state[:, 4:-1]
    logits = model.policy.lm_head(hidden)
    found = model.candidate_values(ids, mask, 4, top_k=5, min_prob=0.05)
    expected_ids, expected_mask = candidate_set(logits, top_k=5, min_prob=0.05)
    assert torch.equal(found.ids, expected_ids) and torch.equal(found.mask, expected_mask)
    torch.testing.assert_close(found.logits, logits.log_softmax(-1).gather(-1, found.ids), atol=1e-6, rtol=1e-5)
    scores = model.value.head.out(hidden).gather(-1, found.ids)
    torch.testing.assert_close(found.q_values, torch.nn.functional.logsigmoid(scores), atol=1e-6, rtol=1e-5)


def test_policy_logps_are_the_policys_with_its_adapter_and_carry_its_gradient() -> None:
    ids, mask, _ = responses()
    model = VGFModel(lora_policy(), build_value(**LOG_RATIO), backbone="lora").eval()
    model.set_trainable(value=False, policy=True)
    candidates = torch.randint(VOCAB, (3, 4, 6))
    found = model(ids, mask, 4, candidate_ids=candidates).policy_logps
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model.policy(ids, attention_mask=mask, position_ids=positions).logits[:, 4:-1]
    torch.testing.assert_close(found, logits.log_softmax(-1).gather(-1, candidates), atol=1e-5, rtol=1e-4)
    found.sum().backward()
    assert all((p.grad is not None) == (".default." in name) for name, p in model.policy.named_parameters())


@pytest.mark.parametrize(
    ("parametrization", "backbone"), [("vocab", "policy"), ("bilinear", "lora"), ("log_ratio", "lora")]
)
def test_one_forward_for_distillation_gives_what_separate_ones_give(parametrization: str, backbone: str) -> None:
    ids, mask, _ = responses()
    model = vgf_model(lora_policy(), parametrization, backbone).eval()
    model.set_trainable(value=True, policy=True)
    separate = model.candidate_values(ids, mask, 4, top_k=5, min_prob=0.05)
    expected = model(ids, mask, 4, candidate_ids=separate.ids)
    calls = []
    model.policy.get_base_model().base_model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    found = model(ids, mask, 4, candidates=(5, 0.05))
    # the reference, the policy, and the value where it has an adapter, with log-ratios of the reference once more;
    # each reads prompts, then responses
    gradients = {"vocab": [False, True], "bilinear": [False, True, True], "log_ratio": [False, False, True, True]}
    assert sorted(calls) == [grad for grad in gradients[parametrization] for _ in range(2)]
    for name in ("ids", "mask", "logits", "q_values"):
        torch.testing.assert_close(getattr(found.candidates, name), getattr(separate, name))
        assert not getattr(found.candidates, name).requires_grad
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.policy_logps, expected.policy_logps)
    (gradients, wanted) = (
        torch.autograd.grad(
            out.policy_logps.sum() + out.scores.sum(), [p for p in model.parameters() if p.requires_grad]
        )
        for out in (found, expected)
    )
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other)
    with pytest.raises(ValueError, match="exclude each other"):
        model(ids, mask, 4, candidates=(5, 0.05), candidate_ids=separate.ids)


def test_features_with_dropout_are_not_the_targets() -> None:
    ids, mask, _ = responses()
    policy = tiny_model("llama")
    policy.config.attention_dropout = 0.9
    for layer in policy.model.layers:
        layer.self_attn.attention_dropout = 0.9
    model = vgf_model(policy, "vocab")
    model.set_trainable(value=True, policy=True)
    expected = model.eval().candidate_values(ids, mask, 4, top_k=5, min_prob=0.05)
    found = model.train()(ids, mask, 4, candidates=(5, 0.05)).candidates
    assert model.policy.training
    torch.testing.assert_close(found.q_values, expected.q_values)


@pytest.mark.parametrize("trains", [True, False])
def test_log_probabilities_a_few_states_at_a_time_are_those_of_all(trains: bool, monkeypatch: Any) -> None:
    policy = tiny_model("gemma2").requires_grad_(trains)  # its logits are capped
    hidden = torch.randn(3, 5, output_width(policy), requires_grad=True)
    ids = torch.randint(VOCAB, (3, 5, 2))
    logits = logits_of_states(policy, hidden)
    expected = logits.log_softmax(dim=-1).gather(-1, ids)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), hidden)[0]
    for count in (1, 4, 15, 256):
        monkeypatch.setattr(language_model, "STATES_AT_A_TIME", count)
        found = chosen_logps(policy, hidden, ids)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), hidden)[0], wanted)
        with torch.no_grad():
            torch.testing.assert_close(chosen_logps(policy, hidden, ids), expected)


def test_entropies_and_their_gradients_are_those_of_the_formula(monkeypatch: Any) -> None:
    policy = tiny_model("llama").requires_grad_(False)
    hidden, ids = torch.randn(2, 5, output_width(policy), requires_grad=True), torch.randint(VOCAB, (2, 5, 1))
    samplings, temperatures = (Sampling(0.5, top_k=3), Sampling(2.0)), torch.tensor([2.0, 0.5]).view(2, 1, 1)
    # H = -sum p log p of the logits z over the temperature t, over all tokens; dH/dz = -p (log p + H) / t.
    logps = (logits_of_states(policy, hidden.detach()) / temperatures).log_softmax(dim=-1)
    expected = -(logps.exp() * logps).sum(dim=-1)
    slopes = -logps.exp() * (logps + expected.unsqueeze(-1)) / temperatures
    weights = torch.randn(2, 5)
    wanted = (weights.unsqueeze(-1) * slopes) @ output_weight(policy)
    sampler = torch.tensor([1, 0])
    plain = chosen_logps(policy, hidden, ids, samplings=samplings, sampler=sampler)
    for count in (1, 3, 256):
        monkeypatch.setattr(language_model, "STATES_AT_A_TIME", count)
        found = chosen_logps(policy, hidden, ids, samplings=samplings, sampler=sampler, entropy=True)
        torch.testing.assert_close(found[..., :1], plain)
        torch.testing.assert_close(found[..., 1], expected)
        (gradient,) = torch.autograd.grad((found[..., 1] * weights).sum(), hidden)
        torch.testing.assert_close(gradient, wanted)


def test_a_token_that_the_model_excludes_leaves_its_entropy_finite(monkeypatch: Any) -> None:
    policy = tiny_model("llama").requires_grad_(False)
    excluded = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    monkeypatch.setattr(language_model, "logits_of_states", lambda model, states: states)
    found = chosen_logps(policy, excluded.unsqueeze(0), torch.zeros(1, 1, 1, dtype=torch.long), entropy=True)
    assert found[0, 0].tolist() == pytest.approx([-math.log(2), math.log(2)])
    (gradient,) = torch.autograd.grad(found[..., 1].sum(), excluded)
    assert gradient.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("parametrization", "backbone"), [("log_ratio", "lora"), ("bilinear", "lora"), ("log_ratio", "copy")]
)
@pytest.mark.parametrize("layout", ["llama", "gemma2", "gpt2", "gpt_neox", "opt_projected"])
def test_gradient_checkpointing_changes_no_gradient(layout: str, parametrization: str, backbone: str) -> None:
    ids, mask, completion_mask = responses()
    model = vgf_model(tiny_model(layout), parametrization, backbone).train()
    model.set_trainable(value=True, policy=True)
    candidates = torch.randint(VOCAB, (3, 4, 6))

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        out = model(ids, mask, 4, candidate_ids=candidates)
        (out.scores * completion_mask).sum().sub(out.policy_logps.mean()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    model.gradient_checkpointing_enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    found = gradients()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
    model.gradient_checkpointing_disable()
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    with pytest.raises(ValueError, match="use_reentrant"):
        model.gradient_checkpointing_enable({"use_reentrant": True})


def other_vocabulary() -> Any:
    return tiny_model("llama", vocab_size=VOCAB + 1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VGFModel(tiny_model(), backbone="adapter"), r"`backbone` must be.*'adapter'"),
        (lambda: VGFModel(tiny_model(), build_value(**LOG_RATIO)), "log_ratio value needs weights of its own"),
        (lambda: VGFModel(tiny_model(), value_model=other_vocabulary()), "`value_model` has 41 logits, the policy 40"),
        (lambda: VGFModel(lora_policy(), backbone="copy"), "`backbone='copy'` copies a plain model"),
        (
            lambda: VGFModel(tiny_model(), build_value("bilinear", width=8, vocab_size=VOCAB)),
            "BilinearQHead of width 8; these models need width 16",
        ),
        (
            lambda: VGFModel(tiny_model(), build_value("vocab", width=16, vocab_size=VOCAB + 1)),
            "QHead of vocab_size 41; these models need vocab_size 40",
        ),
        (
            lambda: VGFModel(tiny_model(), build_value("bilinear", width=16, vocab_size=VOCAB, embedding_width=9)),
            "embedding_width 9",
        ),
        (lambda: build_value("q_head", width=8, vocab_size=9), "`parametrization` must be one of.*'q_head'"),
        (lambda: build_value("v_head", width=8, vocab_size=9), "'v_head'. Values of a state alone are no longer"),
        (lambda: build_value("vocab", width=8, vocab_size=9, reward_kind="gold"), "`reward_kind` must be.*'gold'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_default_model_transports_nothing() -> None:
    model = VGFModel(tiny_model("llama"))
    ids, mask, completion_mask = responses()
    assert model.value.parametrization == "bilinear"
    assert not model.score(ids, mask, completion_mask).token_scores.any()


def test_layouts_are_those_that_the_documentation_names() -> None:
    assert {"llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "gpt2", "gpt_neox", "opt"} <= set(LAYOUTS)


def test_embeddings_are_the_policys() -> None:
    """What the Trainer asks of a model: noise on embeddings goes on the policy's, whatever else the model holds."""
    model = vgf_model(tiny_model("llama"), "log_ratio", "copy")
    assert model.get_input_embeddings() is model.policy.model.embed_tokens
    assert model.get_output_embeddings() is model.policy.lm_head


@pytest.mark.parametrize("wrap", [False, True])
def test_layers_that_only_the_policy_has_are_found_and_nothing_else_of_it(wrap: bool) -> None:
    policy = lora_policy() if wrap else tiny_model("llama")
    model = VGFModel(policy, backbone="lora")
    assert isinstance(model.lm_head, torch.nn.Linear) and model.lm_head is model.get_output_embeddings()
    assert "lm_head.weight" not in dict(model.named_parameters())  # found, not held a second time
    for name in ("peft_config", "hf_device_map", "name_or_path"):
        with pytest.raises(AttributeError, match=f"'VGFModel' object has no attribute '{name}'"):
            getattr(model, name)


class Detached(LlamaForCausalLM):
    """A layout whose logits are not made of its backbone's hidden states alone."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        out = super().forward(input_ids=input_ids, **kwargs)
        out.logits = out.logits + self.model.embed_tokens(input_ids).sum(-1, keepdim=True)[:, -out.logits.shape[1] :]
        return out


def test_a_layout_whose_states_do_not_give_its_logits_is_refused_by_name() -> None:
    base = Detached(tiny_model("llama").config)
    with pytest.raises(ValueError, match="The hidden states of Detached do not give its logits"):
        VGFModel(base)
    with pytest.raises(ValueError, match="The hidden states of Detached do not give its logits"):
        VGFModel(tiny_model("llama"), build_value(**LOG_RATIO), value_model=base)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_no_pass_holds_the_logits_of_all_states(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "STATES_AT_A_TIME", 4)
    ids, mask, completion_mask = responses()
    model = vgf_model(tiny_model("llama"), "log_ratio", "lora")
    largest = LargestTensor()
    with largest:
        settings = {"samplings": (Sampling(temperature=temperature, top_p=0.9),)}
        model(ids, mask, 4, **settings).scores.sum().backward()
        model.score(ids, mask, completion_mask, **settings)
    assert 0 < largest.rows <= 4


class LargestTensor(TorchDispatchMode):
    """The most rows of a tensor of activations whose last dimension is the vocabulary."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dim() > 1 and out.shape[-1] == VOCAB and out.shape[-2] != 16:
            self.rows = max(self.rows, out.numel() // VOCAB)
        return out


@pytest.mark.parametrize(
    ("name", "losses", "outcomes", "graded", "contrast"),
    [
        ("log_ratio", ("likelihood", "pairwise", "bernoulli"), "likelihood", "pairwise", True),
        ("bilinear", ("bernoulli", "regression", "pairwise"), "bernoulli", "regression", False),
        ("vocab", ("bernoulli", "regression", "pairwise"), "bernoulli", "regression", False),
    ],
)
def test_a_value_says_how_it_is_trained(
    name: str, losses: tuple[str, ...], outcomes: str, graded: str, contrast: bool
) -> None:
    value = build_value(name, width=16, vocab_size=VOCAB)
    assert (value.losses, value.needs_contrast) == (losses, contrast)
    assert value.default_loss(outcomes=True, pairs=False) == outcomes
    assert value.default_loss(outcomes=False, pairs=False) == graded
    assert value.default_loss(outcomes=True, pairs=True) == "pairwise"
    reads = {loss for loss in losses if value.needs_reference(loss)}
    assert reads == ({"pairwise", "bernoulli"} if name == "log_ratio" else set())
