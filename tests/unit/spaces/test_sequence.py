# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Sequence spaces against closed forms: linear values, hand-made candidates, order of particles."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.generation.sequence_values import MeanFeature, learned_value
from tests.layouts import VOCAB
from vgf_llm.models import TransportConfig
from vgf_llm.spaces import SequenceSpace, SequenceState, build_sequence_space
from vgf_llm.spaces.sequence import TextCandidates

ROWS, T, K = 4, 5, 6
SPACES = ["sequence_embedding", "sequence_logit"]


def worth() -> Tensor:
    return torch.linspace(-1, 1, VOCAB)[torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))]


def state(value: Any, num_particles: int = 4) -> SequenceState:
    """Four responses of lengths 5, 3, 1 and 4 behind a prompt of three tokens, with candidates."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(T) < torch.tensor([5, 3, 1, 4]).unsqueeze(-1)
    ids = torch.stack([torch.randperm(VOCAB, generator=generator)[:K] for _ in range(ROWS * T)]).view(ROWS, T, K)
    logps = torch.randn(ROWS, T, K, generator=generator).log_softmax(-1) - 0.1
    allowed = torch.rand(ROWS, T, K, generator=generator) > 0.3
    perturbed = torch.randn(ROWS, T, K, generator=generator)
    best = perturbed.argmax(-1, keepdim=True)
    allowed.scatter_(-1, best, True)
    prefix = torch.randint(3, VOCAB, (ROWS, 3), generator=generator)
    return SequenceState(
        prefix_embeds=value.embed(prefix),
        prefix_mask=torch.ones_like(prefix),
        prefix_response=torch.zeros_like(prefix),
        tokens=torch.where(mask, ids.gather(-1, best).squeeze(-1), 0),
        mask=mask,
        num_particles=num_particles,
        candidates=TextCandidates(ids, allowed, logps, perturbed),
    )


def space_of(name: str, value: Any = None, control: str | None = None, **settings: Any) -> SequenceSpace:
    transport = TransportConfig(space=name, **{"step_size": 0.5, "transport_steps": 3, **settings})
    return build_sequence_space(value or MeanFeature(worth()), transport, control=control)


def permuted(value: SequenceState, order: Tensor) -> SequenceState:
    others = ("num_particles", "candidates", "prefix")
    fields = {name: getattr(value, name)[order] for name in vars(value) if name not in others}
    parts = TextCandidates(**{name: x[order] for name, x in vars(value.candidates).items()})
    return SequenceState(**fields, num_particles=value.num_particles, candidates=parts)


@pytest.mark.parametrize("name", SPACES)
def test_unmoved_particles_tilt_nothing(name: str) -> None:
    space = space_of(name)
    text = state(space.value)
    start = space.lift(text)
    tilt = space.project(start, start, text)
    for position in range(T + 2):
        assert not tilt(position, torch.arange(8).expand(ROWS, 8)).any()


def test_a_linear_value_moves_embeddings_in_closed_form() -> None:
    space = space_of("sequence_embedding", decode_strength=3.0)
    text = state(space.value)
    start = space.lift(text)
    velocity = space.velocity(start, start, text, at_text=False)
    lengths = text.mask.sum(-1)
    expected = worth().expand(ROWS, T, VOCAB) / lengths.view(-1, 1, 1) * text.mask.unsqueeze(-1)
    torch.testing.assert_close(velocity.direction, expected)
    values = torch.stack([worth()[row[keep]].mean() for row, keep in zip(text.tokens, text.mask, strict=True)])
    torch.testing.assert_close(velocity.values.squeeze(-1), values)
    moved = start
    for _ in range(3):
        moved = space.step(moved, velocity.direction, text)
    unit = worth() / worth().norm()  # embeddings are one-hot rows of norm 1
    torch.testing.assert_close((moved - start)[text.mask], (1.5 * unit).expand(int(text.mask.sum()), VOCAB))
    ids = torch.arange(10).expand(ROWS, 10)
    tilt = space.project(moved, start, text)
    for position in range(T):
        torch.testing.assert_close(tilt(position, ids), 4.5 * unit[ids] * text.mask[:, position : position + 1])


def test_a_tilt_does_not_depend_on_the_scale_of_the_embeddings() -> None:
    tilts = []
    for scale in (1.0, 0.05):
        value = MeanFeature(worth() / scale)
        value.matrix.data.mul_(scale)
        space = space_of("sequence_embedding", value)
        text = state(value)
        start = space.lift(text)
        moved = space.step(start, space.velocity(start, start, text, at_text=False).direction, text)
        tilts.append(space.project(moved, start, text)(0, torch.arange(10).expand(ROWS, 10)))
    torch.testing.assert_close(tilts[1], tilts[0], rtol=1e-4, atol=1e-5)


def test_a_linear_value_tilts_logits_by_what_tokens_are_worth() -> None:
    space = space_of("sequence_logit")
    text = state(space.value)
    candidates = text.candidates
    start = space.lift(text)
    moved = start
    for _ in range(3):
        moved = space.step(moved, space.velocity(moved, start, text, at_text=False).direction, text)
    q_values = worth()[candidates.ids] / text.mask.sum(-1).view(-1, 1, 1)
    expected = (candidates.logps + 1.5 * q_values).masked_fill(~candidates.mask, -torch.inf).log_softmax(-1)
    torch.testing.assert_close(moved[text.mask], expected[text.mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved[~text.mask], start[~text.mask])
    # Re-decoding meets other candidates: known ones gain what they gained, unknown ones the least.
    tilt = space.project(moved, start, text)
    gain = torch.where(candidates.mask, moved - start, torch.inf)
    known = candidates.ids[:, 0, :1]
    unknown = torch.tensor([next(v for v in range(VOCAB) if v not in row[0].tolist()) for row in candidates.ids])
    found = tilt(0, torch.cat([known, unknown.unsqueeze(-1)], dim=-1))
    first = torch.where(candidates.mask[:, 0, 0], gain[:, 0, 0], gain[:, 0].amin(-1))
    torch.testing.assert_close(found, torch.stack([first, gain[:, 0].amin(-1)], dim=-1))


def test_with_a_temperature_logits_flow_to_the_boltzmann_target() -> None:
    space = space_of("sequence_logit", alpha=0.2, step_size=0.5, transport_steps=40)
    text = state(space.value)
    candidates = text.candidates
    start = moved = space.lift(text)
    for _ in range(40):
        moved = space.step(moved, space.velocity(moved, start, text, at_text=False).direction, text)
    q_values = worth()[candidates.ids] / text.mask.sum(-1).view(-1, 1, 1)
    target = (candidates.logps + q_values / 0.2).masked_fill(~candidates.mask, -torch.inf).log_softmax(-1)
    torch.testing.assert_close(moved[text.mask], target[text.mask], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("at_text", [True, False])
def test_order_of_particles_does_not_matter(name: str, at_text: bool) -> None:
    space = space_of(name, learned_value(), interaction=True, repulsion=True, alpha=0.5)
    text = state(space.value)
    order = torch.tensor([2, 0, 3, 1])
    other = permuted(text, order)
    found = []
    for each in (text, other):
        start = space.lift(each)
        moved = space.step(start, space.velocity(start, start, each, at_text=at_text).direction, each)
        found.append(moved.nan_to_num(neginf=-50.0))
    torch.testing.assert_close(found[1], found[0][order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SPACES)
def test_one_particle_does_not_feel_a_kernel(name: str) -> None:
    value = learned_value()
    text = state(value, num_particles=1)
    found = []
    for interaction in (False, True):
        space = space_of(name, value, interaction=interaction, repulsion=interaction)
        start = space.lift(text)
        found.append(space.velocity(start, start, text, at_text=False).direction)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", SPACES)
def test_relift_keeps_displacements_of_positions(name: str) -> None:
    space = space_of(name, learned_value())
    text = state(space.value)
    start = space.lift(text)
    moved = space.step(start, space.velocity(start, start, text, at_text=False).direction, text)
    same = space.relift(moved, start, text, text)
    inside = text.mask if name == "sequence_embedding" else torch.ones_like(text.mask)
    torch.testing.assert_close(same[inside], moved[inside], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SPACES)
def test_the_random_control_has_the_gradients_size(name: str) -> None:
    value = learned_value()
    text = state(value)
    directions = []
    for control in (None, "random"):
        space = space_of(name, value, control=control)
        start = space.lift(text)
        directions.append(space.velocity(start, start, text, at_text=False).direction)
    gradient, noise = directions
    assert not torch.allclose(gradient, noise)
    assert not noise[~text.mask].any()
    if name == "sequence_embedding":
        torch.testing.assert_close(noise.norm(dim=-1), gradient.norm(dim=-1))


def test_shuffled_takes_the_gradient_of_another_row() -> None:
    value = learned_value()
    text = state(value, num_particles=2)
    found = []
    for control in (None, "shuffled"):
        space = space_of("sequence_embedding", value, control=control)
        start = space.lift(text)
        found.append(space.velocity(start, start, text, at_text=False).direction)
    torch.testing.assert_close(found[1], found[0].roll(2, dims=0))


def test_spaces_refuse_what_they_cannot_use() -> None:
    with pytest.raises(TypeError, match=r"best-of-N.*swaps"):
        space_of("sequence_embedding", lambda prompts, responses: [0.0])
    with pytest.raises(ValueError, match="control"):
        space_of("sequence_logit", control="other")
    zero = MeanFeature(worth())
    torch.nn.init.zeros_(zero.matrix)
    with pytest.raises(ValueError, match="zero"):
        space_of("sequence_embedding", zero)
    space = space_of("sequence_logit")
    bare = state(space.value)
    with pytest.raises(ValueError, match="candidates"):
        space.lift(SequenceState(**{**vars(bare), "candidates": None}))
