# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The plain model behind a log-ratio value."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import rescale_adapter_scale
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.layouts import LAYOUTS, VOCAB, prompts, tiny_model, vgf_model
from vgf_llm.functional import simplex_flow
from vgf_llm.generation import sample
from vgf_llm.models import TransportConfig, VGFModel


def transported(model: VGFModel) -> Tensor:
    """The distribution `[B, V]` after the prompts, transported with L * epsilon = 1 over all of the vocabulary."""
    ids, mask = prompts()
    one = torch.full((len(ids), 1), 3)  # any token: what is asked for are the candidates of the state before it
    rows = torch.cat([ids, one], dim=1), torch.cat([mask, torch.ones_like(one)], dim=1)
    found = model.candidate_values(*rows, 1, top_k=VOCAB, min_prob=0.0)
    moved = simplex_flow(found.logits, found.q_values, step_size=0.5, num_steps=2)
    return torch.zeros_like(moved).scatter(-1, found.ids, moved)[:, 0]


def next_logps(model: PreTrainedModel) -> Tensor:
    ids, mask = prompts()
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=positions).logits
    return logits[:, -1].log_softmax(dim=-1)


@pytest.mark.parametrize("backbone", ["lora", "copy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_merged_model_is_transport_at_budget_one(layout: str, backbone: str) -> None:
    model = vgf_model(tiny_model(layout), "log_ratio", backbone)
    expected = transported(model)
    torch.testing.assert_close(next_logps(model.merge_value()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", ["lora", "copy"])
def test_defaults_sample_the_candidates_of_transport(backbone: str, tmp_path: Path) -> None:
    transport = TransportConfig(top_k_candidates=VOCAB, min_candidate_prob=0.05)
    model = vgf_model(tiny_model("llama"), "log_ratio", backbone, transport=transport)
    ids, mask = prompts()
    torch.manual_seed(0)
    options = {"max_new_tokens": 6, "do_sample": True, "top_k": 0}
    expected = sample(model, ids, mask, who="value", num_particles=8, **options).tokens
    model.merge_value().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.manual_seed(0)
    rows = {"input_ids": ids.repeat_interleave(8, 0), "attention_mask": mask.repeat_interleave(8, 0)}
    found = loaded.generate(**rows, max_new_tokens=6)[:, ids.shape[1] :]
    assert found.tolist() == expected.tolist()
    assert (loaded.generation_config.top_k, loaded.generation_config.epsilon_cutoff) == (VOCAB, 0.05)


def test_no_least_probability_is_no_cutoff() -> None:
    transport = TransportConfig(top_k_candidates=7, min_candidate_prob=0.0)
    merged = vgf_model(tiny_model("llama"), "log_ratio", "copy", transport=transport).merge_value()
    assert merged.generation_config.do_sample
    assert (merged.generation_config.top_k, merged.generation_config.epsilon_cutoff) == (7, None)


def test_weights_between_base_and_value_scale_the_adapter() -> None:
    base = tiny_model("llama")
    model = vgf_model(base, "log_ratio", "lora")
    assert torch.equal(next_logps(model.merge_value(0.0)), next_logps(base))
    half = model.merge_value(0.5)
    with rescale_adapter_scale(model.policy, 0.5):
        expected = model.merge_value()
    torch.testing.assert_close(next_logps(half), next_logps(expected))
    assert not torch.allclose(next_logps(half), next_logps(model.merge_value()), atol=1e-2)
    copied = vgf_model(base, "log_ratio", "copy")
    pairs = zip(copied.merge_value(0.25).parameters(), base.parameters(), copied.value_model.parameters(), strict=True)
    for found, start, end in pairs:
        torch.testing.assert_close(found, 0.75 * start + 0.25 * end)
    for budget in (-0.1, 1.5):
        with pytest.raises(ValueError, match="`budget` must be from 0 to 1"):
            model.merge_value(budget)
    small = tiny_model("llama", hidden_size=48)
    other = vgf_model(base, "log_ratio", "policy", value_model=small)
    with pytest.raises(ValueError, match="whose model has another shape"):
        other.merge_value(0.5)


def test_merging_refuses_what_has_no_model_behind_it() -> None:
    with pytest.raises(ValueError, match=r"'bilinear' value is no ratio.*vgf serve"):
        vgf_model(tiny_model("llama"), "bilinear").merge_value()
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="a policy that was trained itself"):
        vgf_model(adapted, "log_ratio", "lora").merge_value()
    with pytest.raises(ValueError, match="a policy that was trained itself"):
        vgf_model(tiny_model("llama"), "log_ratio", "copy", ref_model=tiny_model("llama")).merge_value()
