# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Candidates of an engine's rows, without an engine: the tokens that the losses count with, in the rows that ask."""

import sys
from types import SimpleNamespace

import pytest
import torch

from vgf_llm.models.sampling import Sampling, sampled_logps
from vgf_llm.serving import candidates
from vgf_llm.serving.candidates import keep_candidates, requested_candidates


def test_rows_that_ask_keep_what_the_losses_count_with():
    logits = 3 * torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    asked = {0: (4, 0.0), 2: (24, 0.05), 4: (4, 0.0)}
    found = keep_candidates(logits.clone(), asked)
    assert torch.equal(found[[1, 3]], logits[[1, 3]])
    ids = torch.arange(24).expand(1, -1)
    for row, own in asked.items():
        kept = found[row] > -torch.inf
        assert 0 < kept.sum() < 24
        # Ahead of a temperature, as `generate` does it and vLLM does after its processors.
        expected = sampled_logps(logits[row : row + 1], ids, Sampling(temperature=0.7, candidates=own))[0]
        assert torch.allclose((found[row] / 0.7).log_softmax(-1)[kept], expected[kept], atol=1e-4)


@pytest.mark.parametrize("given", [[], [40], [0, 0.1], [40, 1.0], [40.5, 0.1], "4", 3, [40, 0.1, 1]])
def test_candidates_that_are_none_are_the_clients_fault(given):
    with pytest.raises(ValueError, match="`own_candidates` must be K and a least probability, got"):
        requested_candidates({"own_candidates": given})
    assert requested_candidates({"other": given}) is None and requested_candidates(None) is None


def test_the_processor_follows_the_requests_of_its_batch(monkeypatch):
    def updates(state, batch, new):
        state.update({row: new(params, None, []) for row, params in batch.items() if new(params, None, [])})

    module = SimpleNamespace(LogitsProcessor=object, process_dict_updates=updates)
    monkeypatch.setitem(sys.modules, "vllm.v1.sample.logits_processor", module)
    candidates._processor_class.cache_clear()
    try:
        kind = candidates.CandidateLogitsProcessor
        processor = kind(None, "cpu", False)
    finally:
        candidates._processor_class.cache_clear()
    assert not processor.is_argmax_invariant(), "vLLM would cut behind the temperature"
    bad, own = (SimpleNamespace(extra_args={"own_candidates": given}) for given in ([], [1, 0.0]))
    with pytest.raises(ValueError, match="`own_candidates`"):
        kind.validate_params(bad)
    processor.update_state({1: own, 0: SimpleNamespace(extra_args=None)})
    found = processor.apply(torch.tensor([[0.1, 0.2], [0.1, 0.2]]))
    assert found.tolist() == [pytest.approx([0.1, 0.2]), [-torch.inf, pytest.approx(0.2)]]
