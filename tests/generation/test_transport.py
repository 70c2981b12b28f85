# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What transport does to next-token distributions while decoding, against the base's own logits."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from tests.layouts import EOS, VOCAB, prompts, shake, tiny_model, vgf_model
from vgf_llm.functional import candidate_set
from vgf_llm.generation import VGFGenerateOutput, mask_after_eos
from vgf_llm.models import StateFeatures, TransportConfig, VGFModel, build_value
from vgf_llm.models.language_model import last_hidden_states
from vgf_llm.spaces import DecodeState, LogitSpace

LENGTH = 6
TRANSPORT = {"transport_steps": 4, "step_size": 0.5, "top_k_candidates": 10, "min_candidate_prob": 0.03}


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return tiny_model("llama")


def generate(model: VGFModel, seed: int = 5, **kwargs: Any) -> VGFGenerateOutput:
    ids, mask = prompts()
    torch.manual_seed(seed)
    settings = {**TRANSPORT, "do_sample": True, "max_new_tokens": LENGTH, "num_particles": 4, **kwargs}
    return model.generate(
        ids, mask, return_dict_in_generate=True, output_scores=True, output_logits=True, top_k=0, **settings
    )


def decoded(out: VGFGenerateOutput) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences [R, P + T], their attention mask and the mask [R, T] of response tokens."""
    ids, mask = prompts()
    sequences = out.particle_sequences.flatten(0, 1)
    completion_mask = mask_after_eos(sequences[:, ids.shape[1] :], [EOS])
    return sequences, torch.cat([mask.repeat_interleave(len(sequences) // 3, 0), completion_mask], 1), completion_mask


@torch.no_grad()
def base_log_probs(base: PreTrainedModel, out: VGFGenerateOutput) -> Tensor:
    """The base's next-token distribution of every response state, teacher-forced, [R, T, V], in float64."""
    sequences, attention, completion_mask = decoded(out)
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    logits = base(sequences, attention_mask=attention, position_ids=positions).logits
    return logits[:, -completion_mask.shape[1] - 1 : -1].double().log_softmax(-1)


def transported_log_probs(out: VGFGenerateOutput) -> Tensor:
    return torch.stack(out.scores, dim=1).double().log_softmax(-1)


def candidates(log_probs: Tensor, top_k: int = 10, min_prob: float = 0.03) -> Tensor:
    """Which tokens transport may choose, [R, T, V]."""
    kth = log_probs.topk(top_k, dim=-1).values[..., -1:]
    best = log_probs == log_probs.amax(-1, keepdim=True)
    return (log_probs >= kth) & (log_probs.exp() >= min_prob) | best


def full_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0).sum(-1)


@torch.no_grad()
def test_head_transport_is_the_tilt_by_the_heads_weights(base: PreTrainedModel) -> None:
    model = vgf_model(base, "vocab", head_hidden_size=12, std=0.5)
    out = generate(model)
    sequences, attention, completion_mask = decoded(out)
    mu = base_log_probs(base, out)
    hidden = last_hidden_states(base, sequences, attention)[:, -LENGTH - 1 : -1]
    head = model.value.head
    scores = torch.nn.functional.silu(hidden @ head.trunk[0].weight.T + head.trunk[0].bias) @ head.out.weight.T
    gain = torch.nn.functional.logsigmoid(scores + head.out.bias).double()
    expected = (mu + 2.0 * gain).masked_fill(~candidates(mu), -torch.inf).log_softmax(-1)
    real = completion_mask.bool()
    torch.testing.assert_close(transported_log_probs(out)[real], expected[real], atol=1e-4, rtol=1e-4)
    kl = full_kl(expected, mu) * completion_mask
    torch.testing.assert_close(out.kl.flatten(0, 1).double(), kl, atol=1e-4, rtol=1e-3)


def log_ratio_model(kind: str, own_adapter: bool) -> VGFModel:
    """A log-ratio value with or without an adapter of the policy, an own value model and an own reference."""
    policy: Any = tiny_model("llama")
    if own_adapter:
        policy = get_peft_model(policy, LoraConfig(r=2, target_modules="all-linear")).eval()
        shake(policy, seed=4, std=0.1)
    kwargs: dict[str, Any] = {"backbone": "lora"}
    if "model" in kind:
        kwargs = {"value_model": tiny_model("gpt2", seed=6)}
    if "reference" in kind:
        kwargs["ref_model"] = tiny_model("qwen2", seed=8)
    model = VGFModel(policy, build_value("log_ratio", width=16, vocab_size=VOCAB), **kwargs).eval()
    shake(model, seed=2, std=0.1)
    return model


