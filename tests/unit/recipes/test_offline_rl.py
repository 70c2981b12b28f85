# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The agents of the OGBench recipe on toy data, without MuJoCo: targets by hand, a bandit, resuming, errors."""

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes import ogbench_vgf as recipe
from recipes.offline_rl import data as source
from recipes.offline_rl.agents import (
    BASELINES,
    FQL,
    IFQL,
    Agent,
    Behaviour,
    Policy,
    ReBRAC,
    References,
    Settings,
    ValueGradientFlow,
    draw,
    draw_references,
)
from recipes.offline_rl.data import Dataset, find_task, read
from recipes.offline_rl.evaluate import Pool, interval
from recipes.ogbench_vgf import Plan, Run, parse, table

TINY = Settings(seeds=2, updates=8, batch_size=16, width=8, num_particles=3, test_particles=4, ifql_samples=5)
TASK = "cube-single-play-singletask-task2-v0"


def toy(episodes: int = 10, steps: int = 6) -> Dataset:
    """Random transitions; the last row of an episode has no successor."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(episodes * steps)
    starts = rows[(rows + 1) % steps != 0]
    return Dataset(
        torch.randn(len(rows), 3, generator=generator),
        torch.rand(len(rows), 2, generator=generator) * 2 - 1,
        starts,
        -torch.ones(len(starts)),
        (torch.rand(len(starts), generator=generator) > 0.5).float(),
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def behaviour_of(data: Dataset, settings: Settings) -> tuple[Behaviour, References]:
    behaviour = Behaviour(settings, data, generator())
    return behaviour, draw_references(behaviour.flow, data, settings, generator(1))


def agents(data: Dataset, settings: Settings) -> dict[str, tuple[Agent, Policy]]:
    behaviour, references = behaviour_of(data, settings)
    flow = ValueGradientFlow(settings, data, generator(), behaviour, references)
    made: dict[str, tuple[Agent, Policy]] = {
        "behaviour": (behaviour, behaviour.policy()),
        "VGF": (flow, flow.policy(2)),
    }
    for name, kind in BASELINES.items():
        agent = kind(settings, data, generator(), behaviour, references)
        made[name] = (agent, agent.policy())
    return made


@pytest.mark.parametrize("name", ["behaviour", "VGF", "IFQL", "FQL", "ReBRAC"])
def test_actions_have_their_shape_stay_in_the_box_and_change_with_training(name: str) -> None:
    agent, policy = agents(toy(), TINY)[name]
    observations = 10 * torch.randn(2, 5, 3, generator=generator())
    before = policy(observations, generator(3))
    for _ in range(5):
        agent.update()
    after = policy(observations, generator(3))
    assert after.shape == (2, 5, 2)
    assert bool((after.abs() <= 1).all())
    assert not torch.equal(before, after)


@pytest.mark.parametrize("name", ["behaviour", "VGF", "IFQL", "FQL", "ReBRAC"])
def test_training_that_was_stopped_goes_on_to_the_same_weights(name: str) -> None:
    data = toy()
    whole, _ = agents(data, TINY)[name]
    first, _ = agents(data, TINY)[name]
    for _ in range(5):
        whole.update()
    for _ in range(2):
        first.update()
    second, _ = agents(data, TINY)[name]
    second.restore(first.saved())
    for _ in range(3):
        second.update()
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_seeds_of_a_stack_do_not_touch_each_other() -> None:
    data = toy()
    changed = replace(data, rewards=data.rewards.clone())
    one, other = (agents(rows, TINY)["VGF"][0] for rows in (data, changed))
    for agent in (one, other):
        batch = draw(data, TINY, generator())
        if agent is other:
            batch.rewards[1] += 5.0
        agent.regress(batch, torch.zeros(2, 16))
    for weight, moved in zip(one.critic.fast.parameters(), other.critic.fast.parameters(), strict=True):
        assert torch.equal(weight.view(2, 2, -1)[:, 0], moved.view(2, 2, -1)[:, 0])  # [critic, seed, ...]
        assert not torch.equal(weight.view(2, 2, -1)[:, 1], moved.view(2, 2, -1)[:, 1])


class Linear(torch.nn.Module):
    """A critic by hand: the first has the value a_0, the second 3 a_0, and the slow ones half of that."""

    def forward(self, observations: torch.Tensor, actions: torch.Tensor, slow: bool = False) -> torch.Tensor:
        value = actions[..., 0] * (0.5 if slow else 1.0)
        return torch.stack([value, 3 * value])

    def one(self, observations: torch.Tensor, actions: torch.Tensor, slow: bool = False) -> torch.Tensor:
        return self(observations, actions.unsqueeze(2), slow).squeeze(-1)


def target_of(agent: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, torch.Tensor]:
    """The batch of an update and the value of the next state that it regresses to."""
    found: list[Any] = []
    monkeypatch.setattr(agent, "regress", lambda batch, value: found.extend([batch, value]))
    agent.update()
    return found[0], found[1]


@pytest.mark.parametrize("train_steps", [0, 1, 3])
def test_the_target_is_the_mean_of_the_slow_critics_over_transported_particles(
    train_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = toy()
    settings = replace(TINY, num_particles=1, step_size=0.01, alpha=0.5)
    behaviour, references = behaviour_of(data, settings)
    agent = ValueGradientFlow(settings, data, generator(), behaviour, references)
    agent.train_steps, agent.critic = train_steps, Linear()
    batch, value = target_of(agent, monkeypatch)
    # one particle: steps of 0.01 * 2 / 0.5 along the first coordinate, as the mean of a_0 and 3 a_0 has gradient 2
    start = references.at(batch.rows + 1)[..., 0, 0]
    moved = start.clone()
    for _ in range(train_steps):
        moved = (moved + 0.01 * 2 / 0.5).clamp(-1, 1)
    assert torch.allclose(value, 0.5 * 2 * moved, atol=1e-6)


def test_the_td_goal_by_hand() -> None:
    data = toy()
    behaviour, references = behaviour_of(data, TINY)
    agent = IFQL(replace(TINY, target_rate=0.25), data, generator(), behaviour, references)
    batch = draw(data, TINY, generator())
    assert 0 < float(batch.masks.mean()) < 1
    goals: list[torch.Tensor] = []
    values = agent.critic.one(batch.observations, batch.actions).detach()
    slow = [weight.clone() for weight in agent.critic.slow.parameters()]
    minimise = agent.minimise
    agent.minimise = lambda optimizer, losses: (goals.append(losses.detach()), minimise(optimizer, losses))[1]  # type: ignore[method-assign]
    agent.regress(batch, torch.full((2, 16), -3.0))
    goal = -1 + 0.99 * batch.masks * -3
    assert torch.allclose(goals[0], ((values - goal) ** 2).mean(dim=2).mean(dim=0), atol=1e-5)
    for old, new, fast in zip(slow, agent.critic.slow.parameters(), agent.critic.fast.parameters(), strict=True):
        assert torch.allclose(new, 0.75 * old + 0.25 * fast, atol=1e-6)


def test_ifql_regresses_an_expectile_of_the_lower_slow_critic() -> None:
    data = toy()
    behaviour, references = behaviour_of(data, TINY)
    agent = IFQL(TINY, data, generator(7), behaviour, references)
    batch = draw(data, TINY, generator(2))
    agent.generator = generator(2)
    with torch.no_grad():
        error = agent.critic.one(batch.observations, batch.actions, slow=True).min(dim=0).values
        error = error - agent.value(batch.observations)[..., 0]
    expected = torch.where(error > 0, 0.9 * error**2, 0.1 * error**2).mean(dim=1)
    seen: list[torch.Tensor] = []
    agent.minimise = lambda optimizer, losses: seen.append(losses.detach())  # type: ignore[method-assign]
    agent.update()
    assert torch.allclose(seen[0], expected, atol=1e-6)


def losses_of(agent: Any) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    agent.regress = lambda batch, value: seen.append(value)
    agent.minimise = lambda optimizer, losses: seen.append(losses.detach())
    agent.update()
    return seen


def test_fql_pulls_to_the_behaviour_action_of_the_same_noise_and_up_the_value() -> None:
    data = toy()
    behaviour, references = behaviour_of(data, TINY)
    agent = FQL(replace(TINY, fql_weight=10.0), data, generator(), behaviour, references)
    # The actor returns its noise, so that the distance is that of the noise to the flow's action.
    agent.critic, agent.act = Linear(), lambda observations, noise: noise  # type: ignore[method-assign]
    agent.generator = generator(4)
    value, loss = losses_of(agent)
    again = generator(4)
    batch = draw(data, TINY, again)
    following = torch.randn(batch.actions.shape, generator=again).clamp(-1, 1)
    which = torch.randint(3, batch.rows.shape, generator=again)
    rows = torch.arange(2)[:, None], batch.rows, which
    noise, teacher = references.noise[rows], references.actions[rows]
    assert torch.allclose(value, following[..., 0])  # the mean of a_0 / 2 and 3 a_0 / 2
    expected = 10 * ((noise - teacher) ** 2).mean(dim=(1, 2)) - (2 * noise.clamp(-1, 1)[..., 0]).mean(dim=1)
    assert torch.allclose(loss, expected, atol=1e-5)


def test_rebrac_penalises_the_distance_in_the_target_and_trains_its_policy_every_other_time() -> None:
    data = toy()
    behaviour, references = behaviour_of(data, TINY)
    settings = replace(TINY, rebrac_actor=2.0, rebrac_critic=0.5)
    agent = ReBRAC(settings, data, generator(), behaviour, references)
    agent.critic = Linear()
    agent.generator = generator(5)
    first = losses_of(agent)
    again = generator(5)
    batch = draw(data, settings, again)
    noise = (0.2 * torch.randn(batch.actions.shape, generator=again)).clamp(-0.5, 0.5)
    action = (agent.slow_actor(batch.next_observations).tanh() + noise).clamp(-1, 1)
    lower = torch.minimum(0.5 * action[..., 0], 1.5 * action[..., 0])
    assert len(first) == 1
    assert torch.allclose(first[0], lower - 0.5 * ((action - batch.next_actions) ** 2).sum(dim=-1), atol=1e-5)
    _, loss = losses_of(agent)
    batch = draw(data, settings, again)
    action = agent.actor(batch.observations).tanh().detach()
    value = torch.minimum(action[..., 0], 3 * action[..., 0])
    distance = ((action - batch.actions) ** 2).sum(dim=-1).mean(dim=1)
    assert torch.allclose(loss, 2 * distance - value.mean(dim=1) / value.abs().mean(dim=1), atol=1e-5)


def test_references_are_the_flow_of_their_noise_and_are_found_by_seed_and_row() -> None:
    data = toy()
    behaviour, references = behaviour_of(data, TINY)
    rows = torch.tensor([[0, 7], [59, 7]])
    found = references.at(rows)
    for seed, row in ((0, 0), (1, 0), (1, 1)):
        noise = references.noise[:, rows[seed, row]].unsqueeze(0)
        points = torch.cat([noise[0]], dim=0)
        with torch.no_grad():
            for step in range(TINY.flow_steps):
                time = torch.full((2, 3, 1), step / TINY.flow_steps)
                state = data.observations[rows[seed, row]].expand(2, 3, -1)
                points = points + behaviour.flow.velocity(torch.cat([state, points, time], dim=-1)) / TINY.flow_steps
        assert torch.allclose(found[seed, row], points[seed].clamp(-1, 1), atol=1e-5)


def bandit() -> Dataset:
    """One state; actions around (0, 0) with reward -(a_0 - 0.6)^2, and every episode ends at once."""
    actions = 0.15 * torch.randn(400, 2, generator=generator())
    starts = torch.arange(0, 400, 2)
    return Dataset(torch.ones(400, 1), actions, starts, -((actions[starts, 0] - 0.6) ** 2), torch.zeros(200))


def test_on_a_bandit_the_flow_goes_beyond_best_of_n_and_a_random_direction_does_not() -> None:
    settings = replace(TINY, batch_size=64, width=32, step_size=0.1, alpha=1.0, test_particles=4)
    data = bandit()
    behaviour = Behaviour(settings, data, generator())
    for _ in range(400):
        behaviour.update()
    references = draw_references(behaviour.flow, data, settings, generator(1))
    agent = ValueGradientFlow(settings, data, generator(2), behaviour, references)
    for _ in range(400):
        agent.update()
    states = torch.ones(2, 200, 1)
    mean = lambda policy: policy(states, generator(3))[..., 0].mean(dim=1)  # noqa: E731
    best, moved, control = mean(agent.policy(0)), mean(agent.policy(4)), mean(agent.policy(4, random_direction=True))
    assert bool((moved > best + 0.1).all())
    assert bool((control < moved - 0.05).all())
    assert bool((moved < 0.75).all())


def test_best_of_n_does_not_move_its_particles() -> None:
    data = toy()
    behaviour, references = behaviour_of(data, TINY)
    agent = ValueGradientFlow(TINY, data, generator(), behaviour, references)
    observations = torch.randn(2, 5, 3, generator=generator())
    samples = behaviour.sample(observations, TINY.test_particles, generator(3))
    values = agent.critic(observations, samples).mean(dim=0)
    expected = torch.stack([samples[s, torch.arange(5), values[s].argmax(dim=-1)] for s in range(2)])
    assert torch.equal(agent.policy(0)(observations, generator(3)), expected)


class Corridor:
    """An environment: walk right to 1; an episode that did not arrive ends after 10 steps."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        self.place, self.steps = np.array([0.1 * np.random.rand(), 0.0, 0.0]), 0
        return self.place.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place[0] += 0.2 * action[0]
        self.steps += 1
        arrived = bool(self.place[0] >= 1)
        return self.place.copy(), float(arrived) - 1, arrived, self.steps == 10, {"success": arrived}


