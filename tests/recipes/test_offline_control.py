# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The offline maze: physics by hand, data, targets, the meaning of L = 0, and the command."""

import json
from pathlib import Path

import pytest
import torch

from recipes import offline_control as control
from recipes import offline_environment as maze
from recipes.offline_control import Settings
from vgf_llm.functional import flow_direction

TINY = Settings(
    train_steps=(0, 1),
    test_steps=(0, 1),
    control_steps=1,
    num_particles=3,
    updates=5,
    batch_size=16,
    width=8,
    data_episodes=10,
    data_horizon=8,
    eval_episodes=4,
    eval_horizon=3,
)


def state(x: float, y: float, vx: float = 0.0, vy: float = 0.0) -> torch.Tensor:
    return torch.tensor([[x, y, vx, vy]])


def test_a_push_in_the_open_follows_the_equations() -> None:
    following, reward, done = maze.step(state(0.2, 0.2), torch.tensor([[1.0, -0.5]]))
    x, y, vx, vy = 0.2, 0.2, 0.0, 0.0
    time = maze.STEP_TIME / maze.SUBSTEPS
    for _ in range(maze.SUBSTEPS):
        vx, vy = vx + time * (4 * 1.0 - 3 * vx), vy + time * (4 * -0.5 - 3 * vy)
        x, y = x + time * vx, y + time * vy
    assert torch.allclose(following, state(x, y, vx, vy), atol=1e-6)
    assert float(reward) == pytest.approx(-0.2)
    assert not bool(done)


def test_one_substep_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maze, "SUBSTEPS", 1)
    following, _, _ = maze.step(state(0.2, 0.2, 0.1, 0.0), torch.tensor([[0.5, 0.0]]))
    # v = 0.1 + 0.2 (4 * 0.5 - 3 * 0.1) = 0.44, x = 0.2 + 0.2 * 0.44
    assert torch.allclose(following, state(0.288, 0.2, 0.44, 0.0), atol=1e-6)


def test_actions_are_clipped() -> None:
    strong, _, _ = maze.step(state(0.2, 0.2), torch.tensor([[9.0, 0.0]]))
    full, _, _ = maze.step(state(0.2, 0.2), torch.tensor([[1.0, 0.0]]))
    assert torch.equal(strong, full)


def test_a_wall_stops_one_axis_and_the_mass_slides_along_it() -> None:
    following, _, _ = maze.step(state(0.449, 0.3, 1.0, 0.5), torch.tensor([[1.0, 0.0]]))
    assert float(following[0, 0]) == pytest.approx(0.449)
    assert float(following[0, 2]) == 0.0
    assert float(following[0, 1]) > 0.3


def test_the_border_stops_and_nothing_tunnels_through_the_wall() -> None:
    at_border, _, _ = maze.step(state(0.01, 0.2, -1.0, 0.0), torch.tensor([[-1.0, 0.0]]))
    assert float(at_border[0, 0]) >= 0.0
    states = maze.reset(50, torch.Generator().manual_seed(0))
    for _ in range(30):
        states, _, _ = maze.step(states, torch.tensor([[1.0, 0.0]]).expand(50, 2))
    assert bool((states[:, 0] <= 0.45).all())


def test_reaching_the_goal_ends_the_episode() -> None:
    _, _, done = maze.step(state(0.85, 0.3, 0.0, -1.0), torch.tensor([[0.0, -1.0]]))
    assert bool(done)
    steps, arrived, positions = control.rollout(
        lambda states, generator: maze.behave(
            states, torch.tensor([[0.4, 0.9]]).expand(len(states), 2), torch.ones(len(states)), torch.zeros(())
        ),
        num_episodes=3,
        horizon=4,
        seed=0,
    )
    assert steps.tolist() == [4.0] * 3
    assert not bool(arrived.any())
    assert positions.shape == (5, 3, 2)


def test_the_data_are_transitions_of_the_maze() -> None:
    data = maze.collect(20, 60, torch.Generator().manual_seed(0))
    following, reward, done = maze.step(data.states, data.actions)
    assert torch.equal(following, data.next_states)
    assert torch.equal(reward, data.rewards)
    assert torch.equal(done.float(), data.dones)
    assert float(data.dones.sum()) >= 5
    assert float(torch.linalg.vector_norm(data.actions, dim=-1).median()) < 0.6


def test_no_budget_is_best_of_n_and_a_step_is_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    data = maze.collect(10, 8, generator)
    behaviour = control.train_behaviour(data, TINY, generator)
    references = control.reference_actions(behaviour, data.next_states, 3, generator)
    critic = control.train_critic(data, references, 0, TINY, generator)
    states = data.states[:5]

    start = control.reference_actions(behaviour, states, 3, torch.Generator().manual_seed(1))
    values = control.critic_values(critic, states, start).mean(dim=0)
    best = start[torch.arange(5), values.argmax(dim=1)]
    picked = control.transport_policy(behaviour, critic, 0, TINY)(states, torch.Generator().manual_seed(1))
    assert torch.equal(picked, best)

    leaf = start.clone().requires_grad_()
    (score,) = torch.autograd.grad(control.critic_values(critic, states, leaf).mean(dim=0).sum(), leaf)
    step = TINY.step_size * flow_direction(start, score, alpha=TINY.alpha)
    assert torch.allclose(control.move(critic, states, start, 1, TINY), (start + step).clamp(-1, 1), atol=1e-6)


def test_a_value_of_the_particle_does_not_depend_on_the_others() -> None:
    critic, _ = control._new_critic(TINY, torch.Generator().manual_seed(0))
    states, actions = torch.rand(2, 4), torch.rand(2, 3, 2)
    values = control.critic_values(critic, states, actions)
    assert values.shape == (2, 2, 3)
    alone = control.critic_values(critic, states[1:], actions[1:, 2:])
    assert torch.allclose(values[:, 1, 2], alone[:, 0, 0], atol=1e-6)


def test_td_regresses_on_reward_plus_discounted_next_value() -> None:
    """With the next value held at a constant, the critics converge to r + gamma (1 - done) V."""
    settings = Settings(updates=1, width=16, learning_rate=1e-2)
    critic, target = control._new_critic(settings, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(critic.parameters(), settings.learning_rate)
    states = torch.rand(8, 4)
    dones = torch.tensor([0.0, 1.0] * 4)
    batch = maze.Dataset(states, torch.rand(8, 2), torch.full((8,), -0.2), states, dones)
    for _ in range(400):
        control._update_critic(critic, target, optimizer, batch, torch.full((8,), -2.0), settings)
    values = control.critic_values(critic, states, batch.actions.unsqueeze(1)).squeeze(-1)
    assert torch.allclose(values, (-0.2 - 0.95 * 2.0 * (1 - dones)).expand(2, -1), atol=0.1)


def test_the_same_seed_gives_the_same_numbers() -> None:
    assert control.run_seed(TINY, 1)[0] == control.run_seed(TINY, 1)[0]


def test_the_command_writes_table_and_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(control, "from_arguments", lambda args: TINY)
    control.main(["--output_dir", str(tmp_path), "--seeds", "2"])
    assert "| TD3+BC-like, weight 2.5 |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "results.json").read_text())["seeds"]) == 2
    assert (tmp_path / "offline_control.png").read_bytes().startswith(b"\x89PNG")


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="test_steps must be one or more budgets"):
        Settings(test_steps=())
    with pytest.raises(ValueError, match="num_particles must be at least 1, got 0"):
        Settings(num_particles=0)
