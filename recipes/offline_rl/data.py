# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Tasks of OGBench and their data: the official files, or data of the package's own oracles.

OGBench's data come from scripted oracles that ship inside the package. `generate` runs them as the benchmark's
data-generation scripts do: plans with smoothed noise for play data, the way through the maze with noise on every
action for navigate data, episodes of 1001 steps. An episode depends on the seed and its own number alone, so that a run
that was killed goes on where it stopped and the file does not depend on that.
"""

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

Arrays = dict[str, NDArray[Any]]
DATASETS = ("cube-single-play", "scene-play", "puzzle-3x3-play", "pointmaze-medium-navigate")
DEFAULT_TASKS = {"cube-single-play": 2, "scene-play": 2, "puzzle-3x3-play": 4, "pointmaze-medium-navigate": 1}
EPISODE_STEPS = 1001
"""Of which 1000 are transitions: the last observation has no successor."""
EPISODES_PER_PART = 5
NOISE, SMOOTHING, MAZE_NOISE = 0.1, 0.5, 0.5
EXTRA = 'pip install "vgf-llm[ogbench]", or pip install -e ".[ogbench]" in a checkout'


@dataclass(frozen=True)
class Task:
    """A reward-based task of OGBench.

    Attributes:
        name: As given, `cube-single-play-singletask-task2-v0`.
        dataset: `cube-single-play`; the official file is `cube-single-play-v0.npz`.
        environment: Name without the kind of data, `cube-single`.
        number: Which of the five tasks.
    """

    name: str
    dataset: str
    environment: str
    number: int


def find_task(name: str) -> Task:
    """The task of a name of OGBench; without `-task<number>` the environment's default one.

    Example:
        >>> find_task("cube-single-play-singletask-v0").number
        2
    """
    match = re.fullmatch(r"(.+)-singletask(?:-task([1-5]))?-v0", name)
    if match is None or match[1] not in DATASETS:
        names = ", ".join(f"{dataset}-singletask-task<1 to 5>-v0" for dataset in DATASETS)
        raise ValueError(f"unknown environment {name!r}; known are {names}.")
    dataset = match[1]
    return Task(name, dataset, dataset.rsplit("-", 1)[0], int(match[2] or DEFAULT_TASKS[dataset]))


@contextmanager
def _from_extra() -> Iterator[None]:
    """Says which extra brings what cannot be imported inside; making an environment imports more than the package."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"the tasks need the extra `ogbench` (MuJoCo and OGBench): {EXTRA}. Missing: {error}"
        ) from error


def load_package() -> Any:
    """The package `ogbench`, set to run without a display."""
    os.environ.setdefault("MUJOCO_GL", "disable")
    with _from_extra():
        importlib.import_module("mujoco")
        return importlib.import_module("ogbench")


def make_environment(task: Task) -> Any:
    """The environment of a task, with its reward."""
    package = load_package()
    with _from_extra():
        return package.make_env_and_datasets(task.name, env_only=True)


def _oracles(environment: Any, task: Task) -> dict[str, Any]:
    """The oracle of each kind of target."""
    kinds = {"cube": ("cube",), "scene": ("cube", "button", "drawer", "window"), "puzzle": ("button",)}
    extra = {"gripper_always_closed": True} if "puzzle" in task.environment else {}
    oracles = {}
    for kind in kinds[task.environment.split("-")[0]]:
        module = importlib.import_module(f"ogbench.manipspace.oracles.plan.{kind}_plan")
        oracle = getattr(module, f"{kind.capitalize()}PlanOracle")
        oracles[kind] = oracle(env=environment, noise=NOISE, noise_smoothing=SMOOTHING, **extra)
    return oracles


def _healthy(qpos: NDArray[Any]) -> bool:
    """Whether the cube of a scene was always in reach or in the drawer."""
    cube = qpos[:, 14:17]
    lost = (cube[:, 1] <= -0.3) & ((cube[:, 2] < 0.06) | (cube[:, 2] > 0.08))
    return not bool((cube[:, 1] >= 0.29).any() or lost.any())