def test_success_is_counted_over_all_episodes_of_each_seed() -> None:
    pool = Pool(Corridor, seeds=2, slots=3)
    sizes = []

    def policy(observations: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        sizes.append(tuple(observations.shape))
        actions = torch.zeros(2, 3, 2)
        actions[0] = 1.0  # the second seed stands still
        return actions

    assert pool.success(policy, 7) == [1.0, 0.0]
    assert set(sizes) == {(2, 3, 3)}


def test_intervals_over_seeds() -> None:
    # mean 60, standard deviation 14.14, 12.706 * 14.14 / sqrt(2) = 127
    assert interval([0.5, 0.7]) == "60 ± 127"
    assert interval([0.5]) == "50"


def run_in(folder: Path, settings: Settings = TINY, **changes: Any) -> Run:
    plan = Plan(train_steps=(0, 1), test_steps=(0, 1), episodes=3, curve_episodes=1)
    return Run(folder, settings, replace(plan, **changes), toy(), {"env": "toy"}, Corridor, slots=2)


def test_a_run_that_was_killed_goes_on_to_the_same_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_in(tmp_path / "whole").everything()
    killed = run_in(tmp_path / "killed")
    update, calls = FQL.update, []

    def failing(self: FQL) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        update(self)

    monkeypatch.setattr(FQL, "update", failing)
    with pytest.raises(KeyboardInterrupt):
        killed.everything()
    monkeypatch.setattr(FQL, "update", update)
    monkeypatch.setattr(ValueGradientFlow, "update", lambda self: pytest.fail("VGF was trained again"))
    again = run_in(tmp_path / "killed")
    again.everything()
    whole = run_in(tmp_path / "whole").results
    for part in ("success", "curves", "moved"):
        assert again.results[part] == whole[part]
    names = {f"VGF L_train={train} L_test={test}" for train in (0, 1) for test in (0, 1)}
    names |= {f"random direction L_train={train} L_test=1" for train in (0, 1)}
    assert set(whole["success"]) == names | {"behaviour cloning", "IFQL", "FQL", "ReBRAC"}
    assert [point[0] for point in whole["curves"]["FQL"]] == [2, 4, 6, 8]
    assert table(whole["success"]).count("\n") == len(whole["success"]) + 2


def test_the_command_writes_table_and_curves_and_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipe, "make_environment", lambda task: Corridor())
    monkeypatch.setattr(recipe, "generate", lambda task, transitions, folder: folder / "toy.npz")
    monkeypatch.setattr(recipe, "read", lambda *args: toy())
    command = ["--env", TASK, "--output_dir", str(tmp_path), "--seeds", "2", "--updates", "4", "--width", "8"]
    command += ["--batch_size", "8", "--episodes", "2", "--curve_episodes", "1", "--baselines", "FQL"]
    recipe.main(command)
    text = (tmp_path / "results.md").read_text()
    assert text in capsys.readouterr().out
    assert text.count("\n") == 2 + 1 + 2 * 4 + 1  # behaviour cloning, each L_train at three L_test and the control, FQL
    assert "VGF L_train=0 L_test=0 (best-of-N)" in text
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(Agent, "minimise", lambda *args: pytest.fail("something was trained again"))
    monkeypatch.setattr(Pool, "success", lambda *args: pytest.fail("something was evaluated again"))
    recipe.main(command)
    assert (tmp_path / "results.md").read_text() == text


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    run_in(tmp_path).keep()
    with pytest.raises(ValueError, match=r"differs in alpha, episodes; choose another --output_dir"):
        run_in(tmp_path, replace(TINY, alpha=0.2), episodes=4)


