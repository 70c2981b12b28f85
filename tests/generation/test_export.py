# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""An exported model samples what transport at L * epsilon = 1 samples, whatever its base's own defaults are."""

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from tests.layouts import BOS, EOS, PAD, VOCAB, prompts, tiny_model, vgf_model
from vgf_llm.generation import sample
from vgf_llm.models import TransportConfig, VGFModel

# As Instruct checkpoints ship them.
INSTRUCT = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "min_p": 0.05,
    "typical_p": 0.9,
    "repetition_penalty": 1.1,
    "no_repeat_ngram_size": 3,
}
NEUTRAL = {
    "do_sample": True,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}


def instruct_model() -> PreTrainedModel:
    base = tiny_model("llama")
    base.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=[EOS, 7], pad_token_id=PAD, **INSTRUCT)
    return base


def instruct_value(backbone: str) -> VGFModel:
    # Behind `top_k` transformers renormalises what `epsilon_cutoff` compares; with every token kept the two agree.
    transport = TransportConfig(top_k_candidates=VOCAB, min_candidate_prob=0.02)
    return vgf_model(instruct_model(), "log_ratio", backbone, transport=transport)


@pytest.mark.parametrize("backbone", ["lora", "copy"])
def test_an_export_carries_nothing_that_transport_did_not(backbone: str) -> None:
    model = instruct_value(backbone)
    ids, mask = prompts()
    rows, row_mask = ids.repeat_interleave(8, 0), mask.repeat_interleave(8, 0)
    torch.manual_seed(3)
    expected = sample(model, ids, mask, who="value", num_particles=8, max_new_tokens=8, **NEUTRAL)
    plain = model.merge_value()
    torch.manual_seed(3)
    found = plain.generate(rows, attention_mask=row_mask, max_new_tokens=8)[:, ids.shape[1] :]
    assert torch.equal(found, expected.tokens)
    config = plain.generation_config
    assert (config.top_k, config.epsilon_cutoff, config.eos_token_id) == (VOCAB, 0.02, [EOS, 7])
    for name in set(INSTRUCT) - {"do_sample", "top_k"}:
        assert getattr(config, name) in (None, NEUTRAL[name]), name


def test_generate_follows_the_policys_own_defaults() -> None:
    model = instruct_value("lora")
    torch.manual_seed(4)
    by_default = model.generate(*prompts(), transport_steps=8, max_new_tokens=8)
    torch.manual_seed(4)
    said = model.generate(*prompts(), transport_steps=8, max_new_tokens=8, **INSTRUCT)
    assert torch.equal(by_default, said)
    torch.manual_seed(4)
    neutral = model.generate(*prompts(), transport_steps=8, max_new_tokens=8, **NEUTRAL)
    assert not torch.equal(by_default, neutral)
