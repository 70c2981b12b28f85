# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Backbone and output embedding, apart and together, on every layout."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaModel, PreTrainedModel

from tests.layouts import LAYOUTS, VOCAB, prompts, tiny_model
from vgf_llm.models.language_model import (
    inner_model,
    last_hidden_states,
    output_embedding,
    output_vocab_size,
    output_width,
    position_ids_from_mask,
    project_hidden,
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
    found = project_hidden(base, hidden)
    real = mask.bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_left_padding_does_not_change_a_prompts_logits(base: PreTrainedModel) -> None:
    ids, mask = prompts()
    batched = project_hidden(base, last_hidden_states(base, ids, mask))
    for row, row_ids, row_mask in zip(batched, ids, mask, strict=True):
        alone = row_ids[row_mask.bool()].unsqueeze(0)
        torch.testing.assert_close(row[row_mask.bool()], base(alone).logits[0], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_candidate_rows_are_the_full_projections_rows(base: PreTrainedModel) -> None:
    hidden = last_hidden_states(base, *prompts())
    candidates = torch.randint(VOCAB, (*hidden.shape[:2], 7))
    expected = project_hidden(base, hidden).gather(-1, candidates)
    torch.testing.assert_close(project_hidden(base, hidden, candidates), expected, atol=1e-6, rtol=1e-5)


def test_a_bias_of_the_output_embedding_counts_for_candidates() -> None:
    base = tiny_model("llama")
    biased = torch.nn.Linear(16, VOCAB)
    torch.nn.init.normal_(biased.bias)
    base.set_output_embeddings(biased)
    hidden, candidates = torch.randn(2, 16), torch.tensor([[3, 4], [0, 39]])
    expected = biased(hidden).gather(-1, candidates)
    torch.testing.assert_close(project_hidden(base, hidden, candidates), expected)


def test_logits_scaling_divides() -> None:
    base = tiny_model("llama", logits_scaling=4.0)
    hidden = torch.randn(2, 16)
    torch.testing.assert_close(project_hidden(base, hidden), base.lm_head(hidden) / 4)


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
