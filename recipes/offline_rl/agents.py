# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Value Gradient Flow for continuous actions, and its baselines: S seeds of each train at once as one stack.

VGF follows the authors' code (github.com/ryanxhr/vgf, agents/vgf.py): a behaviour model by flow matching, a double
critic with layer normalisation whose target is the mean over transported particles of the next state, and the best by
the critic of transported particles. IFQL, FQL and ReBRAC follow arXiv 2502.02538 (FQL). Every method samples the same
trained behaviour model. Its actions are drawn once for every observation of the data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recipes.continuous_actions import as_far_at_random, check_least, follow
from recipes.offline_rl.data import Dataset
from recipes.stacked_networks import FlowMatching, StackedMLP
from vgf_llm.functional import transport

Policy = Callable[[Tensor, torch.Generator], Tensor]
"""Actions [S, B, A] for observations [S, B, O]."""


@dataclass(frozen=True)
class Settings:
    """Sizes and knobs.

    Attributes:
        seeds: S, networks of each kind that train at once.
        updates: Gradient steps of each method.
        batch_size: Transitions per update and seed.
        width: Width of the two hidden layers of every network.
        learning_rate: Of Adam.
        target_rate: How far the target critic follows per update.
        discount: gamma.
        flow_steps: Euler steps of the behaviour model.
        num_particles: N while the critic trains.
        test_particles: N when acting.
        step_size: epsilon.
        alpha: Temperature of the flow, in units of the reward.
        expectile: Of IFQL.
        ifql_samples: Behaviour samples among which IFQL picks.
        fql_weight: Weight of FQL's distillation.
        rebrac_actor: Weight of ReBRAC's distance to the data's action.
        rebrac_critic: Weight of the same distance in its target.
    """

    seeds: int = 4
    updates: int = 20_000
    batch_size: int = 128
    width: int = 128
    learning_rate: float = 1e-3
    target_rate: float = 0.01
    discount: float = 0.99
    flow_steps: int = 10
    num_particles: int = 5
    test_particles: int = 10
    step_size: float = 0.02
    alpha: float = 0.1
    expectile: float = 0.9
    ifql_samples: int = 32
    fql_weight: float = 300.0
    rebrac_actor: float = 1.0
    rebrac_critic: float = 0.0

    def __post_init__(self) -> None:
        sizes = ("seeds", "updates", "batch_size", "width", "flow_steps", "num_particles", "test_particles")
        check_least(self, 1, *sizes)
        if not 0 < self.discount < 1 or not 0 < self.target_rate <= 1:
            raise ValueError(f"discount and target_rate must be in (0, 1), got {self.discount} and {self.target_rate}.")


@dataclass(frozen=True)
class Batch:
    """B transitions for each of S seeds; `rows` and `rows` + 1 are the rows of the data, [S, B]."""

    rows: Tensor
    observations: Tensor
    actions: Tensor
    rewards: Tensor
    masks: Tensor
    next_observations: Tensor
    next_actions: Tensor


def draw(data: Dataset, settings: Settings, generator: torch.Generator) -> Batch:
    """A batch of its own for every seed."""
    index = torch.randint(len(data.starts), (settings.seeds, settings.batch_size), generator=generator)
    rows = data.starts[index]
    return Batch(
        rows,
        data.observations[rows],
        data.actions[rows],
        data.rewards[index],
        data.masks[index],
        data.observations[rows + 1],
        data.actions[rows + 1],
    )


@dataclass(frozen=True)
class References:
    """Behaviour actions at every row of the data, [S, M, N, A], and the noise that each came from."""

    actions: Tensor
    noise: Tensor

    def at(self, rows: Tensor) -> Tensor:
        """The actions at rows [S, B], [S, B, N, A]."""
        return self.actions[torch.arange(len(rows)).unsqueeze(1), rows]


def behaviour_actions(behaviour: FlowMatching, observations: Tensor, noise: Tensor, settings: Settings) -> Tensor:
    """Carries noise [S, B, N, A] at observations [S, B, O] to actions in the box."""
    num = noise.shape[2]
    condition = observations.repeat_interleave(num, dim=1)
    with torch.no_grad():
        actions = behaviour.sample(noise.flatten(1, 2), condition, settings.flow_steps)
    return actions.clamp(-1, 1).unflatten(1, (-1, num))


