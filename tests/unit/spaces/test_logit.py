# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Logit space against closed forms and a dense transcription over the whole vocabulary."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vgf_llm.functional import candidate_set, median_bandwidth
from vgf_llm.models import StateFeatures, TransportConfig, ValueModel
from vgf_llm.spaces import DecodeState, LogitSpace
from vgf_llm.spaces.controls import shuffled_like

VOCAB, K = 12, 6


class TableValue(ValueModel):
    """Q of each row and token, from a table."""

    parametrization = "table"

    def __init__(self, table: Tensor) -> None:
        super().__init__("regression")
        self.table = table

    def scores(self, features: StateFeatures, candidate_ids: Tensor) -> Tensor:
        return self.table.gather(-1, candidate_ids)


def make_state(rows: int, *, num_particles: int = 1, min_prob: float = 0.05, seed: int = 0) -> DecodeState:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, VOCAB, generator=generator, dtype=torch.float64) * 1.5
    log_probs = logits.log_softmax(-1)
    ids, mask = candidate_set(log_probs, top_k=K, min_prob=min_prob)
    assert min_prob == 0 or rows == 1 or not mask.all()  # rows of different candidates
    return DecodeState(ids, mask, log_probs.gather(-1, ids), StateFeatures(), num_particles=num_particles)


