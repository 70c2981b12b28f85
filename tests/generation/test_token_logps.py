# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What the forwards of sampling say about sampled tokens is what a pass over the finished responses says."""

from typing import Any

import pytest
import torch

from tests.layouts import LAYOUTS, prompts, tiny_model, vgf_model
from tests.trainer.tiny import trainer
from vgf_llm.generation import TokenLogps, mask_after_eos
from vgf_llm.models import VGFModel
from vgf_llm.models.language_model import inner_model

OPTIONS = {"do_sample": True, "max_new_tokens": 6, "disable_compile": True, "selection": "none", "transport_steps": 0}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("particles", [1, 3])
def test_they_are_those_of_a_pass(layout: str, particles: int) -> None:
    model, found = vgf_model(tiny_model(layout), "log_ratio", "copy"), TokenLogps()
    ids, attention = prompts()
    torch.manual_seed(0)
    with found.installed(model.policy):
        rows = model.generate(
            ids, attention, num_particles=particles, temperature=0.7, repetition_penalty=1.5, top_k=5, **OPTIONS
        )
    tokens = rows[:, ids.shape[1] :]
    mask = mask_after_eos(tokens, [2])
    whole = torch.cat([attention.repeat_interleave(particles, dim=0), mask], dim=1)
    expected = model.ref_logps(rows, whole, tokens.shape[1])
    got = found.of(tokens)
    assert got is not None
    torch.testing.assert_close(got * mask, expected * mask, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_beams": 2, "num_return_sequences": 2}])
def test_beams_are_not_rows(options: dict[str, Any]) -> None:
    model, found = tiny_model(), TokenLogps()
    ids, attention = prompts()
    with found.installed(model):
        rows = model.generate(ids, attention_mask=attention, max_new_tokens=6, **options)
    assert found.of(rows[:, ids.shape[1] :]) is None


def test_tokens_of_another_call_are_refused() -> None:
    model, found = tiny_model(), TokenLogps()
    ids, attention = prompts()
    with found.installed(model):
        rows = model.generate(ids, attention_mask=attention, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert found.of(rows[:, ids.shape[1] :].flip(1)) is None
    assert TokenLogps().of(rows[:, :0]) is None


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({"rollout_policy": "transport"}, 0),
        ({"rollout_policy": "transport", "value_backbone": "lora"}, 0),
        ({"rollout_policy": "transport", "rollout_transport_steps": 1}, 1),
        ({"rollout_policy": "value"}, 1),
    ],
)
def test_samples_of_the_reference_are_not_scored_again(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], passes: int
) -> None:
    calls = []
    scored = VGFModel.ref_logps
    monkeypatch.setattr(VGFModel, "ref_logps", lambda self, *a, **k: calls.append(1) or scored(self, *a, **k))
    run = trainer(
        tmp_path,
        lambda completion_ids, **kwargs: [float(len(ids)) for ids in completion_ids],
        **{"value_parametrization": "log_ratio", "value_backbone": "copy", "max_steps": 1, **settings},
    )
    run.train()
    assert bool(calls) == bool(passes)
    monkeypatch.undo()
    known = [group for group in run.rounds.fresh if group.ref_logps is not None]
    # A pass leaves out groups whose rewards agree, which no pair is made of; samples tell them without a pass.
    assert len(known) == sum(group.is_mixed or passes == 0 for group in run.rounds.fresh) > 0
    for group in known:
        for response, logps in zip(group.completion_ids, group.ref_logps, strict=True):
            ids = torch.cat([group.prompt_ids, response]).long().unsqueeze(0)
            expected = run.vgf_model.ref_logps(ids, torch.ones_like(ids), len(response))[0]
            torch.testing.assert_close(logps, expected, atol=1e-4, rtol=1e-4)
    assert inner_model(run.vgf_model.policy)._forward_hooks == {}