def draw_references(
    behaviour: FlowMatching, data: Dataset, settings: Settings, generator: torch.Generator
) -> References:
    """N behaviour actions for every observation and seed."""
    seeds, num, width = settings.seeds, settings.num_particles, data.actions.shape[-1]
    noise = torch.randn(seeds, len(data.observations), num, width, generator=generator)
    actions = torch.empty_like(noise)
    for start in range(0, len(data.observations), 1024):
        part = slice(start, start + 1024)
        observations = data.observations[part].expand(seeds, -1, -1)
        actions[:, part] = behaviour_actions(behaviour, observations, noise[:, part], settings)
    return References(actions, noise)


class Critic(nn.Module):
    """A double critic for each seed, and its slow copy."""

    def __init__(self, settings: Settings, sizes: tuple[int, int], generator: torch.Generator) -> None:
        super().__init__()
        shape = (sum(sizes), settings.width, settings.width, 1)
        self.fast = StackedMLP(2 * settings.seeds, shape, generator, layer_norm=True)
        self.slow = self.fast.repeat(1).requires_grad_(False)

    def forward(self, observations: Tensor, actions: Tensor, slow: bool = False) -> Tensor:
        """Both values of actions [S, B, N, A] at observations [S, B, O], as [2, S, B, N]."""
        num = actions.shape[2]
        inputs = torch.cat([observations.unsqueeze(2).expand(-1, -1, num, -1), actions], dim=-1).flatten(1, 2)
        values = (self.slow if slow else self.fast)(inputs.repeat(2, 1, 1))
        return values.view(2, len(observations), -1, num)

    def one(self, observations: Tensor, actions: Tensor, slow: bool = False) -> Tensor:
        """Both values of one action [S, B, A] at each observation, as [2, S, B]."""
        return self(observations, actions.unsqueeze(2), slow).squeeze(-1)


class Agent(nn.Module):
    """What trains: networks and the optimizers of some of them.

    Args:
        settings: Sizes.
        data: Transitions.
        generator: Source of the weights and of the batches.
    """

    def __init__(self, settings: Settings, data: Dataset, generator: torch.Generator) -> None:
        super().__init__()
        self.settings, self.data, self.generator = settings, data, generator
        self.sizes = (data.observations.shape[-1], data.actions.shape[-1])
        self.optimizers: list[torch.optim.Optimizer] = []

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """A new Adam, saved with the agent."""
        self.optimizers.append(torch.optim.Adam(module.parameters(), self.settings.learning_rate, fused=True))
        return self.optimizers[-1]

    def minimise(self, optimizer: torch.optim.Optimizer, losses: Tensor) -> None:
        """A step on the sum of the losses [S] of separate networks, in the weights of one optimizer alone."""
        optimizer.zero_grad()
        losses.sum().backward(inputs=optimizer.param_groups[0]["params"])
        optimizer.step()

    def update(self) -> None:
        """One gradient step of every network."""
        raise NotImplementedError

    def saved(self) -> dict[str, Tensor]:
        """Everything that training goes on from: weights, moments of Adam, and the state of the generator."""
        found = {f"weights.{name}": value for name, value in self.state_dict().items()}
        for place, optimizer in enumerate(self.optimizers):
            for row, state in optimizer.state_dict()["state"].items():
                found |= {f"optimizer.{place}.{row}.{name}": value for name, value in state.items()}
        return {**found, "generator": self.generator.get_state()}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """The inverse of `saved`."""
        self.load_state_dict({name[8:]: value for name, value in saved.items() if name.startswith("weights.")})
        for place, optimizer in enumerate(self.optimizers):
            states: dict[int, dict[str, Tensor]] = {}
            for key, value in saved.items():
                kind, *path = key.split(".")
                if kind == "optimizer" and int(path[0]) == place:
                    states.setdefault(int(path[1]), {})[path[2]] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        self.generator.set_state(saved["generator"])


class Behaviour(Agent):
    """Behaviour cloning by flow matching."""

    def __init__(self, settings: Settings, data: Dataset, generator: torch.Generator) -> None:
        super().__init__(settings, data, generator)
        self.flow = FlowMatching(settings.seeds, self.sizes[1], self.sizes[0], settings.width, generator)
        self.flow_optimizer = self.optimizer(self.flow)

    def update(self) -> None:
        batch = draw(self.data, self.settings, self.generator)
        self.minimise(self.flow_optimizer, self.flow.loss(batch.actions, batch.observations, self.generator))

    def sample(self, observations: Tensor, num: int, generator: torch.Generator) -> Tensor:
        """Actions [S, B, N, A] for observations [S, B, O]."""
        noise = torch.randn(*observations.shape[:2], num, self.sizes[1], generator=generator)
        return behaviour_actions(self.flow, observations, noise, self.settings)

    def policy(self) -> Policy:
        """One sample."""
        return lambda observations, generator: self.sample(observations, 1, generator).squeeze(2)