def table(rows: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def space(q: Tensor, *, control: str | None = None, **settings: Any) -> LogitSpace:
    transport = TransportConfig(**{"step_size": 0.25, "transport_steps": 4, **settings})
    return LogitSpace(TableValue(q), transport, control=control)


def tilted(state: DecodeState, q: Tensor, strength: float) -> Tensor:
    """log of mu exp(strength Q) / Z over the candidates."""
    logits = state.logits + strength * q.gather(-1, state.candidate_ids)
    return logits.masked_fill(~state.candidate_mask, -torch.inf).log_softmax(-1)


def test_fisher_tilts_by_steps_times_step_size() -> None:
    state, q = make_state(5), table(5)
    moved = space(q).transport(state)
    torch.testing.assert_close(moved.logits, tilted(state, q, 1.0), atol=1e-12, rtol=0)
    assert torch.equal(moved.q_values, q.gather(-1, state.candidate_ids))
    for step_size, transport_steps in ((0.125, 8), (1.0, 1)):
        same = space(q, step_size=step_size, transport_steps=transport_steps).transport(state).logits
        torch.testing.assert_close(same, moved.logits, atol=1e-12, rtol=0)


def test_no_step_is_the_base_on_the_candidates() -> None:
    state, q = make_state(5, num_particles=5), table(5)
    for settings in ({}, {"interaction": True}, {"alpha": 0.5}):
        moved = space(q, transport_steps=0, **settings).transport(state).logits
        torch.testing.assert_close(moved, tilted(state, q, 0.0), atol=1e-12, rtol=0)


def test_alpha_flows_to_the_boltzmann_target_and_no_further() -> None:
    state, q = make_state(5), table(5)
    target = tilted(state, q, 1 / 0.5)
    near = space(q, alpha=0.5, step_size=0.5, transport_steps=80).transport(state).logits
    torch.testing.assert_close(near, target, atol=1e-12, rtol=0)
    part = space(q, alpha=0.5, step_size=0.25, transport_steps=3).transport(state).logits
    torch.testing.assert_close(part, tilted(state, q, (1 - 0.75**3) / 0.5), atol=1e-12, rtol=0)


def test_the_interface_steps_to_the_closed_form() -> None:
    state, q = make_state(5), table(5)
    flow = space(q)
    particles = flow.lift(state)
    for _ in range(4):
        particles = flow.step(particles, flow.velocity(particles, state, flow.q_values(state)), state)
    torch.testing.assert_close(particles, flow.transport(state).logits, atol=1e-12, rtol=0)


def test_shuffled_control_gives_the_same_numbers_to_other_candidates() -> None:
    state, q = make_state(16), table(16)
    drawn = space(q, control="shuffled").q_values(state)
    own, mask = q.gather(-1, state.candidate_ids), state.candidate_mask
    assert torch.equal(drawn[~mask], own[~mask])
    inside = [x.masked_fill(~mask, torch.inf).sort(dim=-1).values for x in (drawn, own)]
    assert torch.equal(*inside)
    assert not torch.equal(drawn, own)
    # Every place is equally likely: the mean over draws loses what belonged to it.
    many = shuffled_like(torch.arange(4.0).expand(20_000, 4), torch.ones(20_000, 4, dtype=torch.bool))
    assert torch.allclose(many.mean(dim=0), torch.full((4,), 1.5), atol=0.05)


def test_random_control_keeps_spread_and_drops_the_direction() -> None:
    rows = 400
    state, q = make_state(rows), table(rows)
    control = space(q, control="random")
    drawn = control.q_values(state)
    mu = tilted(state, q, 0.0).exp()
    gain = torch.where(state.candidate_mask, q.gather(-1, state.candidate_ids), 0.0)

    def centred(x: Tensor) -> Tensor:
        return torch.where(state.candidate_mask, x - (mu * x).sum(-1, keepdim=True), 0.0)

    def spread(x: Tensor) -> Tensor:
        return (mu * centred(x).square()).sum(-1).sqrt()

    torch.testing.assert_close(spread(drawn), spread(gain), atol=1e-9, rtol=1e-6)
    several = state.candidate_mask.sum(-1) > 1
    cosine = (mu * centred(drawn) * centred(gain)).sum(-1)[several] / spread(gain)[several].square()
    assert cosine.abs().mean() > 0.2
    assert abs(cosine.mean()) < 4 * cosine.std() / math.sqrt(len(cosine))
    assert not torch.equal(control.q_values(state), drawn)


def dense_interaction(
    state: DecodeState, q: Tensor, *, step_size: float, transport_steps: int, alpha: float, repulsion: bool
) -> Tensor:
    """phi of the paper, term by term, on distributions over the whole vocabulary; [N, K]."""
    n = state.num_particles
    allowed = torch.zeros(n, VOCAB, dtype=torch.bool).scatter(1, state.candidate_ids, state.candidate_mask)
    base = torch.zeros(n, VOCAB, dtype=torch.float64).scatter(1, state.candidate_ids, state.logits)
    logits = base.masked_fill(~allowed, -torch.inf).log_softmax(-1)
    for _ in range(transport_steps):
        probs = logits.exp()
        score = torch.where(allowed, q - (probs * q.masked_fill(~allowed, 0)).sum(-1, keepdim=True), 0.0)
        sigma = float(median_bandwidth(probs))
        phi = torch.zeros_like(probs)
        for i in range(n):
            for j in range(n):
                kernel = torch.exp(-(probs[i] - probs[j]).square().sum() / (2 * sigma**2))
                phi[i] += kernel * score[j] / alpha
                if repulsion:
                    phi[i] += kernel * (probs[i] - probs[j]) / sigma**2
        logits = (logits + step_size * phi / n).masked_fill(~allowed, -torch.inf).log_softmax(-1)
    return logits.gather(1, state.candidate_ids).masked_fill(~state.candidate_mask, -torch.inf)


@pytest.mark.parametrize("repulsion", [False, True])
@pytest.mark.parametrize("alpha", [None, 0.5])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_interaction_is_the_papers_direction(n: int, alpha: float | None, repulsion: bool) -> None:
    groups = 2
    state, q = make_state(groups * n, num_particles=n), table(groups * n)
    settings = {"step_size": 0.3, "transport_steps": 3, "alpha": alpha, "repulsion": repulsion}
    found = space(q, interaction=True, **settings).transport(state).logits
    for group in range(groups):
        rows = slice(group * n, (group + 1) * n)
        alone = DecodeState(
            state.candidate_ids[rows], state.candidate_mask[rows], state.logits[rows], StateFeatures(), num_particles=n
        )
        expected = dense_interaction(alone, q[rows], **{**settings, "alpha": alpha or 1.0})
        torch.testing.assert_close(found[rows], expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("repulsion", [False, True])
def test_one_particle_has_nobody_to_interact_with(repulsion: bool) -> None:
    state, q = make_state(5, num_particles=1), table(5)
    together = space(q, interaction=True, repulsion=repulsion).transport(state).logits
    torch.testing.assert_close(together, space(q).transport(state).logits, atol=1e-12, rtol=0)
    colder = (
        space(q, interaction=True, alpha=0.5, transport_steps=2).transport(state).logits
    )  # alpha divides the direction
    torch.testing.assert_close(colder, together, atol=1e-12, rtol=0)


def test_equal_particles_without_repulsion_share_their_values() -> None:
    state = make_state(1)
    twice = [x.repeat(2, 1) for x in (state.candidate_ids, state.candidate_mask, state.logits)]
    state, q = DecodeState(*twice, StateFeatures(), num_particles=2), table(2)
    found = space(q, interaction=True, transport_steps=1, step_size=1.0).transport(state).logits
    torch.testing.assert_close(found, tilted(state, q.mean(0).expand(2, -1), 1.0), atol=1e-12, rtol=0)


def test_interaction_is_equivariant_under_permutations() -> None:
    state, q = make_state(4, num_particles=4), table(4)
    order = torch.tensor([2, 0, 3, 1])
    permuted = DecodeState(
        state.candidate_ids[order], state.candidate_mask[order], state.logits[order], StateFeatures(), num_particles=4
    )
    settings = {"interaction": True, "repulsion": True}
    expected = space(q, **settings).transport(state).logits[order]
    torch.testing.assert_close(space(q[order], **settings).transport(permuted).logits, expected, atol=1e-12, rtol=0)


def test_repulsion_drives_distributions_apart() -> None:
    state = make_state(3, num_particles=3, min_prob=0.0)
    q = torch.zeros(3, VOCAB, dtype=torch.float64)
    settings = {"interaction": True, "step_size": 0.2, "transport_steps": 2}

    def distance(logits: Tensor) -> Tensor:
        dense = torch.zeros(3, VOCAB, dtype=torch.float64).scatter(1, state.candidate_ids, logits.exp())
        return torch.pdist(dense).mean()

    still = distance(space(q, **settings).transport(state).logits)
    assert still == pytest.approx(float(distance(tilted(state, q, 0.0))))
    assert distance(space(q, repulsion=True, **settings).transport(state).logits) > still + 0.01


def test_what_the_space_refuses() -> None:
    with pytest.raises(ValueError, match="`control` must be one of None, 'random', 'shuffled'; got 'noise'"):
        space(table(1), control="noise")
