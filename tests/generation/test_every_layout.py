# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A black box around every layout: the default value is built, trained, scored, saved, loaded and exported."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.layouts import BROAD_LAYOUTS, broad_model
from vgf_llm import VGFModel
from vgf_llm.models.language_model import output_vocab_size, output_width
from vgf_llm.models.value import build_value

# One of each kind: plain, scaled and capped logits, windows, experts, recurrent states.
FAST = {
    "bloom", "cohere2", "deepseek_v3", "falcon_h1", "gemma2", "gpt_oss", "llama", "llama4_text", "mamba", "minimax",
    "opt", "qwen3_moe", "qwen3_next",
}  # fmt: skip


def default_model(base: PreTrainedModel) -> VGFModel:
    value = build_value("log_ratio", width=output_width(base), vocab_size=output_vocab_size(base))
    return VGFModel(base, value, backbone="lora")


def plain_logps(model: PreTrainedModel, ids: Tensor, num_tokens: int) -> Tensor:
    """What transformers alone says of the last tokens of rows without padding."""
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
    chosen = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    return chosen[:, -num_tokens:]


@pytest.mark.parametrize(
    "layout", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in sorted(BROAD_LAYOUTS)]
)
def test_the_default_value_on_every_layout(layout: str, tmp_path: Path) -> None:
    base = broad_model(layout)
    plain = copy.deepcopy(base)
    model = default_model(base)
    prompts = torch.tensor([[1, 5, 9, 7, 31], [1, 8, 44, 6, 90]])
    ids = torch.cat([prompts.repeat_interleave(2, dim=0), torch.randint(3, 300, (4, 6))], dim=1)
    mask, response = torch.ones_like(ids), torch.ones(4, 6, dtype=torch.long)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = -model(ids, mask, 6, group_size=2).scores.sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    model.eval()

    with torch.no_grad():
        settings = {"do_sample": False, "max_new_tokens": 6}
        expected = plain.generate(prompts, attention_mask=torch.ones_like(prompts), **settings)
        found = model.generate(prompts, torch.ones_like(prompts), transport_steps=0, num_particles=1, **settings)
        assert torch.equal(found, expected)

        scores = model.score(ids, mask, response, group_size=2).token_scores
        exported = model.merge_value()
        ratio = plain_logps(exported, ids, 6) - plain_logps(plain, ids, 6)
        torch.testing.assert_close(scores, ratio, atol=5e-3, rtol=1e-3)
        assert ratio.abs().max() > 0.05

        model.save_pretrained(tmp_path / "saved")
        again = VGFModel.from_pretrained(tmp_path / "saved")
        torch.testing.assert_close(again.score(ids, mask, response).token_scores, scores, atol=1e-3, rtol=1e-3)
        exported.save_pretrained(tmp_path / "exported")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
        torch.testing.assert_close(plain_logps(loaded, ids, 6), plain_logps(exported, ids, 6), atol=1e-4, rtol=1e-4)