class WithCritic(Agent):
    """An agent with a double critic, beside a behaviour model that is not trained further."""

    def __init__(
        self,
        settings: Settings,
        data: Dataset,
        generator: torch.Generator,
        behaviour: Behaviour,
        references: References,
    ) -> None:
        super().__init__(settings, data, generator)
        self.behaviour, self.references = [behaviour], references  # in a list: not saved with this agent
        self.critic = Critic(settings, self.sizes, generator)
        self.critic_optimizer = self.optimizer(self.critic.fast)
        self.build()

    def build(self) -> None:
        """Makes the networks beside the critic."""

    def regress(self, batch: Batch, next_value: Tensor) -> None:
        """A TD step of both critics towards r + gamma * mask * next_value [S, B]; the slow copy follows."""
        goal = batch.rewards + self.settings.discount * batch.masks * next_value
        error = self.critic.one(batch.observations, batch.actions) - goal
        self.minimise(self.critic_optimizer, error.square().mean(dim=(0, 2)))
        follow(self.critic.slow, self.critic.fast, self.settings.target_rate)

    def best(self, observations: Tensor, particles: Tensor, values: Tensor) -> Tensor:
        """The particle [S, B, A] of highest value [S, B, N]."""
        index = values.argmax(dim=-1)[..., None, None].expand(-1, -1, 1, particles.shape[-1])
        return particles.gather(2, index).squeeze(2)


class ValueGradientFlow(WithCritic):
    """The critic of transported particles; `train_steps` is L_train, 0 the value of the behaviour."""

    train_steps = 1

    def move(self, observations: Tensor, particles: Tensor, num_steps: int) -> Tensor:
        """Transports particles [S, B, N, A] along the mean of the two critics, within the box."""
        return transport(
            particles,
            lambda moved: self.critic(observations, moved).mean(dim=0),
            step_size=self.settings.step_size,
            num_steps=num_steps,
            alpha=self.settings.alpha,
            project=lambda moved: moved.clamp(-1, 1),
        ).particles

    def update(self) -> None:
        batch = draw(self.data, self.settings, self.generator)
        particles = self.references.at(batch.rows + 1)
        if self.train_steps:
            particles = self.move(batch.next_observations, particles, self.train_steps)
        with torch.no_grad():
            next_value = self.critic(batch.next_observations, particles, slow=True).mean(dim=(0, 3))
        self.regress(batch, next_value)

    def policy(self, test_steps: int, random_direction: bool = False) -> Policy:
        """The best by the critic of N behaviour samples that were moved L_test steps.

        Args:
            test_steps: L_test; 0 is best-of-N.
            random_direction: The control: each particle goes as far as the flow carries it, in a random direction.
        """

        def act(observations: Tensor, generator: torch.Generator) -> Tensor:
            start = self.behaviour[0].sample(observations, self.settings.test_particles, generator)
            particles = self.move(observations, start, test_steps) if test_steps else start
            if random_direction:
                particles = as_far_at_random(start, particles, generator)
            with torch.no_grad():
                return self.best(observations, particles, self.critic(observations, particles).mean(dim=0))

        return act


class IFQL(WithCritic):
    """Implicit Q-learning, and the best by its critic of samples of the flow-matching behaviour model."""

    def build(self) -> None:
        settings, generator = self.settings, self.generator
        shape = (self.sizes[0], settings.width, settings.width, 1)
        self.value = StackedMLP(settings.seeds, shape, generator, layer_norm=True)
        self.value_optimizer = self.optimizer(self.value)

    def update(self) -> None:
        batch = draw(self.data, self.settings, self.generator)
        with torch.no_grad():
            goal = self.critic.one(batch.observations, batch.actions, slow=True).amin(dim=0)
        error = goal - self.value(batch.observations).squeeze(-1)
        weight = torch.where(error >= 0, self.settings.expectile, 1 - self.settings.expectile)
        self.minimise(self.value_optimizer, (weight * error.square()).mean(dim=1))
        with torch.no_grad():
            next_value = self.value(batch.next_observations).squeeze(-1)
        self.regress(batch, next_value)

    def policy(self) -> Policy:
        """The best of `ifql_samples` by the lower of the two critics."""

        def act(observations: Tensor, generator: torch.Generator) -> Tensor:
            particles = self.behaviour[0].sample(observations, self.settings.ifql_samples, generator)
            with torch.no_grad():
                return self.best(observations, particles, self.critic(observations, particles).amin(dim=0))

        return act