@pytest.fixture
def relabelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """OGBench's relabelling, replaced: the task is solved where the first coordinate is 0."""

    def relabel(name: str, environment: Any, rows: dict[str, np.ndarray]) -> None:
        solved = rows["qpos"][:, 0] == 0
        rows["rewards"], rows["masks"] = solved - 1.0, 1.0 - solved

    module = types.ModuleType("ogbench.relabel_utils")
    module.relabel_dataset = relabel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ogbench", types.ModuleType("ogbench"))
    monkeypatch.setitem(sys.modules, "ogbench.relabel_utils", module)


def spaces(observation: int = 3, action: int = 2) -> Any:
    box = lambda size: types.SimpleNamespace(shape=(size,))  # noqa: E731
    return types.SimpleNamespace(observation_space=box(observation), action_space=box(action))


def write(path: Path, **changes: Any) -> Path:
    rows: dict[str, Any] = {
        "observations": np.arange(12, dtype=np.float32)[:, None].repeat(3, axis=1),
        "actions": np.zeros((12, 2), dtype=np.float32),
        "terminals": np.arange(12) % 4 == 3,
        "qpos": (np.arange(12)[:, None] % 4 != 2).astype(np.float32),
    }
    np.savez(path, **{**rows, **changes})
    return path


@pytest.mark.usefixtures("relabelled")
def test_transitions_do_not_cross_episodes_and_are_rewarded(tmp_path: Path) -> None:
    data = read(write(tmp_path / "d.npz"), find_task(TASK), spaces(), 100, 1)
    assert data.starts.tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert data.rewards.tolist() == [-1, -1, 0] * 3
    assert data.masks.tolist() == [1, 1, 0] * 3
    assert len(data.observations) == 12