@pytest.mark.parametrize("kind", ["lora", "model", "lora, reference", "model, reference"])
@pytest.mark.parametrize("own_adapter", [False, True], ids=["plain policy", "policy with an adapter"])
def test_log_ratio_transport_with_every_row_block(kind: str, own_adapter: bool) -> None:
    model = log_ratio_model(kind, own_adapter)
    expected_blocks = 1 + ("lora" in kind) + (own_adapter and "reference" not in kind)
    assert len(model.value_blocks()) == expected_blocks
    out = generate(model)
    sequences, attention, completion_mask = decoded(out)
    real = completion_mask.bool()
    with torch.no_grad():
        scored = model.score(sequences, attention, completion_mask).token_scores
        every = torch.arange(VOCAB).expand(*completion_mask.shape, VOCAB)
        policy_logps = model(sequences, attention, LENGTH, candidate_ids=every).policy_logps.double()
        found = model.candidate_values(sequences, attention, LENGTH, top_k=VOCAB, min_prob=0.0)
    torch.testing.assert_close(out.token_scores.flatten(0, 1)[real], scored[real], atol=1e-4, rtol=1e-3)
    gain = torch.zeros_like(policy_logps).scatter(-1, found.ids, found.q_values.double())
    expected = (policy_logps + 2.0 * gain).masked_fill(~candidates(policy_logps), -torch.inf).log_softmax(-1)
    torch.testing.assert_close(transported_log_probs(out)[real], expected[real], atol=1e-3, rtol=1e-3)


def test_a_log_ratio_value_does_not_see_what_processors_did(base: PreTrainedModel) -> None:
    model = vgf_model(base, "log_ratio", "lora")
    out = generate(model, suppress_tokens=[7, 8, 9, 10, 11, 12], repetition_penalty=1.5)
    sequences, attention, completion_mask = decoded(out)
    assert not torch.isin(sequences[:, 5:], torch.arange(7, 13)).any()
    scored = model.score(sequences, attention, completion_mask).token_scores * completion_mask
    torch.testing.assert_close(out.token_scores.flatten(0, 1), scored, atol=1e-4, rtol=1e-3)


def test_at_budget_one_the_log_ratio_is_the_adapted_model_on_the_support(base: PreTrainedModel) -> None:
    model = vgf_model(base, "log_ratio", "copy")
    out = generate(model, transport_steps=8, step_size=0.125)
    real = decoded(out)[2].bool()
    mu, pi = base_log_probs(base, out), base_log_probs(model.value_model, out)
    expected = pi.masked_fill(~candidates(mu), -torch.inf).log_softmax(-1)
    torch.testing.assert_close(transported_log_probs(out)[real], expected[real], atol=1e-4, rtol=1e-4)


def test_only_the_product_of_steps_and_step_size_matters(base: PreTrainedModel) -> None:
    model = vgf_model(base, "bilinear")
    one, many = generate(model, transport_steps=1, step_size=2.0), generate(model, transport_steps=16, step_size=0.125)
    assert torch.equal(one.particle_sequences, many.particle_sequences)
    torch.testing.assert_close(one.kl, many.kl, atol=1e-6, rtol=1e-5)
    less = generate(model, transport_steps=1, step_size=0.5)
    assert less.kl.mean() < one.kl.mean()


def test_alpha_reaches_the_flow(base: PreTrainedModel) -> None:
    model = vgf_model(base, "bilinear", std=0.5)
    out = generate(model, alpha=0.5, step_size=1.0, transport_steps=50)  # one step of size 1 is at the target
    equal = generate(model, step_size=2.0, transport_steps=1)
    assert torch.equal(out.particle_sequences, equal.particle_sequences)
    torch.testing.assert_close(out.kl, equal.kl, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"interaction": True, "repulsion": True}])
def test_every_token_is_a_candidate_of_the_base(base: PreTrainedModel, settings: dict[str, Any]) -> None:
    out = generate(vgf_model(base, "bilinear", std=0.5), step_size=4.0, temperature=2.0, **settings)
    sequences, _, completion_mask = decoded(out)
    allowed = candidates(base_log_probs(base, out)).gather(-1, sequences[:, 5:, None]).squeeze(-1)
    assert allowed[completion_mask.bool()].all()


