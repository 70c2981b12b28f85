# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A two-dimensional bandit with two modes: policies trained against a fitted reward beside Value Gradient Flow.

    python recipes/toy_bandit.py

The better of two modes lies just outside what the behaviour covers. A reward is fitted to few noisy samples of the
behaviour, and every method sees that reward alone. The table and the figure go to `outputs/toy_bandit/`.
docs/demonstrations.md says what is to be seen.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from recipes.bandit_figure import draw
from recipes.continuous_actions import check_least
from recipes.stacked_networks import FlowMatching, StackedMLP
from vgf_llm.functional import transport

BOX = 3.0
"""Actions live in [-BOX, BOX]^2; every method is clipped to it."""
MODES = torch.tensor([[-1.2, -0.3], [1.7, 0.9]])
HEIGHTS, WIDTHS = torch.tensor([0.6, 1.0]), torch.tensor([0.5, 0.6])
CENTRES, SPREAD = torch.tensor([[-1.2, -0.3], [1.0, 0.1]]), 0.35
NEAR = 0.5
"""A sample has found the true mode when it is within this distance of it."""
BUDGETS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64)
ONE_STEP_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0)
FLOW_WEIGHTS = (0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 5.0)


def true_reward(actions: Tensor) -> Tensor:
    """The reward of actions [..., 2], as [...]: a bump of height 0.6 and one of height 1."""
    squares = (actions.unsqueeze(-2) - MODES).square().sum(dim=-1)
    return (HEIGHTS * torch.exp(-squares / (2 * WIDTHS.square()))).sum(dim=-1)


@dataclass(frozen=True)
class Settings:
    """Sizes of a run.

    Attributes:
        seeds: Seeds that the table is over.
        tuning_seeds: Further seeds, on which each method's knob is chosen by the true reward.
        num_samples: Rewarded behaviour samples per seed.
        noise: Standard deviation of the noise on their rewards.
        num_groups: Groups of particles per seed and method; a group gives one action.
        num_particles: N.
        step_size: epsilon.
        alpha: Temperature of the flow; one of the two values in the authors' scripts.
        updates: Gradient steps per network.
        batch_size: Samples per policy update.
        width: Width of the hidden layers.
    """

    seeds: int = 8
    tuning_seeds: int = 4
    num_samples: int = 200
    noise: float = 0.1
    num_groups: int = 128
    num_particles: int = 10
    step_size: float = 0.05
    alpha: float = 0.2
    updates: int = 500
    batch_size: int = 64
    width: int = 64

    def __post_init__(self) -> None:
        check_least(self, 2, "seeds", "num_groups", "num_samples")
        check_least(self, 1, "tuning_seeds", "updates")


@dataclass
class Problem:
    """What every method is given: S independent data sets, the reward fitted to each, and a behaviour model."""

    actions: Tensor  # [S, num_samples, 2]
    reward: StackedMLP
    behaviour: FlowMatching
    reference: Tensor  # samples of the behaviour model, [S, groups, N, 2]


@dataclass(frozen=True)
class Outcome:
    """A method at one value of its knob.

    Attributes:
        name: Method.
        knob: Budget L, or weight of the behaviour-cloning term; nan where there is none.
        true: True reward of the action that the learned reward picks from each group, mean per seed, [S].
        learned: Its learned reward, [S].
        mean: True reward of a particle, without the pick, [S].
        found: Share of picks near the true mode, [S].
        picks: The picked actions, [S, groups, 2].
        moved: Mean distance from the reference sample, for transported particles, [S].
    """

    name: str
    knob: float
    true: Tensor
    learned: Tensor
    mean: Tensor
    found: Tensor
    picks: Tensor
    moved: Tensor | None = None


def value_of(reward: StackedMLP) -> Callable[[Tensor], Tensor]:
    """The fitted rewards as a function of particles [S, groups, N, 2]."""
    return lambda particles: reward(particles.flatten(1, 2)).squeeze(-1).unflatten(1, particles.shape[1:3])


