# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Divergences to the reference against sums over the whole vocabulary, and the counting of forwards."""

import mmap

import torch
from torch import Tensor

from eval.costs import ForwardCounter, PeakMemory
from eval.likelihood import likelihood
from tests.generation.sequence_values import sequence_model
from tests.layouts import EOS, prompts, shake, tiny_model, vgf_model
from vgf_llm.generation import mask_after_eos
from vgf_llm.models import VGFModel


def logits(model: torch.nn.Module, ids: Tensor, mask: Tensor, num_tokens: int) -> Tensor:
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(ids, attention_mask=mask, position_ids=positions).logits[:, -num_tokens - 1 : -1].double()


def sampled(model: VGFModel, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask = prompts()
    sequences = model.generate(ids, mask, transport_steps=0, do_sample=True, max_new_tokens=5, top_k=0, **options)
    completion = mask_after_eos(sequences[:, ids.shape[1] :], [EOS])
    mask = mask.repeat_interleave(len(sequences) // len(mask), dim=0)
    return sequences, torch.cat([mask, completion], dim=1), completion


def test_the_base_is_at_distance_zero_of_itself() -> None:
    model = vgf_model(tiny_model())
    sequences, attention, completion = sampled(model)
    found = likelihood(model, sequences, attention, completion)
    log_p = logits(model.policy, sequences, attention, 5).log_softmax(-1)
    chosen = log_p.gather(-1, sequences[:, -5:].unsqueeze(-1)).squeeze(-1) * completion
    assert torch.allclose(found.base_logps.double(), chosen.sum(-1), atol=1e-5)
    assert torch.equal(found.kl, torch.zeros(3))


def test_a_temperature_costs_what_the_vocabulary_says() -> None:
    model = vgf_model(tiny_model())
    sequences, attention, completion = sampled(model, temperature=0.5)
    found = likelihood(model, sequences, attention, completion, temperature=0.5)
    raw = logits(model.policy, sequences, attention, 5)
    cold, base = (raw / 0.5).log_softmax(-1), raw.log_softmax(-1)
    expected = ((cold.exp() * (cold - base)).sum(-1) * completion).sum(-1)
    assert torch.allclose(found.kl.double(), expected, atol=1e-5)
    assert bool((found.kl > 0).all())


def test_a_trained_policy_is_compared_with_its_reference() -> None:
    policy, reference = tiny_model(seed=0), tiny_model(seed=0)
    policy.requires_grad_(True)
    shake(policy, std=0.05)
    model = VGFModel(policy, ref_model=reference).eval()
    sequences, attention, completion = sampled(model)
    log_p = logits(policy, sequences, attention, 5).log_softmax(-1)
    log_mu = logits(reference, sequences, attention, 5).log_softmax(-1)
    found = likelihood(model, sequences, attention, completion)
    expected = ((log_p.exp() * (log_p - log_mu)).sum(-1) * completion).sum(-1)
    assert torch.allclose(found.kl.double(), expected, atol=1e-5)
    # Under transport the excess of the policy over the reference is added on the sampled path.
    spent = torch.rand(3, 5)
    moved = likelihood(model, sequences, attention, completion, transport_kl=spent)
    tokens = sequences[:, -5:].unsqueeze(-1)
    excess = ((log_p - log_mu).gather(-1, tokens).squeeze(-1) * completion).sum(-1)
    assert torch.allclose(moved.kl.double(), (spent * completion).sum(-1) + excess, atol=1e-5)
    greedy = likelihood(model, sequences, attention, completion, greedy=True)
    assert torch.equal(greedy.kl, -greedy.base_logps)


def test_the_decomposition_under_transport_is_unbiased() -> None:
    # One step, all responses enumerated: E_q[KL(q||p) + log p - log mu] is KL(q||mu).
    p, mu, q = (torch.randn(6, dtype=torch.float64).softmax(-1) for _ in range(3))
    expected = (q * (q / mu).log()).sum()
    assert torch.allclose((q * (q / p).log()).sum() + (q * (p / mu).log()).sum(), expected)


def test_rows_are_scored_alike_in_blocks(monkeypatch: object) -> None:
    model = vgf_model(tiny_model())
    sequences, attention, completion = sampled(model)
    whole = likelihood(model, sequences, attention, completion, temperature=0.7)
    monkeypatch.setattr("eval.likelihood._MAX_TOKENS", 1)  # type: ignore[attr-defined]
    parts = likelihood(model, sequences, attention, completion, temperature=0.7)
    assert torch.allclose(whole.kl, parts.kl, atol=1e-6)
    assert torch.allclose(whole.base_logps, parts.base_logps, atol=1e-5)


def test_forwards_are_counted_per_token_and_model() -> None:
    ids, mask = prompts()
    options = {"do_sample": True, "max_new_tokens": 4, "min_new_tokens": 4, "num_particles": 2, "selection": "none"}
    # A prompt once for both of its particles, then every new token but the last of each.
    per_model = ids.numel() + 2 * 3 * ids.shape[0]
    head = vgf_model(tiny_model())
    for model, steps, models in ((head, 0, 1), (head, 2, 1)):
        with ForwardCounter(model).counting() as counter:
            model.generate(ids, mask, transport_steps=steps, **options)
        assert counter.tokens == models * per_model
    ratio = vgf_model(tiny_model(), "log_ratio", value_model=tiny_model(seed=3))
    with ForwardCounter(ratio).counting() as counter:
        ratio.generate(ids, mask, transport_steps=2, **options)
    assert counter.tokens == 2 * per_model
    with ForwardCounter(ratio).counting() as counter:
        pass
    assert counter.tokens == 0


def test_a_gradient_of_a_whole_response_counts_as_two_more_passes() -> None:
    model = sequence_model()
    embedded = torch.randn(2, 7, model.sequence_value.embedding.shape[1])
    mask = torch.ones(2, 7, dtype=torch.long)
    response = torch.tensor([[0, 0, 0, 1, 1, 1, 1]]).expand(2, 7)
    for moved, passes in ((False, 1), (True, 3)):
        with ForwardCounter(model).counting() as counter:
            model.sequence_value(embedded.clone().requires_grad_(moved), mask, response)
        assert counter.tokens == passes * 2 * 7
    with ForwardCounter(model).counting() as counter, torch.no_grad():
        model.sequence_value(embedded.clone().requires_grad_(), mask, response)
    assert counter.tokens == 2 * 7


def test_peak_memory_sees_what_was_allocated_meanwhile() -> None:
    with PeakMemory(torch.device("cpu")) as small:
        pass
    # Pages straight from the system: an allocator may hand out memory that is resident already.
    with PeakMemory(torch.device("cpu")) as large, mmap.mmap(-1, 40 * 2**20) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
    assert small.megabytes is not None
    assert large.megabytes is not None
    assert large.megabytes > small.megabytes + 20


def test_a_prompt_is_read_once_for_its_responses() -> None:
    base = tiny_model()
    model = VGFModel(tiny_model(seed=1), ref_model=base)
    sequences, attention, completion = sampled(model, num_particles=4, selection="none")
    assert len(sequences) == 12
    for options in ({}, {"temperature": 0.7}, {"greedy": True}, {"transport_kl": torch.rand(12, completion.shape[1])}):
        alone = likelihood(model, sequences, attention, completion, **options)
        grouped = likelihood(model, sequences, attention, completion, group_size=4, **options)
        torch.testing.assert_close(grouped.base_logps, alone.base_logps, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(grouped.kl, alone.kl, atol=1e-4, rtol=1e-4)
    rows: list[int] = []
    handle = base.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    likelihood(model, sequences, attention, completion, group_size=4, greedy=True)
    handle.remove()
    assert rows == [3, 12]
