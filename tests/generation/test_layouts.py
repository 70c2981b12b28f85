# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The invariants of `VGFModel.generate`, on every layout and for every way a value can ride along."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.layouts import EOS, LAYOUTS, PAD, prompts, tiny_model, vgf_model
from vgf_llm.generation import VGFGenerateOutput, mask_after_eos
from vgf_llm.models import VGFModel

TRANSPORT = {"transport_steps": 4, "step_size": 0.5, "top_k_candidates": 12, "min_candidate_prob": 0.0}
KINDS = {
    "head": ("bilinear", "policy"),
    "head on LoRA": ("vocab", "lora"),
    "log-ratio LoRA": ("log_ratio", "lora"),
    "log-ratio copy": ("log_ratio", "copy"),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def base(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, base: PreTrainedModel) -> VGFModel:
    return vgf_model(base, *KINDS[request.param])


def transported(model: VGFModel, **kwargs: Any) -> VGFGenerateOutput:
    ids, mask = prompts()
    torch.manual_seed(7)
    out = model.generate(ids, mask, return_dict_in_generate=True, max_new_tokens=6, **{**TRANSPORT, **kwargs})
    assert isinstance(out, VGFGenerateOutput)
    return out


@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_without_transport_it_is_the_bases_generate(base: PreTrainedModel, model: VGFModel, do_sample: bool) -> None:
    ids, mask = prompts()
    kwargs = {"do_sample": do_sample, "max_new_tokens": 8, "temperature": 1.3 if do_sample else 1.0}
    torch.manual_seed(3)
    expected = base.generate(ids, attention_mask=mask, **kwargs)
    torch.manual_seed(3)
    assert torch.equal(model.generate(ids, mask, transport_steps=0, num_particles=1, **kwargs), expected)
    torch.manual_seed(3)
    out = transported_zero(model, **kwargs)
    assert torch.equal(out.sequences, expected)
    assert not out.kl.any()


def transported_zero(model: VGFModel, **kwargs: Any) -> VGFGenerateOutput:
    ids, mask = prompts()
    return model.generate(ids, mask, transport_steps=0, return_dict_in_generate=True, **kwargs)


def test_transport_changes_what_is_generated(base: PreTrainedModel, model: VGFModel) -> None:
    ids, mask = prompts()
    plain = base.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=6)
    moved = model.generate(ids, mask, do_sample=False, max_new_tokens=6, **{**TRANSPORT, "step_size": 20.0})
    assert moved.shape != plain.shape or not torch.equal(moved, plain)


def test_cached_decoding_is_uncached_decoding(model: VGFModel) -> None:
    cached, uncached = (
        transported(model, num_particles=2, do_sample=True, use_cache=use_cache) for use_cache in (True, False)
    )
    assert torch.equal(cached.particle_sequences, uncached.particle_sequences)
    for name in ("values", "token_scores", "kl"):
        torch.testing.assert_close(getattr(cached, name), getattr(uncached, name), atol=1e-4, rtol=1e-3, msg=name)


def test_a_batch_of_prompts_is_one_prompt_at_a_time(model: VGFModel) -> None:
    ids, mask = prompts()
    batch = transported(model, do_sample=False)
    for row in range(len(ids)):
        real = mask[row].bool()
        alone = model.generate(
            ids[row : row + 1, real], return_dict_in_generate=True, do_sample=False, max_new_tokens=6, **TRANSPORT
        )
        tokens = alone.sequences[0, int(real.sum()) :]
        together = batch.sequences[row, ids.shape[1] :]
        assert torch.equal(together[: len(tokens)], tokens)
        assert (together[len(tokens) :] == PAD).all()
        torch.testing.assert_close(batch.values[row], alone.values[0], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(batch.kl[row, 0, : len(tokens)], alone.kl[0, 0], atol=1e-4, rtol=1e-3)


def test_values_recorded_while_decoding_are_the_teacher_forced_ones(
    model: VGFModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unused(*args: Any) -> None:
        raise AssertionError("values are recorded, not computed again")

    with monkeypatch.context() as patch:
        patch.setattr(VGFModel, "score", unused)
        out = transported(model, num_particles=2, do_sample=True)
    ids, mask = prompts()
    sequences = out.particle_sequences.flatten(0, 1)
    completion_mask = mask_after_eos(sequences[:, ids.shape[1] :], [EOS])
    attention = torch.cat([mask.repeat_interleave(2, 0), completion_mask], dim=1)
    expected = model.score(sequences, attention, completion_mask)
    scores = expected.token_scores * completion_mask
    torch.testing.assert_close(out.token_scores.flatten(0, 1), scores, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(out.values.flatten(), expected.values, atol=1e-4, rtol=1e-3)
    assert scores.abs().max() > 0.05