def measure(name: str, knob: float, particles: Tensor, reward: StackedMLP, moved: Tensor | None = None) -> Outcome:
    """Picks one action per group by the fitted reward and scores it by the true one."""
    with torch.no_grad():
        values = value_of(reward)(particles)
    index = values.argmax(dim=-1, keepdim=True)
    picks = particles.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, 2)).squeeze(2)
    near = torch.linalg.vector_norm(picks - MODES[HEIGHTS.argmax()], dim=-1) < NEAR
    return Outcome(
        name,
        knob,
        true=true_reward(picks).mean(dim=1),
        learned=values.gather(2, index).mean(dim=(1, 2)),
        mean=true_reward(particles).mean(dim=(1, 2)),
        found=near.float().mean(dim=1),
        picks=picks,
        moved=moved,
    )


def _fit(loss: Callable[[], Tensor], parameters: Sequence[Tensor], updates: int, lr: float) -> None:
    """Adam on the sum of independent losses [S], which trains each network of a stack alone."""
    optimizer = torch.optim.Adam(parameters, lr)
    for _ in range(updates):
        optimizer.zero_grad()
        loss().sum().backward()
        optimizer.step()


def make_problem(settings: Settings, generator: torch.Generator) -> Problem:
    """Samples the behaviour, fits the reward and the behaviour model, and draws the reference particles."""
    size, num = settings.seeds + settings.tuning_seeds, settings.num_samples
    mode = torch.randint(len(CENTRES), (size, num), generator=generator)
    actions = (CENTRES[mode] + SPREAD * torch.randn(size, num, 2, generator=generator)).clamp(-BOX, BOX)
    rewards = true_reward(actions) + settings.noise * torch.randn(size, num, generator=generator)

    width = settings.width
    reward = StackedMLP(size, (2, width, width, 1), generator)
    fit = lambda: (reward(actions).squeeze(-1) - rewards).square().mean(dim=1)  # noqa: E731
    _fit(fit, list(reward.parameters()), settings.updates, lr=3e-3)
    reward.requires_grad_(False)
    behaviour = FlowMatching(size, 2, 0, width, generator)
    cloning = lambda: behaviour.loss(actions, None, generator)  # noqa: E731
    _fit(cloning, list(behaviour.parameters()), 2 * settings.updates, lr=3e-3)
    behaviour.requires_grad_(False)
    noise = torch.randn(size, settings.num_groups * settings.num_particles, 2, generator=generator)
    reference = behaviour.sample(noise).clamp(-BOX, BOX).unflatten(1, (settings.num_groups, settings.num_particles))
    return Problem(actions, reward, behaviour, reference)


def run_transport(problem: Problem, settings: Settings, lone: bool = False) -> list[Outcome]:
    """VGF at every budget, each continued from the one before.

    Args:
        problem: The data and the fitted networks.
        settings: Sizes.
        lone: Whether the particles of a group ignore each other (plain ascent), instead of the paper's interaction.
    """
    groups, name = problem.reference.shape, "VGF, lone particles" if lone else "VGF"
    particles, spent, outcomes = problem.reference, 0, []
    for budget in BUDGETS:
        if lone:
            particles = particles.reshape(groups[0], -1, 1, 2)
        particles = transport(
            particles,
            value_of(problem.reward),
            step_size=settings.step_size,
            num_steps=budget - spent,
            alpha=settings.alpha,
            project=lambda actions: actions.clamp(-BOX, BOX),
        ).particles.reshape(groups)
        spent = budget
        moved = torch.linalg.vector_norm(particles - problem.reference, dim=-1).mean(dim=(1, 2))
        outcomes.append(measure(name, budget, particles, problem.reward, moved))
    return outcomes


