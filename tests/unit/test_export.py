# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A budget in the weights of a plain model: its loss against the closed form, and that distillation gets nearer."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DistillationConfig

from tests.layouts import shake
from tests.trainer import tiny
from vgf_llm.export import TransportDistillation, distil_budget
from vgf_llm.models import TransportConfig, VGFModel, build_value

EVERY = TransportConfig(top_k_candidates=tiny.VOCAB, min_candidate_prob=0.0)
# With weights of the usual size a tiny model's next tokens are as good as uniform, whatever an adapter says.
BASE = partial(tiny.llama, initializer_range=0.3)
SETTINGS: dict[str, Any] = {"max_completion_length": 5, "gradient_checkpointing": False, "disable_tqdm": True}


def value(transport: TransportConfig = EVERY, std: float = 0.3) -> VGFModel:
    head = build_value("log_ratio", width=32, vocab_size=tiny.VOCAB)
    model = VGFModel(BASE(), head, backbone="lora", transport=transport).eval()
    shake(model, std=std)
    return model


def logps(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits.log_softmax(-1)


def test_the_loss_is_the_divergence_from_the_closed_form(tmp_path: Path) -> None:
    model, student, budget = value(), BASE(seed=5), 2.0
    trainer = TransportDistillation(
        student,
        model,
        TransportConfig(top_k_candidates=tiny.VOCAB, min_candidate_prob=0.0, transport_steps=1, step_size=budget),
        args=DistillationConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **SETTINGS),
        train_dataset=tiny.prompts(4),
        processing_class=tiny.tokenizer(),
    )
    prompts, completions = torch.tensor([[5, 9], [7, 8]]), torch.tensor([[11, 12, 2], [13, 2, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    batch = {"prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts)}
    loss = trainer.compute_loss(student.eval(), {**batch, "completion_ids": completions, "completion_mask": mask})
    ids = torch.cat([prompts, completions], dim=1)
    mu, pi, own = (logps(each, ids)[:, 1:-1] for each in (BASE(), model.merge_value(), student))
    target = ((1 - budget) * mu + budget * pi).log_softmax(-1)
    divergence = (target.exp() * (target - own)).sum(-1)
    torch.testing.assert_close(loss, divergence[mask.bool()].mean())
    assert loss.requires_grad


def test_distillation_gets_nearer_to_a_budget_beyond_one_and_scores_its_samples() -> None:
    model = value(TransportConfig(top_k_candidates=tiny.VOCAB - 1, min_candidate_prob=0.0), std=0.05)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain, start, end = distil_budget(
        model,
        tiny.tokenizer(),
        3.0,
        tiny.prompts(120),
        reward_funcs=tiny.high_tokens,
        max_steps=30,
        learning_rate=5e-3,
        **SETTINGS,
    )
    assert end.kl < 0.85 * start.kl
    assert 0 <= start.reward <= 1 and 0 <= end.reward <= 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert type(plain) is type(tiny.llama()) and not any("lora" in name for name in plain.state_dict())
    assert plain.generation_config.top_k == tiny.VOCAB - 1
    ids = torch.tensor([[5, 9, 11]])
    assert not torch.allclose(logps(plain, ids), logps(model.merge_value(), ids), atol=1e-2)


def test_without_steps_the_scaled_weights_are_measured() -> None:
    model = value()
    plain, start, end = distil_budget(model, tiny.tokenizer(), 0.5, tiny.prompts(10), max_steps=0, **SETTINGS)
    assert start is end and start.kl > 0 and start.reward is None
    ids = torch.tensor([[5, 9, 11]])
    torch.testing.assert_close(logps(plain, ids), logps(model.merge_value(0.5), ids))
    exact = distil_budget(model, tiny.tokenizer(), 1.0, tiny.prompts(10), max_steps=0, **SETTINGS)[1]
    assert exact.kl == pytest.approx(0.0, abs=1e-5), "at budget 1 the merged model is transport"


def test_what_cannot_be_distilled_is_refused() -> None:
    with pytest.raises(ValueError, match="`budget` must be above 0, got 0"):
        distil_budget(value(), tiny.tokenizer(), 0.0, tiny.prompts(4))
    with pytest.raises(ValueError, match="`prompts` must hold two prompts at least"):
        distil_budget(value(), tiny.tokenizer(), 2.0, Dataset.from_dict({"prompt": ["w1"]}))
    with pytest.raises(ValueError, match="`prompts` has no column `prompt`"):
        distil_budget(value(), tiny.tokenizer(), 2.0, Dataset.from_dict({"text": ["w1", "w2"]}))