class FQL(WithCritic):
    """Flow Q-learning: a one-step policy, pulled to the behaviour model's action from the same noise."""

    def build(self) -> None:
        settings, generator = self.settings, self.generator
        shape = (sum(self.sizes), settings.width, settings.width, self.sizes[1])
        self.actor = StackedMLP(settings.seeds, shape, generator)
        self.actor_optimizer = self.optimizer(self.actor)

    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions [S, B, A], not clipped."""
        return self.actor(torch.cat([observations, noise], dim=-1))

    def update(self) -> None:
        batch = draw(self.data, self.settings, self.generator)
        with torch.no_grad():
            noise = torch.randn(batch.actions.shape, generator=self.generator)
            action = self.act(batch.next_observations, noise).clamp(-1, 1)
            next_value = self.critic.one(batch.next_observations, action, slow=True).mean(dim=0)
        self.regress(batch, next_value)
        seeds = torch.arange(self.settings.seeds).unsqueeze(1)
        which = torch.randint(self.settings.num_particles, batch.rows.shape, generator=self.generator)
        teacher = self.references.actions[seeds, batch.rows, which]
        action = self.act(batch.observations, self.references.noise[seeds, batch.rows, which])
        distillation = (action - teacher).square().mean(dim=(1, 2))
        value = self.critic.one(batch.observations, action.clamp(-1, 1)).mean(dim=(0, 2))
        self.minimise(self.actor_optimizer, self.settings.fql_weight * distillation - value)

    def policy(self) -> Policy:
        """One action from one noise."""

        def act(observations: Tensor, generator: torch.Generator) -> Tensor:
            noise = torch.randn(*observations.shape[:2], self.sizes[1], generator=generator)
            with torch.no_grad():
                return self.act(observations, noise).clamp(-1, 1)

        return act


class ReBRAC(WithCritic):
    """A deterministic policy, pulled to the data's action, that trains at every other update."""

    def build(self) -> None:
        settings, generator = self.settings, self.generator
        shape = (self.sizes[0], settings.width, settings.width, self.sizes[1])
        self.actor = StackedMLP(settings.seeds, shape, generator)
        self.slow_actor = self.actor.repeat(1).requires_grad_(False)
        self.actor_optimizer = self.optimizer(self.actor)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def update(self) -> None:
        batch, settings = draw(self.data, self.settings, self.generator), self.settings
        with torch.no_grad():
            noise = (0.2 * torch.randn(batch.actions.shape, generator=self.generator)).clamp(-0.5, 0.5)
            action = (self.slow_actor(batch.next_observations).tanh() + noise).clamp(-1, 1)
            distance = (action - batch.next_actions).square().sum(dim=-1)
            next_value = self.critic.one(batch.next_observations, action, slow=True).amin(dim=0)
        self.regress(batch, next_value - settings.rebrac_critic * distance)
        self.count += 1
        if int(self.count) % 2:
            return
        action = self.actor(batch.observations).tanh()
        distance = (action - batch.actions).square().sum(dim=-1).mean(dim=1)
        value = self.critic.one(batch.observations, action).amin(dim=0)
        value = value.mean(dim=1) / value.detach().abs().mean(dim=1)
        self.minimise(self.actor_optimizer, settings.rebrac_actor * distance - value)
        follow(self.slow_actor, self.actor, settings.target_rate)

    def policy(self) -> Policy:
        """The action of the policy."""

        @torch.no_grad()
        def act(observations: Tensor, generator: torch.Generator) -> Tensor:
            return self.actor(observations).tanh()

        return act


BASELINES: dict[str, type[IFQL] | type[FQL] | type[ReBRAC]] = {"IFQL": IFQL, "FQL": FQL, "ReBRAC": ReBRAC}


def mean_distance(agent: ValueGradientFlow, test_steps: Sequence[int], generator: torch.Generator) -> list[float]:
    """How far the particles of a batch of the data go in each number of steps, on average."""
    batch = draw(agent.data, agent.settings, generator)
    start = agent.references.at(batch.rows)
    moved = [agent.move(batch.observations, start, steps) - start for steps in test_steps]
    return [float(torch.linalg.vector_norm(difference, dim=-1).mean()) for difference in moved]
