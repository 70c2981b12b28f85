# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Offline reinforcement learning with continuous actions: a point-mass maze, mixed-quality data, no interaction.

    python recipes/offline_control.py
    python recipes/offline_control.py --seeds 5

Behaviour cloning by flow matching, a double critic whose targets are the mean over transported particles (L_train
steps), and actions picked from transported particles (L_test steps). The data are generated in a second. The table and
the figure go to `outputs/offline_control/`. docs/demonstrations.md says what is to be seen.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.continuous_actions import as_far_at_random, check_budgets, check_least, follow
from recipes.offline_environment import STEP_TIME, Dataset, collect, reset, step
from recipes.offline_figure import draw
from recipes.stacked_networks import FlowMatching, StackedMLP
from vgf_llm.functional import transport

NUM_FEATURES = 12
Policy = Callable[[Tensor, torch.Generator], Tensor]
"""Actions [B, 2] for states [B, 4]."""


@dataclass(frozen=True)
class Settings:
    """Sizes and knobs of a run.

    Attributes:
        train_steps: Budgets L_train, one critic each.
        test_steps: Budgets L_test that each critic is evaluated at.
        control_steps: L_test of the random-direction control and of the paths in the figure.
        td3_weights: Weights of the value in the TD3+BC-like reference, one policy each.
        num_particles: N.
        step_size: epsilon.
        alpha: Temperature of the flow, in seconds.
        discount: gamma.
        updates: Gradient steps per network.
        batch_size: Transitions per update.
        width: Width of the hidden layers.
        learning_rate: Of Adam.
        target_rate: How far the target critic follows per update.
        data_episodes: Episodes in the data.
        data_horizon: Their length.
        eval_episodes: Episodes per evaluation.
        eval_horizon: Their length; an episode that does not arrive counts as this long.
    """

    train_steps: tuple[int, ...] = (0, 1, 4)
    test_steps: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32)
    control_steps: int = 8
    td3_weights: tuple[float, ...] = (2.5,)
    num_particles: int = 5
    step_size: float = 0.01
    alpha: float = 0.02
    discount: float = 0.95
    updates: int = 2000
    batch_size: int = 128
    width: int = 64
    learning_rate: float = 1e-3
    target_rate: float = 0.02
    data_episodes: int = 600
    data_horizon: int = 60
    eval_episodes: int = 64
    eval_horizon: int = 40

    def __post_init__(self) -> None:
        check_budgets(self, "train_steps", "test_steps")
        sizes = ("num_particles", "updates", "batch_size", "eval_episodes", "eval_horizon", "data_episodes")
        check_least(self, 1, *sizes)


def features(states: Tensor) -> Tensor:
    """States [..., 4] at a scale that suits the networks, with two Fourier features per coordinate, [..., 12]."""
    position, velocity = states[..., :2], states[..., 2:]
    waves = [wave(frequency * torch.pi * position) for frequency in (1, 2) for wave in (torch.sin, torch.cos)]
    return torch.cat([4 * position - 2, 2 * velocity, *waves], dim=-1)


def critic_values(critic: StackedMLP, states: Tensor, actions: Tensor) -> Tensor:
    """Both critics on states [B, 4] and actions [B, N, 2], as [2, B, N]."""
    batch, num = actions.shape[:2]
    inputs = torch.cat([features(states).unsqueeze(1).expand(-1, num, -1), actions], dim=-1).flatten(0, 1)
    return critic(inputs.expand(2, -1, -1)).squeeze(-1).view(2, batch, num)


def move(critic: StackedMLP, states: Tensor, actions: Tensor, num_steps: int, settings: Settings) -> Tensor:
    """Transports the particles [B, N, 2] of each state along the mean of the two critics."""
    return transport(
        actions,
        lambda moved: critic_values(critic, states, moved).mean(dim=0),
        step_size=settings.step_size,
        num_steps=num_steps,
        alpha=settings.alpha,
        project=lambda moved: moved.clamp(-1, 1),
    ).particles