@pytest.mark.usefixtures("relabelled")
def test_part_of_the_data_is_whole_episodes(tmp_path: Path) -> None:
    data = read(write(tmp_path / "d.npz"), find_task(TASK), spaces(), 4, 1)
    assert data.starts.tolist() == [0, 1, 2, 4, 5, 6]
    assert len(data.observations) == 8


@pytest.mark.usefixtures("relabelled")
@pytest.mark.parametrize(
    ("changes", "space", "least", "message"),
    [
        ({"environment": np.array("scene")}, spaces(), 1, "holds data of scene, .* needs data of cube-single"),
        ({}, spaces(observation=5), 1, r"observations of shape \(3,\), .* has \(5,\): .* another environment"),
        ({}, spaces(action=1), 1, r"actions of shape \(2,\), .* has \(1,\)"),
        ({}, spaces(), 10, "has 9 transitions, at least 10 are needed"),
        ({"terminals": np.zeros(12, dtype=bool)}, spaces(), 1, "has 0 transitions"),
        ({"qpos": np.ones((12, 1))}, spaces(), 1, "none of the 9 transitions of .* solves cube-single"),
    ],
)
def test_unfit_data_are_refused(tmp_path: Path, changes: Any, space: Any, least: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path / "d.npz", **changes), find_task(TASK), space, 100, least)


