# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Texts under common random numbers: tilted distributions, their KL, candidates of a text, the cache of prompts."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.generation.sequence_values import sequence_model
from tests.layouts import EOS, VOCAB, prompts
from vgf_llm.functional import candidate_set, kl_divergence
from vgf_llm.generation.sequence_decoding import Prefix, SequenceDecoder
from vgf_llm.models import TransportConfig

OPTIONS = {"do_sample": True, "max_new_tokens": 6, "top_k": 0}


def decoder(layout: str = "llama", config: dict | None = None, **options: Any) -> tuple[SequenceDecoder, Prefix]:
    transport = TransportConfig(**{"min_candidate_prob": 0.01, "top_k_candidates": 8, **(config or {})})
    torch.manual_seed(0)
    made = SequenceDecoder(sequence_model(layout), transport, None, None, **{**OPTIONS, **options})
    with torch.no_grad():
        return made, made.prefix(*prompts(), 2)


def gains(position: int, ids: Tensor) -> Tensor:
    """Prefers tokens by their number."""
    return ids * 0.1 * (position + 1)


def base_log_probs(made: SequenceDecoder, prefix: Prefix) -> Tensor:
    return made.policy(prefix.ids, attention_mask=prefix.mask).logits[:, -1].log_softmax(-1)


@torch.no_grad()
def test_the_kl_is_that_of_the_tilted_distribution_over_the_whole_vocabulary() -> None:
    made, prefix = decoder(config={"min_candidate_prob": 0.03})
    text = made.write(prefix, 1, tilt=gains)
    positions = prefix.mask.cumsum(-1).sub(1).clamp(min=0)
    log_mu = made.policy(prefix.ids, attention_mask=prefix.mask, position_ids=positions).logits[:, -1].log_softmax(-1)
    ids, mask = candidate_set(log_mu, top_k=8, min_prob=0.03)
    gain = torch.where(mask, gains(0, ids), torch.inf)
    tilted = log_mu.scatter_add(-1, ids, torch.where(mask, gain - gain.amin(-1, keepdim=True), 0.0))
    torch.testing.assert_close(text.kl[:, 0], kl_divergence(tilted, log_mu), rtol=1e-4, atol=1e-5)
    assert text.kl.max() > 0.01


@torch.no_grad()
def test_tilted_samples_have_the_tilted_distribution() -> None:
    made, _ = decoder()
    n = 3000
    ids = prompts()[0][2:]
    prefix = made.prefix(ids, torch.ones_like(ids), n)
    text = made.write(prefix, 1, tilt=gains)
    log_mu = base_log_probs(made, prefix)[0]
    candidates, mask = candidate_set(log_mu, top_k=8, min_prob=0.01)
    gain = gains(0, candidates)
    gain = torch.where(mask, gain - gain[mask].min(), 0.0)
    expected = log_mu.scatter_add(-1, candidates, gain).softmax(-1)
    found = torch.bincount(torch.where(text.mask[:, 0], text.tokens[:, 0], EOS), minlength=VOCAB) / n
    assert 0.5 * (found - expected).abs().sum() < 0.06


@torch.no_grad()
@pytest.mark.parametrize("layout", ["llama", "mistral", "gemma3", "gpt2", "opt"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_text_is_the_largest_perturbed_candidate_of_itself(layout: str, use_cache: bool) -> None:
    made, prefix = decoder(layout, use_cache=use_cache)
    assert (prefix.cache is not None) == use_cache
    text = made.write(prefix, 6)
    found = made.candidates(prefix, text)
    best = found.perturbed.masked_fill(~found.mask, -torch.inf).argmax(-1, keepdim=True)
    assert torch.equal(found.ids.gather(-1, best).squeeze(-1)[text.mask], text.tokens[text.mask])
    scores = found.perturbed.masked_fill(~found.mask, -torch.inf).topk(2).values
    assert (scores[..., 0] > scores[..., 1]).all()
    # Log-probabilities are the base's, given the text so far.
    rows = torch.cat([prefix.ids, text.tokens], dim=1)
    mask = torch.cat([prefix.mask, text.mask.long()], dim=1)
    positions = mask.cumsum(-1).sub(1).clamp(min=0)
    kwargs = {} if layout == "opt" else {"position_ids": positions}
    logps = made.policy(rows, attention_mask=mask, **kwargs).logits[:, prefix.ids.shape[1] - 1 : -1].log_softmax(-1)
    kept = text.mask.unsqueeze(-1) & found.mask
    torch.testing.assert_close(logps.gather(-1, found.ids)[kept], found.logps[kept], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_noise_depends_on_row_and_position_alone() -> None:
    made, prefix = decoder()
    first, again = made.write(prefix, 6), made.write(prefix, 6)
    assert torch.equal(first.tokens, again.tokens)
    shifted = made.write(prefix, 6, offset=1)
    assert not torch.equal(first.tokens[:, :2], shifted.tokens[:, :2])
    other = SequenceDecoder(made.model, made.transport, None, None, **OPTIONS)
    assert not torch.equal(first.tokens[:, :2], other.write(prefix, 6).tokens[:, :2])


@torch.no_grad()
def test_finished_rows_stay_finished() -> None:
    made, prefix = decoder()
    text = made.write(prefix, 3)
    text.tokens[0, 1:], text.mask[0, 2:], text.ended[0] = EOS, False, True
    rows = torch.tensor([0, 0, 2, 3, 5, 4])
    grown = made.extend(prefix, text, rows)
    assert grown.finished.tolist()[:2] == [True, True]
    more = made.write(grown, 3, offset=3)
    assert not more.mask[:2].any() and not more.kl[:2].any()
    assert more.mask[~grown.finished].any(dim=-1).all()