def run_random(problem: Problem, vgf: Outcome, generator: torch.Generator) -> Outcome:
    """The control: every particle goes as far as VGF's do on average, each in a direction of its own."""
    assert vgf.moved is not None
    sense = torch.nn.functional.normalize(torch.randn(problem.reference.shape, generator=generator), dim=-1)
    particles = (problem.reference + vgf.moved.view(-1, 1, 1, 1) * sense).clamp(-BOX, BOX)
    return measure("random direction", vgf.knob, particles, problem.reward, vgf.moved)


def run_one_step_policy(problem: Problem, settings: Settings, generator: torch.Generator) -> list[Outcome]:
    """A one-step policy a = f(z): fitted reward minus a weighted distance to the behaviour model's sample from z."""
    size, times = len(problem.actions), len(ONE_STEP_WEIGHTS)
    weight = torch.tensor(ONE_STEP_WEIGHTS).repeat_interleave(size)
    reward = problem.reward.repeat(times).requires_grad_(False)
    policy = StackedMLP(size * times, (2, settings.width, settings.width, 2), generator)

    def loss() -> Tensor:
        noise = torch.randn(size, settings.batch_size, 2, generator=generator)
        target = problem.behaviour.sample(noise).repeat(times, 1, 1)
        actions = policy(noise.repeat(times, 1, 1))
        distance = (actions - target).square().sum(dim=-1).mean(dim=1)
        return weight * distance - reward(actions.clamp(-BOX, BOX)).mean(dim=(1, 2))

    _fit(loss, list(policy.parameters()), 2 * settings.updates, lr=1e-3)
    noise = torch.randn(size, settings.num_groups * settings.num_particles, 2, generator=generator)
    with torch.no_grad():
        actions = policy(noise.repeat(times, 1, 1)).clamp(-BOX, BOX)
    return _measure_each("one-step policy", ONE_STEP_WEIGHTS, actions, problem, settings)


def run_flow_policy(problem: Problem, settings: Settings, generator: torch.Generator) -> list[Outcome]:
    """The behaviour model trained on through its own sampler: the fitted reward minus a weighted flow-matching loss."""
    size, times = len(problem.actions), len(FLOW_WEIGHTS)
    weight = torch.tensor(FLOW_WEIGHTS).repeat_interleave(size)
    reward = problem.reward.repeat(times).requires_grad_(False)
    policy = FlowMatching(1, 2, 0, settings.width, generator)
    policy.velocity = problem.behaviour.velocity.repeat(times)

    def loss() -> Tensor:
        noise = torch.randn(size * times, settings.batch_size, 2, generator=generator)
        actions = policy.sample(noise, num_steps=5)
        rows = torch.randint(settings.num_samples, (settings.batch_size,), generator=generator)
        cloning = policy.loss(problem.actions[:, rows].repeat(times, 1, 1), None, generator)
        return weight * cloning - reward(actions.clamp(-BOX, BOX)).mean(dim=(1, 2))

    _fit(loss, list(policy.parameters()), settings.updates, lr=1e-3)
    noise = torch.randn(size, settings.num_groups * settings.num_particles, 2, generator=generator)
    with torch.no_grad():
        actions = policy.sample(noise.repeat(times, 1, 1), num_steps=5).clamp(-BOX, BOX)
    return _measure_each("flow policy", FLOW_WEIGHTS, actions, problem, settings)


def _measure_each(
    name: str, weights: Sequence[float], actions: Tensor, problem: Problem, settings: Settings
) -> list[Outcome]:
    """Splits actions [S * weights, B, 2] by weight."""
    grouped = actions.unflatten(1, (settings.num_groups, settings.num_particles)).chunk(len(weights))
    return [measure(name, weight, part, problem.reward) for weight, part in zip(weights, grouped, strict=True)]


def tuned(outcomes: Sequence[Outcome], tuning_seeds: int) -> Outcome:
    """The outcome whose picks have the highest true reward on the tuning seeds, which come last."""
    return max(outcomes, key=lambda outcome: float(outcome.true[-tuning_seeds:].mean()))