def test_a_folder_without_the_official_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scene-play-v0.npz").touch()
    with pytest.raises(FileNotFoundError, match=r"cube-single-play-v0\.npz is not there; .* has scene-play-v0\.npz"):
        source.official_file(find_task(TASK), tmp_path)


@pytest.mark.parametrize("name", ["cube-single", "cube-single-play-v0", "antmaze-large-navigate-singletask-v0"])
def test_unknown_environments_are_refused_with_the_known_ones(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--env", name])
    error = capsys.readouterr().err
    assert f"unknown environment '{name}'" in error and "puzzle-3x3-play-singletask-task<1 to 5>-v0" in error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--transitions", "1000"], "--transitions must be at least 10 batches, 1280, got 1000"),
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
        (["--test_steps", "-1"], r"test_steps must be one or more budgets >= 0, got (-1,)"),
        (["--discount", "1"], "discount and target_rate must be in (0, 1), got 1.0"),
        (["--baselines", "SAC"], "invalid choice: 'SAC'"),
    ],
)
def test_bad_arguments_end_the_command(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--env", TASK, *more])
    assert message in capsys.readouterr().err


def test_without_mujoco_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(SystemExit, match=r"the tasks need the extra `ogbench` .* pip install \"vgf-llm\[ogbench\]\""):
        recipe.main(["--env", TASK, "--cache_dir", str(tmp_path), "--output_dir", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_the_extra_is_named_for_what_an_environment_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str, env_only: bool) -> None:
        raise ModuleNotFoundError("No module named 'dm_control'")

    monkeypatch.setitem(sys.modules, "mujoco", types.ModuleType("mujoco"))
    monkeypatch.setitem(sys.modules, "ogbench", types.SimpleNamespace(make_env_and_datasets=make))
    with pytest.raises(ImportError, match=r"the extra `ogbench` .* Missing: No module named 'dm_control'$"):
        source.make_environment(find_task(TASK))


def test_the_help_names_the_defaults() -> None:
    args = parse(["--env", TASK])
    size = f"{args.settings.updates:,} gradient steps of networks of width {args.settings.width}"
    assert f"{size} on {args.transitions:,} transitions" in " ".join((recipe.__doc__ or "").split())


def test_a_default_task_has_its_number() -> None:
    assert find_task("puzzle-3x3-play-singletask-v0").number == 4
    assert find_task(TASK) == source.Task(TASK, "cube-single-play", "cube-single", 2)


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """A generator of episodes without OGBench, and the numbers of the episodes that were asked of it."""
    asked: list[int] = []

    class Episodes:
        def __init__(self, task: source.Task, seed: int, steps: int) -> None:
            self.steps = steps

        def episode(self, number: int) -> dict[str, np.ndarray]:
            asked.append(number)
            column = np.full((self.steps, 1), number)
            return {"observations": column, "actions": column, "terminals": np.arange(self.steps) == self.steps - 1}

    monkeypatch.setattr(source, "_Generator", Episodes)
    return lambda: asked


def test_generation_that_was_killed_goes_on_with_the_missing_parts(
    tmp_path: Path, oracle: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = source._save, []

    def failing(path: Path, arrays: dict[str, np.ndarray]) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        save(path, arrays)

    monkeypatch.setattr(source, "_save", failing)
    with pytest.raises(KeyboardInterrupt):
        source.generate(find_task(TASK), 40, tmp_path, steps=4)
    monkeypatch.setattr(source, "_save", save)
    oracle().clear()
    path = source.generate(find_task(TASK), 40, tmp_path, steps=4)
    assert oracle() == [10, 11, 12, 13]
    rows = np.load(path)
    assert rows["observations"][::4, 0].tolist() == list(range(14))
    assert str(rows["environment"]) == "cube-single"
    assert list(tmp_path.iterdir()) == [path]
    assert source.generate(find_task(TASK), 40, tmp_path, steps=4) == path
    assert oracle() == [10, 11, 12, 13]


@pytest.mark.parametrize("env", [TASK, "pointmaze-medium-navigate-singletask-task1-v0"])
def test_the_oracles_make_data_that_fit_their_task(tmp_path: Path, env: str) -> None:
    pytest.importorskip("mujoco", reason="needs the extra ogbench")
    pytest.importorskip("ogbench", reason="needs the extra ogbench")
    task = find_task(env)
    one, two = (np.load(source.generate(task, 24, tmp_path / name, steps=13)) for name in ("a", "b"))
    for name in one.files:
        assert np.array_equal(one[name], two[name]), name
    environment = source.make_environment(task)
    assert one["observations"].shape[1:] == environment.observation_space.shape
    assert one["terminals"].sum() == 2 and bool((np.abs(one["actions"]) <= 1).all())
    with pytest.raises(ValueError, match="none of the 24 transitions"):
        read(next((tmp_path / "a").iterdir()), task, environment, 24, 1)
