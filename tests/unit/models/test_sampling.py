# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Log-probabilities under a sampling are those of the distribution that `generate` draws from."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from tests.layouts import prompts, tiny_model, vgf_model
from vgf_llm.generation.candidates import CandidateProcessor
from vgf_llm.models import language_model
from vgf_llm.models.language_model import last_hidden_states
from vgf_llm.models.sampling import Sampling, sampled_logps
from vgf_llm.models.valued_policy import Rows

SETTINGS: dict[str, Sampling] = {
    "plain": Sampling(),
    "temperature": Sampling(temperature=0.6),
    "top-k": Sampling(top_k=5),
    "top-p": Sampling(top_p=0.7),
    "min-p": Sampling(min_p=0.2),
    "repetition penalty": Sampling(repetition_penalty=1.4),
    "candidates": Sampling(candidates=(6, 0.05)),
    "all": Sampling(1.3, 9, 0.8, 0.05, 1.2, (12, 0.01)),
}


def sampled(sampling: Sampling) -> tuple[Any, Tensor, Tensor]:
    """A model, rows of prompts with sampled tokens, and the log-probabilities `[B, T]` that `generate` drew them by."""
    model, (ids, mask) = tiny_model("llama"), prompts()
    processors = [] if sampling.candidates is None else [CandidateProcessor(*sampling.candidates)]
    torch.manual_seed(0)
    out = model.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        min_new_tokens=8,
        max_new_tokens=8,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        suppress_tokens=None,
        logits_processor=LogitsProcessorList(processors),
        output_scores=True,
        return_dict_in_generate=True,
        eos_token_id=None,
    )
    drawn = out.sequences[:, ids.shape[1] :]
    scores = torch.stack([step.log_softmax(-1) for step in out.scores], dim=1)
    return model, out.sequences, scores.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("sampling", SETTINGS.values(), ids=SETTINGS)
def test_a_token_has_the_log_probability_that_generate_drew_it_by(
    sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "STATES_AT_A_TIME", 5)  # parts that end inside rows
    model, rows, expected = sampled(sampling)
    mask = torch.cat([prompts()[1], torch.ones_like(expected, dtype=torch.long)], dim=1)
    states = last_hidden_states(model, rows, mask)[:, -9:-1]
    with torch.no_grad():
        found = Rows(rows, mask, 8, samplings=(sampling,)).logps(model, states)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_every_row_has_its_own_sampling() -> None:
    model = vgf_model(tiny_model("llama"), "log_ratio", "lora")
    ids, mask = prompts()
    rows = torch.cat([ids, torch.tensor([[7, 9, 30], [5, 11, 6], [22, 3, 19]])], dim=1)
    mask = torch.cat([mask, torch.ones(3, 3, dtype=torch.long)], dim=1)
    both = (Sampling(temperature=0.5), Sampling(temperature=2.0, candidates=(3, 0.0), repetition_penalty=1.3))
    mixed = {"samplings": both, "sampler": torch.tensor([1, 0, 1])}
    alone = [{"samplings": (sampling,)} for sampling in both]
    found = model(rows, mask, 3, **mixed).scores
    first, second = (model(rows, mask, 3, **settings).scores for settings in alone)
    torch.testing.assert_close(found, torch.stack([second[0], first[1], second[2]]))
    found = model.ref_logps(rows, mask, 3, **mixed)
    first, second = (model.ref_logps(rows, mask, 3, **settings) for settings in alone)
    torch.testing.assert_close(found, torch.stack([second[0], first[1], second[2]]))
    assert not torch.allclose(first, second, atol=0.1)


def test_a_constant_reward_has_no_gradient_where_the_adapter_is_zero() -> None:
    """The mean gradient of log p(token) over tokens drawn from p is zero: only for the p that drew them."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0], requires_grad=True)
    for sampling in (Sampling(temperature=0.5), Sampling(top_k=2), Sampling(candidates=(3, 0.05), temperature=0.7)):
        rows, ids = logits.expand(4, -1), torch.arange(4).unsqueeze(-1)
        logps = sampled_logps(rows, ids, sampling).squeeze(-1)
        kept = torch.tensor([sampled_logps(logits.detach()[None], i[None], sampling).item() for i in ids])
        drawn = kept.exp() * (torch.arange(4) < {Sampling(top_k=2): 2}.get(sampling, 3 if sampling.candidates else 4))
        assert drawn.sum().item() == pytest.approx(1.0, abs=1e-5)
        gradient = torch.autograd.grad((drawn * logps).sum(), logits)[0]
        torch.testing.assert_close(gradient, torch.zeros(4), atol=1e-6, rtol=0)


def test_a_token_that_was_cut_counts_as_kept() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert sampled_logps(logits, torch.tensor([[2]]), Sampling(top_k=2)).exp().item() == pytest.approx(0.2)
    assert sampled_logps(logits, torch.tensor([[2]]), Sampling(top_k=1)).exp().item() == pytest.approx(0.2 / 0.7)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"temperature": 0}, ValueError, "`temperature` must be a number > 0"),
        ({"temperature": "hot"}, TypeError, "`temperature` must be a number"),
        ({"top_k": True}, TypeError, "`top_k` must be an integer"),
        ({"top_p": 0.0}, ValueError, r"`top_p` must be a number in \(0, 1\]"),
        ({"min_p": 1.5}, ValueError, r"`min_p` must be a number in \[0, 1\]"),
        ({"candidates": (0, 0.1)}, ValueError, r"`candidates\[0\]` must be an integer >= 1"),
    ],
)
def test_impossible_samplings_are_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Sampling(**settings)


def test_a_sampler_has_one_entry_per_row() -> None:
    model = vgf_model(tiny_model("llama"), "log_ratio", "lora")
    ids, mask = prompts()
    with pytest.raises(ValueError, match=r"`sampler` must have shape \(3,\), got \(2,\)"):
        model(ids, mask, 2, sampler=torch.tensor([0, 0]))