def run(settings: Settings, seed: int = 0) -> tuple[Problem, dict[str, list[Outcome]], list[Outcome]]:
    """Runs everything.

    Returns:
        The problem, the sweeps by method, and the rows of the table (each sweep at its tuned knob).
    """
    generator = torch.Generator().manual_seed(seed)
    problem = make_problem(settings, generator)
    sweeps = {
        "VGF": run_transport(problem, settings),
        "VGF, lone particles": run_transport(problem, settings, lone=True),
        "one-step policy": run_one_step_policy(problem, settings, generator),
        "flow policy": run_flow_policy(problem, settings, generator),
    }
    chosen = {name: tuned(outcomes, settings.tuning_seeds) for name, outcomes in sweeps.items()}
    single = problem.reference.reshape(len(problem.actions), -1, 1, 2)
    pooled = single.squeeze(2)
    width = min(25 * settings.num_particles, pooled.shape[1])  # about the gradients that eight steps cost
    wide = pooled[:, : pooled.shape[1] // width * width].reshape(len(pooled), -1, width, 2)
    rows = [
        measure("behaviour", float("nan"), single, problem.reward),
        measure(f"best-of-{settings.num_particles}", float("nan"), problem.reference, problem.reward),
        measure(f"best-of-{width}", float("nan"), wide, problem.reward),
        *chosen.values(),
        run_random(problem, chosen["VGF"], generator),
    ]
    return problem, sweeps, rows


def spread(values: Tensor, seeds: int) -> str:
    """Mean and standard error over the first `seeds` entries of [S]."""
    values = values[:seeds].double()
    return f"{values.mean():.3f} ± {values.std() / seeds**0.5:.3f}"


def table(rows: Sequence[Outcome], seeds: int) -> str:
    """The rows as Markdown."""
    lines = [
        "| method | knob | true reward | learned reward | near the mode | true, no pick |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.name, "" if row.knob != row.knob else f"{row.knob:g}"]
        cells += [spread(values, seeds) for values in (row.true, row.learned, row.found, row.mean)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=Settings.seeds, help="seeds that the table is over")
    parser.add_argument("--tuning_seeds", type=int, default=Settings.tuning_seeds, help="further seeds, for the knobs")
    parser.add_argument("--num_particles", type=int, default=Settings.num_particles, help="N")
    parser.add_argument("--alpha", type=float, default=Settings.alpha, help="temperature of the flow")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/toy_bandit"))
    return parser.parse_args(argv)


def from_arguments(args: argparse.Namespace) -> Settings:
    """The settings that the command line asks for."""
    names = ("seeds", "tuning_seeds", "num_particles", "alpha")
    return Settings(**{name: getattr(args, name) for name in names})


def main(argv: Sequence[str] | None = None) -> None:
    """Runs, prints the tables, and writes results and figure."""
    args = parse(argv)
    settings, start = from_arguments(args), time.perf_counter()
    problem, sweeps, rows = run(settings, args.seed)
    text = table(rows, settings.seeds)
    sweep_text = "\n".join(table(outcomes, settings.seeds) for outcomes in sweeps.values())
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "results.md").write_text(f"{text}\nEvery knob:\n\n{sweep_text}", encoding="utf-8")
    records = [
        {"method": row.name, "knob": row.knob, "true": row.true.tolist(), "learned": row.learned.tolist()}
        for row in [*rows, *(outcome for outcomes in sweeps.values() for outcome in outcomes)]
    ]
    meta = {"settings": asdict(settings), "seed": args.seed, "seconds": round(time.perf_counter() - start, 1)}
    (args.output_dir / "results.json").write_text(json.dumps({"meta": meta, "rows": records}) + "\n", encoding="utf-8")
    figure = args.output_dir / "toy_bandit.png"
    draw(problem, sweeps, rows, settings.seeds, true_reward, BOX, figure)
    print(text)
    print(f"{meta['seconds']} s; every knob in {args.output_dir / 'results.md'}, figure in {figure}")


if __name__ == "__main__":
    main()