@pytest.mark.parametrize("max_kl", [1e-4, 0.05, 0.3, 1.0])
def test_max_kl_is_never_exceeded(base: PreTrainedModel, max_kl: float) -> None:
    model = vgf_model(base, "vocab", std=1.0)
    out = generate(model, max_kl=max_kl, step_size=5.0)
    real = decoded(out)[2].bool()
    mu = base_log_probs(base, out)
    spent = full_kl(transported_log_probs(out), mu)[real]
    assert spent.max() <= max_kl + 2e-5
    assert out.kl.max() <= max_kl + 1e-6
    torch.testing.assert_close(out.kl.flatten(0, 1)[real].double(), spent, atol=5e-5, rtol=1e-3)
    price = -mu.masked_fill(~candidates(mu), -torch.inf).logsumexp(-1)[real]
    assert (spent[price > max_kl + 1e-4].abs() < 1e-5).all()  # left to the base: the mask alone costs too much
    affordable = price < max_kl - 1e-3
    if max_kl == 1.0:
        assert affordable.all()
    if max_kl >= 0.3:  # the flow is strong, so what it may spend it does spend
        several = candidates(mu)[real].sum(-1) > 1
        assert (spent[affordable & several] > 0.7 * max_kl).float().mean() > 0.2
        free = full_kl(transported_log_probs(generate(model, step_size=5.0)), mu)
        assert free.max() > max_kl


def test_a_row_left_to_the_base_is_the_base(base: PreTrainedModel) -> None:
    out = generate(vgf_model(base, "vocab", std=1.0), max_kl=1e-5, top_k_candidates=2)
    real = decoded(out)[2].bool()
    torch.testing.assert_close(transported_log_probs(out)[real], base_log_probs(base, out)[real], atol=1e-4, rtol=1e-4)


def test_low_entropy_tokens_are_left_alone(base: PreTrainedModel) -> None:
    gate = 2.6
    out = generate(vgf_model(base, "vocab", std=1.0), min_entropy=gate, step_size=2.0)
    real = decoded(out)[2].bool()
    mu, moved = base_log_probs(base, out), transported_log_probs(out)
    entropy = -(mu.exp() * mu).sum(-1)
    low, high = real & (entropy < gate - 1e-3), real & (entropy > gate + 1e-3)
    assert low.sum() > 5 and high.sum() > 5
    torch.testing.assert_close(moved[low], mu[low], atol=1e-4, rtol=1e-4)
    assert not out.kl.flatten(0, 1)[low].any()
    assert (moved[high] == -torch.inf).any(-1).all()
    assert (out.kl.flatten(0, 1)[high] > 0).all()


def test_random_control_spends_as_much_and_goes_elsewhere(base: PreTrainedModel) -> None:
    model = vgf_model(base, "bilinear", std=0.5)
    small = {"num_particles": 64, "step_size": 0.01, "top_k_candidates": VOCAB, "min_candidate_prob": 0.0}
    spent = generate(model, **small).kl[:, :, 0].mean(1)  # a small budget costs half the variance of its direction
    found = generate(model, control="random", **small).kl[:, :, 0].mean(1)
    torch.testing.assert_close(found, spent, atol=0, rtol=0.1)
    plain = generate(model, num_particles=64, transport_steps=0)
    moved = generate(model, num_particles=64)
    control = generate(model, num_particles=64, control="random")
    error = plain.values.std() / (3 * 64) ** 0.5
    assert moved.values.mean() > plain.values.mean() + 3 * error
    assert moved.values.mean() > control.values.mean() + 3 * error


@torch.no_grad()
def test_the_particles_of_one_prompt_interact(base: PreTrainedModel) -> None:
    model = vgf_model(base, "bilinear", std=0.5)
    settings = {"interaction": True, "repulsion": True, "num_particles": 4}
    out = generate(model, **settings)
    sequences, attention, completion_mask = decoded(out)
    step = 1  # at step 0 the particles of a prompt are all alike
    alive = completion_mask[:, step].bool().view(3, 4).all(-1)
    assert alive.any()
    mu = base_log_probs(base, out)[:, step].float()
    hidden = last_hidden_states(base, sequences, attention)[:, 5 + step - 1]
    ids, mask = candidate_set(mu, top_k=10, min_prob=0.03)
    differences = []
    for prompt in alive.nonzero().flatten().tolist():
        rows = slice(4 * prompt, 4 * prompt + 4)
        state = DecodeState(
            ids[rows],
            mask[rows],
            mu[rows].gather(-1, ids[rows]),
            StateFeatures(hidden=hidden[rows], embedding=base.lm_head.weight),
            num_particles=4,
        )
        transport = TransportConfig(step_size=0.5, transport_steps=4, interaction=True, repulsion=True)
        found = transported_log_probs(out)[rows, step].gather(-1, ids[rows])
        expected = LogitSpace(model.value, transport).transport(state).logits.double()
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        lonely = LogitSpace(model.value, TransportConfig(step_size=0.5, transport_steps=4)).transport(state).logits
        differences.append(float((found.exp() - lonely.double().exp()).abs().max()))
    assert max(differences) > 0.02