def reference_actions(behaviour: FlowMatching, states: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """N actions of the behaviour model for each state, [B, N, 2]."""
    batches = []
    with torch.no_grad():
        for part in states.split(4096):
            condition = features(part).repeat_interleave(num, dim=0).unsqueeze(0)
            noise = torch.randn(1, len(part) * num, 2, generator=generator)
            batches.append(behaviour.sample(noise, condition).clamp(-1, 1).view(len(part), num, 2))
    return torch.cat(batches)


def train_behaviour(data: Dataset, settings: Settings, generator: torch.Generator) -> FlowMatching:
    """Behaviour cloning by flow matching."""
    behaviour = FlowMatching(1, 2, NUM_FEATURES, settings.width, generator)
    optimizer = torch.optim.Adam(behaviour.parameters(), settings.learning_rate)
    for _ in range(settings.updates):
        rows = torch.randint(len(data.states), (settings.batch_size,), generator=generator)
        loss = behaviour.loss(data.actions[None, rows], features(data.states[None, rows]), generator)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return behaviour.requires_grad_(False)


def _new_critic(settings: Settings, generator: torch.Generator) -> tuple[StackedMLP, StackedMLP]:
    """A double critic and its target copy."""
    critic = StackedMLP(
        2, (NUM_FEATURES + 2, settings.width, settings.width, settings.width, 1), generator, layer_norm=True
    )
    return critic, critic.repeat(1).requires_grad_(False)


def _update_critic(
    critic: StackedMLP, target: StackedMLP, optimizer: Any, batch: Dataset, next_value: Tensor, settings: Settings
) -> None:
    """One TD step of both critics towards r + gamma * next_value [B], then the target follows."""
    goal = batch.rewards + settings.discount * (1 - batch.dones) * next_value
    loss = (critic_values(critic, batch.states, batch.actions.unsqueeze(1)).squeeze(-1) - goal).square().mean(dim=1)
    optimizer.zero_grad()
    loss.sum().backward()
    optimizer.step()
    follow(target, critic, settings.target_rate)


def _batch(data: Dataset, rows: Tensor) -> Dataset:
    return Dataset(data.states[rows], data.actions[rows], data.rewards[rows], data.next_states[rows], data.dones[rows])


def train_critic(
    data: Dataset, references: Tensor, num_steps: int, settings: Settings, generator: torch.Generator
) -> StackedMLP:
    """A double critic whose TD target is the mean over the transported particles of the next state.

    The particles move along the current critic and are valued by the lower of the two target critics, as in the
    authors' code (github.com/ryanxhr/vgf, agents/vgf.py).

    Args:
        data: Transitions, M of them.
        references: Behaviour actions at the next states, [M, N, 2].
        num_steps: L_train; 0 gives the value of the behaviour.
        settings: Sizes.
        generator: Source of randomness.
    """
    critic, target = _new_critic(settings, generator)
    optimizer = torch.optim.Adam(critic.parameters(), settings.learning_rate)
    for _ in range(settings.updates):
        rows = torch.randint(len(data.states), (settings.batch_size,), generator=generator)
        batch = _batch(data, rows)
        critic.requires_grad_(False)
        particles = move(critic, batch.next_states, references[rows], num_steps, settings)
        critic.requires_grad_(True)
        next_value = critic_values(target, batch.next_states, particles).amin(dim=0).mean(dim=1)
        _update_critic(critic, target, optimizer, batch, next_value, settings)
    return critic.requires_grad_(False)


def train_deterministic(data: Dataset, settings: Settings, generator: torch.Generator, weight: float) -> Policy:
    """A TD3+BC-like reference: a deterministic policy, -weight * Q / mean |Q| + squared distance to the data's action.

    Source:
        arXiv 2106.06860; `weight` is its alpha, 2.5 there.
    """
    critic, target = _new_critic(settings, generator)
    actor = StackedMLP(1, (NUM_FEATURES, settings.width, settings.width, 2), generator)
    slow_actor = actor.repeat(1).requires_grad_(False)
    optimizer = torch.optim.Adam(critic.parameters(), settings.learning_rate)
    actor_optimizer = torch.optim.Adam(actor.parameters(), settings.learning_rate)
    for update in range(settings.updates):
        rows = torch.randint(len(data.states), (settings.batch_size,), generator=generator)
        batch = _batch(data, rows)
        noise = (0.2 * torch.randn(settings.batch_size, 2, generator=generator)).clamp(-0.5, 0.5)
        action = (slow_actor(features(batch.next_states)[None])[0].tanh() + noise).clamp(-1, 1)
        next_value = critic_values(target, batch.next_states, action.unsqueeze(1)).amin(dim=0).squeeze(1)
        _update_critic(critic, target, optimizer, batch, next_value, settings)
        if update % 2 == 0:
            action = actor(features(batch.states)[None])[0].tanh()
            value = critic_values(critic, batch.states, action.unsqueeze(1))[0]
            loss = (action - batch.actions).square().mean() - weight * value.mean() / value.detach().abs().mean()
            actor_optimizer.zero_grad()
            loss.backward()
            actor_optimizer.step()
            follow(slow_actor, actor, 2 * settings.target_rate)
    actor.requires_grad_(False)
    return lambda states, generator: actor(features(states)[None])[0].tanh()


def cloning_policy(behaviour: FlowMatching) -> Policy:
    """One sample of the behaviour model."""
    return lambda states, generator: reference_actions(behaviour, states, 1, generator).squeeze(1)


def transport_policy(
    behaviour: FlowMatching, critic: StackedMLP, num_steps: int, settings: Settings, random_direction: bool = False
) -> Policy:
    """The best by the critic of N particles, transported for `num_steps`.

    Args:
        behaviour: Where the particles come from.
        critic: What moves and picks them.
        num_steps: L_test; 0 is best-of-N.
        settings: Sizes.
        random_direction: The control: each particle goes as far as the flow carries it, in a random direction.
    """

    def act(states: Tensor, generator: torch.Generator) -> Tensor:
        start = reference_actions(behaviour, states, settings.num_particles, generator)
        particles = move(critic, states, start, num_steps, settings)
        if random_direction:
            particles = as_far_at_random(start, particles, generator)
        best = critic_values(critic, states, particles).mean(dim=0).argmax(dim=1)
        return particles[torch.arange(len(states)), best]

    return act


def rollout(policy: Policy, num_episodes: int, horizon: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Episodes from starts that depend on the seed alone.

    Returns:
        Steps taken [E], whether the goal was reached [E], and positions [T, E, 2], nan after the goal.
    """
    generator = torch.Generator().manual_seed(seed)
    states = reset(num_episodes, generator)
    alive = torch.ones(num_episodes, dtype=torch.bool)
    steps, positions = torch.zeros(num_episodes), [states[:, :2]]
    for _ in range(horizon):
        steps += alive
        following, _, done = step(states, policy(states, generator))
        states = torch.where(alive.unsqueeze(1), following, states)
        positions.append(states[:, :2].masked_fill(~alive.unsqueeze(1), float("nan")))
        alive = alive & ~done
        if not bool(alive.any()):
            break
    return steps, ~alive, torch.stack(positions)


def evaluate(policy: Policy, settings: Settings, seed: int) -> tuple[float, float]:
    """Mean seconds to the goal and share of episodes that arrive."""
    steps, arrived, _ = rollout(policy, settings.eval_episodes, settings.eval_horizon, seed)
    return float(steps.mean() * STEP_TIME), float(arrived.float().mean())


@dataclass
class Trained:
    """What one seed trained: its data, the behaviour model, and a critic for each L_train."""

    data: Dataset
    behaviour: FlowMatching
    critics: dict[int, StackedMLP]


def run_seed(settings: Settings, seed: int) -> tuple[dict[str, tuple[float, float]], Trained]:
    """Everything for one seed: seconds to the goal and arrivals by method, and what was trained."""
    generator = torch.Generator().manual_seed(seed)
    data = collect(settings.data_episodes, settings.data_horizon, generator)
    behaviour = train_behaviour(data, settings, generator)
    references = reference_actions(behaviour, data.next_states, settings.num_particles, generator)
    trained = Trained(data, behaviour, {})
    results = {"behaviour cloning": evaluate(cloning_policy(behaviour), settings, seed)}
    for budget in settings.train_steps:
        critic = trained.critics[budget] = train_critic(data, references, budget, settings, generator)
        wide = replace(settings, num_particles=10 * settings.num_particles)
        name = f"best-of-{wide.num_particles}, L_train={budget}"
        results[name] = evaluate(transport_policy(behaviour, critic, 0, wide), settings, seed)
        for test in settings.test_steps:
            policy = transport_policy(behaviour, critic, test, settings)
            results[f"L_train={budget}, L_test={test}"] = evaluate(policy, settings, seed)
        test = settings.control_steps
        control = transport_policy(behaviour, critic, test, settings, random_direction=True)
        results[f"random direction, L_train={budget}, L_test={test}"] = evaluate(control, settings, seed)
    for weight in settings.td3_weights:
        policy = train_deterministic(data, settings, generator, weight)
        results[f"TD3+BC-like, weight {weight:g}"] = evaluate(policy, settings, seed)
    return results, trained


def sample_paths(trained: Trained, settings: Settings, num_episodes: int = 8) -> dict[str, Tensor]:
    """Positions of a few episodes of the behaviour model and of VGF, by title."""
    budget = settings.train_steps[-1]
    vgf = transport_policy(trained.behaviour, trained.critics[budget], settings.control_steps, settings)
    policies = {"behaviour cloning": cloning_policy(trained.behaviour)}
    policies[f"VGF, L_train = {budget}, L_test = {settings.control_steps}"] = vgf
    horizon = settings.eval_horizon
    return {title: rollout(policy, num_episodes, horizon, seed=0)[2] for title, policy in policies.items()}


def _cell(values: Sequence[float], digits: int) -> str:
    tensor = torch.tensor(values, dtype=torch.float64)
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{tensor.mean():.{digits}f} ± {tensor.std() / len(values) ** 0.5:.{digits}f}"


def table(results: Sequence[dict[str, tuple[float, float]]]) -> str:
    """Rows as Markdown, mean and standard error over seeds."""
    lines = ["| method | seconds to the goal | arrivals |", "|---|---|---|"]
    for name in results[0]:
        seconds, arrivals = zip(*(result[name] for result in results), strict=True)
        lines.append(f"| {name} | {_cell(seconds, 2)} | {_cell(arrivals, 2)} |")
    return "\n".join(lines) + "\n"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="seeds that the table is over")
    parser.add_argument("--train_steps", type=int, nargs="+", default=Settings.train_steps, help="budgets L_train")
    parser.add_argument("--test_steps", type=int, nargs="+", default=Settings.test_steps, help="budgets L_test")
    parser.add_argument("--td3_weights", type=float, nargs="+", default=Settings.td3_weights, help="one policy each")
    parser.add_argument("--num_particles", type=int, default=Settings.num_particles, help="N")
    parser.add_argument("--step_size", type=float, default=Settings.step_size, help="epsilon")
    parser.add_argument("--alpha", type=float, default=Settings.alpha, help="temperature of the flow")
    parser.add_argument("--updates", type=int, default=Settings.updates, help="gradient steps per network")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/offline_control"))
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {args.seeds}")
    return args


def from_arguments(args: argparse.Namespace) -> Settings:
    """The settings that the command line asks for."""
    names = ("num_particles", "step_size", "alpha", "updates")
    lists = {name: tuple(getattr(args, name)) for name in ("train_steps", "test_steps", "td3_weights")}
    return Settings(**lists, **{name: getattr(args, name) for name in names})


def main(argv: Sequence[str] | None = None) -> None:
    """Runs, prints the table, and writes results and figure."""
    args, start = parse(argv), time.perf_counter()
    settings = from_arguments(args)
    results, first = [], None
    for seed in range(args.seeds):
        result, trained = run_seed(settings, seed)
        first = first or trained
        results.append(result)
        print(f"seed {seed} done after {time.perf_counter() - start:.0f} s", flush=True)
    text = table(results)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "results.md").write_text(text, encoding="utf-8")
    meta = {"settings": asdict(settings), "seconds": round(time.perf_counter() - start, 1)}
    (args.output_dir / "results.json").write_text(
        json.dumps({"meta": meta, "seeds": results}, indent=2) + "\n", encoding="utf-8"
    )
    figure = args.output_dir / "offline_control.png"
    assert first is not None
    draw(results, settings.train_steps, settings.test_steps, first.data, sample_paths(first, settings), figure)
    print(text)
    print(f"{meta['seconds']} s; results and figure in {args.output_dir}")


if __name__ == "__main__":
    main()
