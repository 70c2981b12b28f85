# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Hidden space: relative steps uphill on V, read by the output embedding."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.layouts import shake, tiny_model
from vgf_llm.functional import candidate_set, flow_direction
from vgf_llm.models import StateFeatures, StateValue, build_value
from vgf_llm.models.language_model import output_vocab_size, output_width, project_hidden
from vgf_llm.spaces import DecodeState, HiddenSpace


@pytest.fixture(scope="module", params=["llama", "gemma2", "opt_projected"])
def policy(request: pytest.FixtureRequest) -> Any:
    return tiny_model(request.param)


def make_space(policy: Any, *, hidden_size: int | None = None, seed: int = 0, **settings: Any) -> HiddenSpace:
    value = build_value("v_head", width=output_width(policy), vocab_size=40, head_hidden_size=hidden_size)
    assert isinstance(value, StateValue)
    shake(value, seed=seed)
    return HiddenSpace(policy, value, **{"step_size": 0.1, "num_steps": 3, **settings})


def make_state(policy: Any, rows: int = 4, num_particles: int = 1) -> DecodeState:
    hidden = torch.randn(rows, output_width(policy), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        log_probs = project_hidden(policy, hidden).log_softmax(-1)
    ids, mask = candidate_set(log_probs, top_k=8, min_prob=0.02)
    return DecodeState(ids, mask, log_probs.gather(-1, ids), StateFeatures(), hidden, num_particles)


def restricted(logits: Tensor, mask: Tensor) -> Tensor:
    return logits.masked_fill(~mask, -torch.inf).log_softmax(-1)


@torch.no_grad()
def test_no_step_is_the_base_on_the_candidates(policy: Any) -> None:
    state = make_state(policy)
    moved = make_space(policy, num_steps=0).transport(state)
    assert torch.equal(moved.logits, restricted(state.logits, state.candidate_mask))
    assert moved.q_values is None


@torch.no_grad()
def test_steps_are_relative_and_exact_for_a_linear_head(policy: Any) -> None:
    state, space = make_state(policy), make_space(policy)
    particles = space.lift(state)
    for count in range(1, 4):
        velocity = space.velocity(particles, state)
        torch.testing.assert_close(velocity.norm(dim=-1), state.hidden.norm(dim=-1))
        particles = space.step(particles, velocity)
        travelled = (particles - state.hidden).norm(dim=-1)
        torch.testing.assert_close(travelled, count * 0.1 * state.hidden.norm(dim=-1), atol=1e-5, rtol=1e-5)
    uphill = space.value.head.out.weight[0]
    direction = torch.nn.functional.normalize(particles - state.hidden, dim=-1)
    torch.testing.assert_close(direction, (uphill / uphill.norm()).expand_as(direction), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_value_rises_along_small_steps(policy: Any) -> None:
    state, space = make_state(policy), make_space(policy, hidden_size=12, step_size=0.01)
    particles = space.lift(state)
    values = [space.value.head(particles)]
    for _ in range(10):
        particles = space.step(particles, space.velocity(particles, state))
        values.append(space.value.head(particles))
    assert (torch.stack(values).diff(dim=0) > 0).all()


@torch.no_grad()
def test_moved_states_are_read_by_the_output_embedding(policy: Any) -> None:
    state, space = make_state(policy), make_space(policy)
    uphill = torch.nn.functional.normalize(space.value.head.out.weight, dim=-1)
    moved = state.hidden + 0.3 * state.hidden.norm(dim=-1, keepdim=True) * uphill
    expected = restricted(project_hidden(policy, moved).gather(-1, state.candidate_ids), state.candidate_mask)
    found = space.transport(state).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert output_vocab_size(policy) == 40


@torch.no_grad()
def test_what_logits_processors_did_is_kept(policy: Any) -> None:
    state, space = make_state(policy), make_space(policy)
    penalty = torch.zeros_like(state.logits)
    penalty[:, 0] = -1.5
    changed = DecodeState(
        state.candidate_ids, state.candidate_mask, state.logits + penalty, state.features, state.hidden
    )
    expected = restricted(space.transport(state).logits + penalty, state.candidate_mask)
    torch.testing.assert_close(space.transport(changed).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("repulsion", [False, True])
@torch.no_grad()
def test_interaction_is_the_flow_direction_at_the_states_norm(policy: Any, repulsion: bool) -> None:
    state = make_state(policy, rows=6, num_particles=3)
    space = make_space(policy, hidden_size=12, interaction=True, repulsion=repulsion, alpha=0.5)
    with torch.enable_grad():
        hidden = state.hidden.clone().requires_grad_()
        score = torch.autograd.grad(space.value.state_potential(hidden).sum(), hidden)[0]
    phi = flow_direction(state.hidden.view(2, 3, -1), score.view(2, 3, -1), alpha=0.5, repulsion=repulsion).view(6, -1)
    expected = torch.nn.functional.normalize(phi, dim=-1) * state.hidden.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(space.velocity(state.hidden, state), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_random_control_moves_as_far_elsewhere(policy: Any) -> None:
    state = make_state(policy, rows=200)
    velocity = make_space(policy, control="random").velocity(state.hidden, state)
    torch.testing.assert_close(velocity.norm(dim=-1), state.hidden.norm(dim=-1))
    uphill = make_space(policy).velocity(state.hidden, state)
    cosine = torch.nn.functional.cosine_similarity(velocity, uphill, dim=-1)
    assert cosine.std() > 0.1
    assert abs(cosine.mean()) < 4 * cosine.std() / 200**0.5


@torch.no_grad()
def test_shuffled_control_moves_as_far_elsewhere(policy: Any) -> None:
    state = make_state(policy, rows=20)
    moved = [make_space(policy, control=control).velocity(state.hidden, state) for control in (None, "shuffled")]
    torch.testing.assert_close(*(velocity.norm(dim=-1) for velocity in moved))
    torch.testing.assert_close(*(velocity.sort(dim=-1).values for velocity in moved))
    assert not torch.allclose(*moved)


@torch.no_grad()
def test_a_flat_value_moves_nothing(policy: Any) -> None:
    state, space = make_state(policy), make_space(policy)
    space.value.head.out.weight.zero_()
    assert not space.velocity(state.hidden, state).any()


def test_what_the_space_refuses(policy: Any) -> None:
    with pytest.raises(ValueError, match="`space='hidden'` needs a v_head value; this model has 'log_ratio'"):
        HiddenSpace(policy, build_value("log_ratio", width=16, vocab_size=40), step_size=0.1, num_steps=1)
    state = make_state(policy)
    bare = DecodeState(state.candidate_ids, state.candidate_mask, state.logits, state.features)
    with pytest.raises(ValueError, match=r"`state\.hidden` is missing"):
        make_space(policy).transport(bare)
