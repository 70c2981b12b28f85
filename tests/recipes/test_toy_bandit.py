# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The two-mode bandit: its reward, its networks, the meaning of L = 0, and what the demonstration claims."""

import json
import math
from pathlib import Path

import pytest
import torch

from recipes import toy_bandit
from recipes.stacked_networks import FlowMatching, StackedMLP
from recipes.toy_bandit import Settings
from vgf_llm.functional import flow_direction

TINY = Settings(seeds=2, tuning_seeds=1, num_samples=30, num_groups=6, num_particles=3, updates=5, width=8)


def test_the_true_reward_has_its_two_modes() -> None:
    low, high = toy_bandit.true_reward(toy_bandit.MODES)
    gap = (toy_bandit.MODES[0] - toy_bandit.MODES[1]).square().sum()
    assert float(low) == pytest.approx(0.6 + math.exp(-float(gap) / (2 * 0.6**2)), abs=1e-6)
    assert float(high) == pytest.approx(1.0 + 0.6 * math.exp(-float(gap) / (2 * 0.5**2)), abs=1e-6)
    beside = toy_bandit.true_reward(toy_bandit.MODES[1] + torch.tensor([0.6, 0.0]))
    assert float(beside) == pytest.approx(math.exp(-0.5), abs=1e-3)


def test_networks_of_a_stack_do_not_see_each_other() -> None:
    stack = StackedMLP(3, (2, 8, 1), torch.Generator().manual_seed(0))
    inputs = torch.randn(3, 5, 2)
    changed = inputs.clone()
    changed[1] += 1
    same = (stack(inputs) == stack(changed)).flatten(1).all(dim=1)
    assert same.tolist() == [True, False, True]
    twice = stack.repeat(2)
    assert torch.equal(twice(inputs.repeat(2, 1, 1)), stack(inputs).repeat(2, 1, 1))
    with pytest.raises(ValueError, match="num >= 1"):
        StackedMLP(0, (2, 1), torch.Generator())


def test_a_constant_velocity_carries_noise_by_itself() -> None:
    model = FlowMatching(1, 2, 0, 4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.velocity.weights[-1].zero_()
        model.velocity.biases[-1].copy_(torch.tensor([[[1.0, -2.0]]]))
    noise = torch.randn(1, 3, 2)
    assert torch.allclose(model.sample(noise, num_steps=7), noise + torch.tensor([1.0, -2.0]), atol=1e-6)


def test_flow_matching_learns_a_shifted_gaussian() -> None:
    generator = torch.Generator().manual_seed(0)
    model = FlowMatching(1, 2, 0, 32, generator)
    data = torch.tensor([2.0, -1.0]) + 0.3 * torch.randn(1, 512, 2, generator=generator)
    toy_bandit._fit(lambda: model.loss(data, None, generator), list(model.parameters()), 300, lr=1e-2)
    samples = model.sample(torch.randn(1, 2000, 2, generator=generator)).detach()[0]
    assert torch.allclose(samples.mean(dim=0), torch.tensor([2.0, -1.0]), atol=0.1)
    assert float(samples.std(dim=0).max()) < 0.5


def test_no_budget_is_best_of_n_and_one_step_is_the_papers() -> None:
    problem = toy_bandit.make_problem(TINY, torch.Generator().manual_seed(0))
    none, one = toy_bandit.run_transport(problem, TINY)[:2]
    best = toy_bandit.measure("best-of-3", float("nan"), problem.reference, problem.reward)
    assert torch.equal(none.picks, best.picks)
    assert float(none.moved.max()) == 0.0
    start = problem.reference.clone().requires_grad_()
    (score,) = torch.autograd.grad(toy_bandit.value_of(problem.reward)(start).sum(), start)
    step = TINY.step_size * flow_direction(start.detach(), score, alpha=TINY.alpha)
    moved = (problem.reference + step).clamp(-toy_bandit.BOX, toy_bandit.BOX)
    expected = toy_bandit.measure("VGF", 1, moved, problem.reward)
    assert torch.allclose(one.picks, expected.picks, atol=1e-6)


def test_the_control_moves_as_far_as_the_flow() -> None:
    problem = toy_bandit.make_problem(TINY, torch.Generator().manual_seed(0))
    problem.reference = problem.reference.clamp(-1, 1)
    vgf = toy_bandit.run_transport(problem, TINY)[3]
    control = toy_bandit.run_random(problem, vgf, torch.Generator().manual_seed(1))
    assert control.moved is vgf.moved
    gap = (control.picks.unsqueeze(2) - problem.reference).norm(dim=-1).amin(dim=2)
    assert bool((gap <= vgf.moved.unsqueeze(1) + 1e-5).all())


def test_the_same_seed_gives_the_same_numbers() -> None:
    first, second = (toy_bandit.table(toy_bandit.run(TINY, seed=3)[2], TINY.seeds) for _ in range(2))
    assert first == second
    assert first != toy_bandit.table(toy_bandit.run(TINY, seed=4)[2], TINY.seeds)


def test_the_command_writes_table_and_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toy_bandit, "from_arguments", lambda args: TINY)
    toy_bandit.main(["--output_dir", str(tmp_path)])
    assert "| random direction |" in capsys.readouterr().out
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["meta"]["settings"]["num_particles"] == 3
    assert (tmp_path / "toy_bandit.png").read_bytes().startswith(b"\x89PNG")


def test_too_few_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="seeds must be at least 2, got 1"):
        Settings(seeds=1)


def test_transport_finds_what_best_of_n_does_not_and_too_much_misleads() -> None:
    """One problem at full size: the margins below are a third of the differences in docs/demonstrations.md."""
    settings = Settings(seeds=2, tuning_seeds=1, updates=400)
    problem = toy_bandit.make_problem(settings, torch.Generator().manual_seed(0))
    sweep = {outcome.knob: outcome for outcome in toy_bandit.run_transport(problem, settings)}
    assert bool((sweep[8].true > sweep[0].true + 0.06).all())
    assert bool((sweep[64].true < sweep[0].true - 0.1).all())
    assert bool((sweep[64].learned > sweep[8].learned).all())