def _play_episode(environment: Any, oracles: dict[str, Any], seed: int, task: Task) -> Arrays:
    """One episode of an oracle that gets a new target whenever it has reached the last."""
    observation, info = environment.reset(seed=seed)
    stacking = 0.0 if "single" in task.environment else 0.5
    oracle = oracles[info["privileged/target_task"]]
    oracle.reset(observation, info)
    rows: dict[str, list[Any]] = {name: [] for name in ("observations", "actions", "terminals", "qpos", "qvel")}
    done = False
    while not done:
        action = np.clip(np.array(oracle.select_action(observation, info)), -1, 1)
        following, _, terminated, truncated, info = environment.step(action)
        done = terminated or truncated
        if oracle.done:
            oracle_observation, oracle_info = environment.unwrapped.set_new_target(p_stack=stacking)
            oracle = oracles[oracle_info["privileged/target_task"]]
            oracle.reset(oracle_observation, oracle_info)
        _append(rows, observation, action, done, info)
        observation = following
    return {name: np.array(values) for name, values in rows.items()}


def _append(rows: dict[str, list[Any]], observation: Any, action: Any, done: bool, info: dict[str, Any]) -> None:
    values = {"observations": observation, "actions": action, "terminals": done, "qpos": info["prev_qpos"]}
    values["qvel"] = info["prev_qvel"]
    if "prev_button_states" in info:
        values["button_states"] = info["prev_button_states"]
    for name, value in values.items():
        rows.setdefault(name, []).append(np.array(value))


def _in_corridor(cells: NDArray[Any], i: int, j: int) -> bool:
    """Whether a free cell has walls on two opposite sides and free cells on the other two."""
    across, along = (cells[i - 1, j], cells[i + 1, j]), (cells[i, j - 1], cells[i, j + 1])
    return {across, along} == {(0, 0), (1, 1)}


def _navigate_episode(environment: Any, seed: int) -> Arrays:
    """One episode of noisy walks from a random place to random goals, a new goal whenever one is reached."""
    free = np.argwhere(environment.unwrapped.maze_map == 0)
    goals = free[[not _in_corridor(environment.unwrapped.maze_map, *cell) for cell in free]]
    pick = lambda cells: tuple(cells[np.random.randint(len(cells))])  # noqa: E731
    observation, _ = environment.reset(
        seed=seed, options={"task_info": {"init_ij": pick(free), "goal_ij": pick(goals)}}
    )
    rows: dict[str, list[Any]] = {name: [] for name in ("observations", "actions", "terminals", "qpos", "qvel")}
    done = False
    while not done:
        place = environment.unwrapped.get_xy()
        subgoal, _ = environment.unwrapped.get_oracle_subgoal(place, environment.unwrapped.cur_goal_xy)
        direction = (subgoal - place) / (np.linalg.norm(subgoal - place) + 1e-6)
        action = np.clip(direction + np.random.normal(0, MAZE_NOISE, direction.shape), -1, 1)
        following, _, terminated, truncated, info = environment.step(action)
        done = terminated or truncated
        if info["success"]:
            environment.unwrapped.set_goal(pick(goals))
        _append(rows, observation, action, done, info)
        observation = following
    return {name: np.array(values) for name, values in rows.items()}


class _Generator:
    """Episodes by number."""

    def __init__(self, task: Task, seed: int, steps: int) -> None:
        load_package()
        gymnasium = importlib.import_module("gymnasium")
        self.task, self.seed = task, seed
        self.play = task.dataset.endswith("play")
        more = {"mode": "data_collection"} if self.play else {}
        name = f"{task.environment}-v0"
        with _from_extra():
            self.environment = gymnasium.make(name, terminate_at_goal=False, max_episode_steps=steps, **more)
        self.oracles = _oracles(self.environment, task) if self.play else {}

    def episode(self, number: int) -> Arrays:
        """The episode of a number, the same whenever it is asked for."""
        for attempt in range(100):
            seed = (self.seed * 1_000_003 + number) * 100 + attempt
            np.random.seed(seed % 2**32)  # the oracles draw from NumPy's global generator
            if not self.play:
                return _navigate_episode(self.environment, seed % 2**31)
            rows = _play_episode(self.environment, self.oracles, seed % 2**31, self.task)
            if "scene" not in self.task.environment or _healthy(rows["qpos"]):
                return rows
        raise RuntimeError(f"episode {number} of {self.task.dataset} lost its cube in 100 attempts.")


def _save(path: Path, arrays: Arrays) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    part.replace(path)


