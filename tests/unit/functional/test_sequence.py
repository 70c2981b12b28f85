# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The flow on whole responses against closed forms and autograd, in float64."""

import pytest
import torch
from torch import Tensor

from vgf_llm.functional import (
    flow_direction,
    kernel_matrix,
    median_bandwidth,
    pool_tokens,
    sequence_direction,
    sequence_step,
    simplex_direction,
    simplex_flow,
    straight_through_tokens,
)


def responses(n: int = 4, t: int = 5, d: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Particles and scores `[n, t, d]` and a mask of different lengths, none empty."""
    lengths = torch.tensor([t, t - 2, 1, t - 1, t])[:n]
    mask = torch.arange(t) < lengths.unsqueeze(-1)
    return torch.randn(n, t, d, dtype=torch.float64), torch.randn(n, t, d, dtype=torch.float64), mask


def test_pooling_is_the_mean_of_the_tokens_that_count() -> None:
    particles, _, mask = responses()
    expected = torch.stack([row[keep].mean(dim=0) for row, keep in zip(particles, mask, strict=True)])
    torch.testing.assert_close(pool_tokens(particles, mask), expected)
    assert not pool_tokens(torch.full((2, 3), torch.nan), torch.zeros(2)).any()


def test_one_response_is_ascent() -> None:
    particles, score, mask = responses(n=1)
    phi = sequence_direction(particles, score, mask, alpha=0.5)
    torch.testing.assert_close(phi, score / 0.5 * mask.unsqueeze(-1))


def test_one_token_is_the_flow_of_the_paper() -> None:
    particles, score, _ = responses(t=1, n=3)
    mask = torch.ones(3, 1)
    phi = sequence_direction(particles, score, mask, alpha=0.7)
    torch.testing.assert_close(phi.squeeze(1), flow_direction(particles.squeeze(1), score.squeeze(1), alpha=0.7))


def test_repulsion_is_autograd_of_the_pooled_kernel() -> None:
    particles, score, mask = responses()
    width = median_bandwidth(pool_tokens(particles, mask))
    leaf = particles.clone().requires_grad_()
    here = pool_tokens(leaf, mask)
    energy = kernel_matrix(here, pool_tokens(particles, mask), width).sum()
    expected = -torch.autograd.grad(energy, leaf)[0] / len(particles)
    alone = sequence_direction(particles, torch.zeros_like(score), mask)
    torch.testing.assert_close(alone, expected)
    with_score = sequence_direction(particles, score, mask)
    torch.testing.assert_close(with_score - sequence_direction(particles, score, mask, repulsion=False), expected)


def test_attraction_shares_scores_by_the_pooled_kernel() -> None:
    particles, score, mask = responses()
    features = pool_tokens(particles, mask)
    kernel = kernel_matrix(features, features, 0.8)
    expected = torch.zeros_like(score)
    for i in range(len(particles)):
        for j in range(len(particles)):
            expected[i] += kernel[j, i] * score[j] * mask[j].unsqueeze(-1) / (2.0 * len(particles))
    found = sequence_direction(particles, score, mask, alpha=2.0, bandwidth=0.8, repulsion=False)
    torch.testing.assert_close(found, expected * mask.unsqueeze(-1))


def test_order_of_particles_does_not_matter_and_groups_do_not_interact() -> None:
    particles, score, mask = responses()
    phi = sequence_direction(particles, score, mask)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(sequence_direction(particles[order], score[order], mask[order]), phi[order])
    other, other_score, other_mask = responses()
    both = sequence_direction(
        torch.stack([particles, other]), torch.stack([score, other_score]), torch.stack([mask, other_mask])
    )
    torch.testing.assert_close(both[0], phi)


def test_equal_responses_share_the_mean_score_and_do_not_repel() -> None:
    particles, score, _ = responses(n=3)
    particles, mask = particles[:1].expand_as(particles), torch.ones(3, 5)
    torch.testing.assert_close(sequence_direction(particles, score, mask), score.mean(0, keepdim=True).expand(3, 5, 3))


def test_what_is_masked_is_never_read_and_never_moves() -> None:
    particles, score, mask = responses()
    hidden = ~mask.unsqueeze(-1)
    dirty = particles.masked_fill(hidden, torch.nan), score.masked_fill(hidden, torch.inf)
    torch.testing.assert_close(sequence_direction(*dirty, mask), sequence_direction(particles, score, mask))
    moved = sequence_step(particles, dirty[1], mask, step_size=0.5, scale=1.0)
    assert torch.equal(moved[~mask], particles[~mask])
    assert (moved[mask] != particles[mask]).any(dim=-1).all()


def test_steps_have_one_length() -> None:
    start, velocity, mask = responses()
    step_size, scale = 0.2, 2.0
    unit = velocity / velocity.norm(dim=-1, keepdim=True)
    free = sequence_step(start, velocity, mask, step_size=step_size, scale=scale)
    torch.testing.assert_close((free - start)[mask], step_size * scale * unit[mask])
    assert torch.equal(sequence_step(start, velocity, mask, step_size=0.0, scale=scale), start)
    still = sequence_step(start, torch.zeros_like(start), mask, step_size=1.0, scale=scale)
    assert torch.equal(still, start)


def test_straight_through_is_hard_forward_and_soft_backward() -> None:
    embedding = torch.randn(9, 3, dtype=torch.float64)
    ids = torch.stack([torch.randperm(9)[:4] for _ in range(6)]).view(2, 3, 4)
    probs = torch.rand(2, 3, 4, dtype=torch.float64).softmax(-1).requires_grad_()
    hard_ids = torch.randint(0, 9, (2, 3))
    through, soft = straight_through_tokens(probs, ids, hard_ids, embedding)
    torch.testing.assert_close(through, embedding[hard_ids])
    torch.testing.assert_close(soft, (probs.unsqueeze(-1) * embedding[ids]).sum(-2))
    weights = torch.randn(2, 3, 3, dtype=torch.float64)
    gradient = torch.autograd.grad((through * weights).sum(), probs)[0]
    torch.testing.assert_close(gradient, torch.einsum("btkd,btd->btk", embedding[ids], weights))


@pytest.mark.parametrize("alpha", [None, 0.7])
def test_simplex_direction_steps_the_simplex_flow(alpha: float | None) -> None:
    logits, q = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    mask = torch.rand(3, 6) > 0.3
    mask[:, 0] = True
    current = logits
    for _ in range(4):
        velocity = simplex_direction(current, q, mask, alpha=alpha, reference=logits)
        assert not velocity[~mask].any()
        current = current + 0.3 * velocity
    expected = simplex_flow(logits, q, step_size=0.3, num_steps=4, alpha=alpha, candidate_mask=mask)
    torch.testing.assert_close(current.masked_fill(~mask, -torch.inf).log_softmax(-1), expected)


def test_a_target_needs_its_reference() -> None:
    logits, q, mask = torch.zeros(5), torch.zeros(5), torch.ones(5, dtype=torch.bool)
    with pytest.raises(ValueError, match="reference"):
        simplex_direction(logits, q, mask, alpha=2.0)


def test_bad_input_is_named() -> None:
    particles, score, mask = responses()
    with pytest.raises(ValueError, match="mask"):
        sequence_direction(particles, score, mask[:, 1:])
    with pytest.raises(ValueError, match="score must be finite"):
        sequence_direction(particles, score * torch.nan, mask)
    with pytest.raises(ValueError, match="alpha"):
        sequence_direction(particles, score, mask, alpha=0.0)
    with pytest.raises(ValueError, match="scale"):
        sequence_step(particles, score, mask, step_size=0.1, scale=0.0)
    with pytest.raises(ValueError, match="hard_ids"):
        straight_through_tokens(torch.rand(2, 3), torch.zeros(2, 3).long(), torch.zeros(3).long(), torch.rand(4, 2))
