# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Backbone and output embedding, apart and together, on every layout."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaModel, PreTrainedModel

from tests.layouts import LAYOUTS, VOCAB, broad_model, prompts, tiny_model
from vgf_llm.models.language_model import (
    inner_model,
    last_hidden_states,
    logits_of_states,
    output_embedding,
    output_vocab_size,
    output_width,
    position_ids_from_mask,
)


@pytest.fixture(scope="module", params=LAYOUTS)
def base(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@torch.no_grad()
def test_backbone_and_output_embedding_give_the_models_own_logits(base: PreTrainedModel) -> None:
    ids, mask = prompts()
    expected = base(ids, attention_mask=mask, position_ids=position_ids_from_mask(mask)).logits
    hidden = last_hidden_states(base, ids, mask)
    assert hidden.shape == (*ids.shape, output_width(base))
    found = logits_of_states(base, hidden)
    real = mask.bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_left_padding_does_not_change_a_prompts_logits(base: PreTrainedModel) -> None:
    ids, mask = prompts()
    batched = logits_of_states(base, last_hidden_states(base, ids, mask))
    for row, row_ids, row_mask in zip(batched, ids, mask, strict=True):
        alone = row_ids[row_mask.bool()].unsqueeze(0)
        torch.testing.assert_close(row[row_mask.bool()], base(alone).logits[0], atol=2e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["cohere", "falcon_h1", "granite", "recurrent_gemma", "gemma2"])
def test_scales_and_caps_are_the_models_own(layout: str) -> None:
    base = broad_model(layout)
    ids = torch.tensor([[5, 9, 77, 31], [4, 8, 15, 16]])
    expected = base(ids).logits
    torch.testing.assert_close(logits_of_states(base, last_hidden_states(base, ids, torch.ones_like(ids))), expected)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(output_embedding(base)(base.base_model(ids).last_hidden_state), expected)


def test_a_bias_of_the_output_embedding_counts() -> None:
    base = tiny_model("llama")
    biased = torch.nn.Linear(16, VOCAB)
    torch.nn.init.normal_(biased.bias)
    base.set_output_embeddings(biased)
    hidden = torch.randn(2, 3, 16)
    torch.testing.assert_close(logits_of_states(base, hidden), biased(hidden))


def test_running_a_model_leaves_no_trace_on_it() -> None:
    base, (ids, mask) = tiny_model("opt_projected"), prompts()
    modules, state = dict(base.named_modules()), {name: dict(module.__dict__) for name, module in base.named_modules()}
    logits_of_states(base, last_hidden_states(base, ids, mask))
    assert dict(base.named_modules()) == modules
    assert {name: dict(module.__dict__) for name, module in base.named_modules()} == state


def test_the_inner_model_of_a_peft_model_is_the_model() -> None:
    base = tiny_model("llama")
    wrapped = get_peft_model(base, LoraConfig(target_modules="all-linear"))
    assert inner_model(wrapped) is base
    assert output_embedding(wrapped) is base.lm_head
    assert output_vocab_size(wrapped) == VOCAB


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="PreTrainedModel or a PeftModel around one, got Linear"):
        inner_model(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="LlamaModel is not a causal language model"):
        output_embedding(LlamaModel(tiny_model("llama").config))
