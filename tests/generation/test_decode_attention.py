# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`decode_attention` against torch's fused kernel, and where it is used."""

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from vgf_llm.generation import decode_attention, decoding_attention
from vgf_llm.models import VGFModel, build_value


def layer(groups=1):
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = groups, True
    return module


def llama(**overrides):
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, **overrides)
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("queries", [1, 3])
def test_it_is_the_fused_kernels_result(groups, mask, queries):
    generator = torch.Generator().manual_seed(groups)
    query = torch.randn(3, 4, queries, 8, generator=generator)
    key, value = torch.randn(2, 3, 4 // groups, 6, 8, generator=generator)
    allowed = torch.rand(3, 1, queries, 6, generator=generator) > 0.4
    allowed[..., 0] = True
    given = {"none": None, "bool": allowed, "float": torch.zeros(allowed.shape).masked_fill(~allowed, -1e30)}[mask]
    options = {"scaling": 0.3}
    expected, _ = AttentionInterface()["sdpa"](layer(groups), query, key, value, given, **options)
    found, weights = decode_attention(layer(groups), query, key, value, given, **options)
    assert weights is None
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_what_is_not_plain_goes_to_the_fused_kernel(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(a) or a[0])
    states = torch.randn(2, 4, 1, 8)
    decode_attention(layer(), states, states, states, None)
    assert not calls
    decode_attention(layer(), states.requires_grad_(), states, states, None)
    decode_attention(layer(), states.detach().bfloat16(), states.bfloat16(), states.bfloat16(), None)
    decode_attention(layer(), states.detach(), states, states, None, dropout=0.1)
    decode_attention(layer(), states.detach(), states, states, torch.zeros(2, 4, 1, 1))  # a mask of every head's own
    assert len(calls) == 4


def test_what_the_fused_kernel_refuses_is_refused():
    states = torch.randn(2, 4, 1, 8)
    with pytest.raises(ValueError, match="softcap"):
        decode_attention(layer(), states, states, states, None, softcap=30.0)


@pytest.mark.parametrize("cache_implementation", [None, "static"])
def test_samples_are_the_same_and_the_model_is_left_as_it_was(cache_implementation):
    model = llama()
    ids = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]])
    options = {"attention_mask": (ids > 0).long(), "do_sample": True, "min_new_tokens": 9, "max_new_tokens": 9}
    options |= {"cache_implementation": cache_implementation, "output_logits": True, "return_dict_in_generate": True}
    torch.manual_seed(1)
    plain = model.generate(ids, disable_compile=True, **options)
    torch.manual_seed(1)
    with decoding_attention(model, None, model):
        assert model.config._attn_implementation == "vgf_decode"
        fast = model.generate(ids, disable_compile=True, **options)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(fast.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(fast.logits), torch.stack(plain.logits), atol=1e-5, rtol=1e-4)


def test_an_error_leaves_the_model_as_it_was():
    model = llama()
    with pytest.raises(RuntimeError, match="sampling failed"), decoding_attention(model):
        raise RuntimeError("sampling failed")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("case", ["eager", "bfloat16"])
def test_other_kernels_and_precisions_stay(case):
    model = llama(attn_implementation="eager") if case == "eager" else llama().bfloat16()
    before = model.config._attn_implementation
    with decoding_attention(model):
        assert model.config._attn_implementation == before


def test_transport_decodes_with_it(monkeypatch):
    policy = llama()
    value = build_value("log_ratio", width=16, vocab_size=32)
    model = VGFModel(policy, value, backbone="copy").eval()
    seen = []
    forward = policy.model.forward

    def recorded(*args, **kwargs):
        seen.append((policy.config._attn_implementation, model.value_model.config._attn_implementation))
        return forward(*args, **kwargs)

    monkeypatch.setattr(policy.model, "forward", recorded)
    model.generate(torch.tensor([[1, 5]]), transport_steps=2, max_new_tokens=3, do_sample=True)
    assert set(seen) == {("vgf_decode", "vgf_decode")}
    seen.clear()
    model.generate(torch.tensor([[1, 5]]), transport_steps=0, max_new_tokens=3)
    assert set(seen) == {("sdpa", "sdpa")}  # a budget of 0 is the base's own generate