def generate(task: Task, num_transitions: int, folder: Path, seed: int = 0, steps: int = EPISODE_STEPS) -> Path:
    """Makes data with the oracles, or finds them in `folder` from an earlier call.

    Args:
        task: Which data; its five tasks share them.
        num_transitions: How many, rounded up to whole episodes.
        folder: Where the file goes, and its parts while it is made.
        seed: Of the oracles, their noise and the starts.
        steps: Length of an episode.

    Returns:
        The file, in the format of the official ones.
    """
    episodes = -(-num_transitions // (steps - 1))
    stem = f"{task.dataset}-{episodes}x{steps}-seed{seed}"
    path = folder / f"{stem}.npz"
    if path.exists():
        return path
    parts = folder / f"{stem}.parts"
    parts.mkdir(parents=True, exist_ok=True)
    starts = range(0, episodes, EPISODES_PER_PART)
    missing = [start for start in starts if not (parts / f"{start}.npz").exists()]
    generator = _Generator(task, seed, steps)
    for start in track(missing, description=f"{task.dataset}: {len(missing)} parts of {EPISODES_PER_PART} episodes"):
        numbers = range(start, min(start + EPISODES_PER_PART, episodes))
        _save(parts / f"{start}.npz", _joined([generator.episode(number) for number in numbers]))
    rows = _joined([dict(np.load(parts / f"{start}.npz")) for start in starts])
    types = {"terminals": np.bool_, "button_states": np.int64}
    arrays = {name: values.astype(types.get(name, np.float32)) for name, values in rows.items()}
    _save(path, {**arrays, "environment": np.array(task.environment)})
    for start in starts:
        (parts / f"{start}.npz").unlink()
    parts.rmdir()
    return path


def _joined(episodes: list[Arrays]) -> Arrays:
    return {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}


@dataclass(frozen=True)
class Dataset:
    """Transitions of whole episodes.

    Attributes:
        observations: Every observation, the last ones of episodes included, [M, O].
        actions: The action at each, [M, A].
        starts: Rows that have a successor, which is the row after them, [T].
        rewards: Of those, [T].
        masks: 0 where the task is solved, [T].
    """

    observations: Tensor
    actions: Tensor
    starts: Tensor
    rewards: Tensor
    masks: Tensor


def official_file(task: Task, folder: Path) -> Path:
    """The file of the benchmark in a folder."""
    path = folder / f"{task.dataset}-v0.npz"
    if not path.exists():
        found = ", ".join(sorted(other.name for other in folder.glob("*.npz"))) or "no .npz file"
        raise FileNotFoundError(f"{path} is not there; {folder} has {found}. Without a folder the data are generated.")
    return path


def read(path: Path, task: Task, environment: Any, num_transitions: int, least: int) -> Dataset:
    """Reads data and gives them the rewards of a task.

    Args:
        path: An official file or one of `generate`.
        task: Which task.
        environment: Its environment, whose spaces the data must fit.
        num_transitions: How many to keep, rounded up to whole episodes.
        least: Fewer are refused.

    Raises:
        ValueError: The data are those of another environment, are fewer than `least`, or none of them solves the task.
    """
    with np.load(path) as file:
        rows = {name: file[name] for name in file.files if name != "qvel"}
    made_for = str(rows.pop("environment", task.environment))
    if made_for != task.environment:
        raise ValueError(f"{path} holds data of {made_for}, {task.name} needs data of {task.environment}.")
    for name, space in (("observations", environment.observation_space), ("actions", environment.action_space)):
        if rows[name].shape[1:] != space.shape:
            raise ValueError(
                f"{path} has {name} of shape {rows[name].shape[1:]}, {task.name} has {space.shape}: "
                "these are data of another environment."
            )
    ends = np.flatnonzero(rows["terminals"])
    starts = np.setdiff1d(np.arange(ends[-1]), ends) if len(ends) else np.arange(0)
    if len(starts) < least:
        raise ValueError(f"{path} has {len(starts)} transitions, at least {least} are needed; generate more.")
    if len(starts) > num_transitions:
        last = ends[np.searchsorted(ends, starts[num_transitions - 1])]
        starts = starts[starts < last]
    kept = {name: rows[name][starts] for name in ("qpos", "button_states") if name in rows}
    relabel = importlib.import_module("ogbench.relabel_utils").relabel_dataset
    relabel(task.environment, environment, kept)
    if kept["masks"].all():
        raise ValueError(f"none of the {len(starts)} transitions of {path} solves {task.name}; generate more.")
    tensor = lambda values: torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))  # noqa: E731
    length = int(starts[-1]) + 2
    observations, actions = tensor(rows["observations"][:length]), tensor(rows["actions"][:length])
    return Dataset(observations, actions, torch.from_numpy(starts), tensor(kept["rewards"]), tensor(kept["masks"]))
