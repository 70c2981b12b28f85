# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A point-mass maze in plain torch, and a mixed-quality data set collected in it.

The state is position and velocity, [..., 4], in a unit square with a wall; an action is an acceleration in [-1, 1]^2.
The mass starts at the lower left and has to reach the lower right, over the wall.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

STEP_TIME, SUBSTEPS, THRUST, DRAG = 0.2, 4, 4.0, 3.0
GOAL, GOAL_RADIUS = torch.tensor([0.85, 0.15]), 0.1
STARTS = torch.tensor([[0.05, 0.05], [0.3, 0.3]])  # low and high corner of the start region
WALLS = torch.tensor([[0.45, 0.0, 0.55, 0.65]])  # low x, low y, high x, high y
WAYPOINTS = torch.tensor([[0.4, 0.8], [0.6, 0.8], [0.85, 0.15]])
WAYPOINT_RADIUS = 0.1


def inside_wall(position: Tensor) -> Tensor:
    """Whether positions [..., 2] are in a wall or outside the square, [...]."""
    point = position.unsqueeze(-2)
    in_wall = ((point > WALLS[:, :2]) & (point < WALLS[:, 2:])).all(dim=-1).any(dim=-1)
    return in_wall | (position < 0).any(dim=-1) | (position > 1).any(dim=-1)


def step(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the maze.

    In each of SUBSTEPS equal parts the velocity gains (THRUST a - DRAG v) dt, then the position moves along each axis
    in turn; an axis that would enter a wall keeps its position and loses its velocity.

    Args:
        state: Position and velocity, [B, 4].
        action: Acceleration, [B, 2]; clipped to [-1, 1].

    Returns:
        The next state [B, 4], the reward [B] (minus the seconds of a step), and whether the goal is reached [B].
    """
    position, velocity, time = state[:, :2], state[:, 2:], STEP_TIME / SUBSTEPS
    for _ in range(SUBSTEPS):
        velocity = velocity + time * (THRUST * action.clamp(-1, 1) - DRAG * velocity)
        for axis in (0, 1):
            tried = position.clone()
            tried[:, axis] += time * velocity[:, axis]
            blocked = inside_wall(tried)
            position = torch.where(blocked.unsqueeze(-1), position, tried)
            velocity[:, axis] = torch.where(blocked, 0.0, velocity[:, axis])
    done = torch.linalg.vector_norm(position - GOAL, dim=-1) < GOAL_RADIUS
    return torch.cat([position, velocity], dim=-1), torch.full_like(position[:, 0], -STEP_TIME), done


def reset(num: int, generator: torch.Generator) -> Tensor:
    """`num` states at rest in the start region, [num, 4]."""
    position = STARTS[0] + (STARTS[1] - STARTS[0]) * torch.rand(num, 2, generator=generator)
    return torch.cat([position, torch.zeros(num, 2)], dim=-1)


@dataclass(frozen=True)
class Dataset:
    """Transitions: states [M, 4], actions [M, 2], rewards [M], next states [M, 4], 1 where the goal is reached [M]."""

    states: Tensor
    actions: Tensor
    rewards: Tensor
    next_states: Tensor
    dones: Tensor


def behave(states: Tensor, target: Tensor, speed: Tensor, noise: Tensor) -> Tensor:
    """The behaviour's action: `speed` [B] towards `target` [B, 2], plus noise [B, 2]."""
    direction = torch.nn.functional.normalize(target - states[:, :2] - 0.1 * states[:, 2:], dim=-1)
    return (speed.unsqueeze(-1) * direction + noise).clamp(-1, 1)


def collect(num_episodes: int, horizon: int, generator: torch.Generator, max_speed: float = 0.6) -> Dataset:
    """Collects episodes of walkers of mixed quality.

    Each walker has a speed between 0.15 and `max_speed` of what the action allows and heads for the waypoints in order,
    one in three with the waypoints of a moment replaced by a random point; all of them are noisy. Nobody uses the full
    acceleration on purpose, so the best action lies beyond most of the data.

    Args:
        num_episodes: Episodes.
        horizon: Steps per episode; an episode ends at the goal.
        generator: Source of randomness.
        max_speed: Top of the range of speeds.
    """
    state = reset(num_episodes, generator)
    speed = 0.15 + (max_speed - 0.15) * torch.rand(num_episodes, generator=generator)
    lost = torch.rand(num_episodes, generator=generator) < 1 / 3
    stage = torch.zeros(num_episodes, dtype=torch.long)
    wander = torch.rand(num_episodes, 2, generator=generator)
    alive = torch.ones(num_episodes, dtype=torch.bool)
    parts: list[tuple[Tensor, ...]] = []
    for time in range(horizon):
        near = torch.linalg.vector_norm(state[:, :2] - WAYPOINTS[stage], dim=-1) < WAYPOINT_RADIUS
        stage = (stage + near.long()).clamp(max=len(WAYPOINTS) - 1)
        if time % 8 == 0:  # a lost walker wanders for 8 steps, then follows the way for 8
            wander = torch.rand(num_episodes, 2, generator=generator)
        wandering = lost & (time % 16 < 8)
        target = torch.where(wandering.unsqueeze(-1), wander, WAYPOINTS[stage])
        action = behave(state, target, speed, 0.2 * torch.randn(num_episodes, 2, generator=generator))
        following, reward, done = step(state, action)
        parts.append(tuple(part[alive] for part in (state, action, reward, following, done.float())))
        state, alive = following, alive & ~done
        if not bool(alive.any()):
            break
    return Dataset(*(torch.cat(column) for column in zip(*parts, strict=True)))
