# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Tasks: prompts, what is gold about a response, what a proxy says of it, and the answer that votes compare.

A new task is a function from `TaskOptions` to `Task` with a line in `TASKS`.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from eval.loading import identity
from eval.store import digest
from recipes import embedded_chains, embedded_math
from recipes.data import load_math_dataset
from recipes.embedded_preference import BASE_DIR as PREFERENCE_BASE_DIR
from recipes.embedded_preference import PROXY_DIR, gold_reward, make_prompts
from reward_models.answers import extract_answer, extract_expression
from reward_models.classifier import ClassifierReward
from reward_models.verifiable import gsm8k_reward, math_reward
from vgf_llm.trainer.score.rewards import RewardRunner, combine

AnswerOf = Callable[[str], str | None]


def template_switches(given: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """Reads the switches of a chat template, which command lines give as JSON.

    Raises:
        ValueError: If they are no JSON object.

    Example:
        >>> template_switches('{"enable_thinking": false}')
        {'enable_thinking': False}
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise ValueError(f"`chat_template_kwargs` {given!r} is not JSON ({error}).") from error
    if given is not None and not isinstance(given, dict):
        raise ValueError(f'`chat_template_kwargs` must be a JSON object such as {{"thinking": false}}, got {given!r}.')
    return given


def reward_mark(reward: Any) -> str:
    """Returns what tells a reward from others: the hash of a model, by name or in memory, or a function's name."""
    if isinstance(reward, str | Path):
        return identity(str(reward))
    module = reward if isinstance(reward, nn.Module) else getattr(reward, "model", None)
    name = getattr(reward, "__qualname__", type(reward).__qualname__)
    if not isinstance(module, nn.Module):
        return f"{getattr(reward, '__module__', '')}.{name}"
    sums = {key: [list(p.shape), float(p.detach().double().sum())] for key, p in module.named_parameters()}
    return f"{name} ({digest([sums, getattr(reward, 'lower_bound_coef', None)])})"


@dataclass(frozen=True)
class TaskOptions:
    """Which problems of a task, and where they come from.

    Args:
        split: `"validation"` chooses settings, `"test"` is reported.
        num_problems: How many; all of them (or the generated tasks' 500) if left out.
        problem_seed: Seed that draws or generates them.
        dataset: Hub id or local folder, instead of the task's own.
        dataset_config: Configuration on the hub, or a folder inside the local one.
        prompts_file: JSON lines with a column `prompt`, for the task `prompts`.
        reward_model: Sequence classifier that scores the task `prompts`.
        gold_model: A second, held-out classifier: then it is gold and `reward_model` is the proxy.
        conversational: Whether prompts are chat messages.
        system_prompt: First message of a conversation.
        chat_template_kwargs: Switches of the chat template, as a dict or its JSON text, such as
            `{"enable_thinking": false}`; those that the model was trained with.
        max_new_tokens: Longest response; the task's own if left out.
    """

    split: str = "test"
    num_problems: int | None = None
    problem_seed: int = 0
    dataset: str | None = None
    dataset_config: str | None = None
    prompts_file: str | None = None
    reward_model: str | None = None
    gold_model: str | None = None
    conversational: bool = False
    system_prompt: str | None = None
    chat_template_kwargs: dict[str, Any] | str | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_problems", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, or left out; got {value}.")
        object.__setattr__(self, "chat_template_kwargs", template_switches(self.chat_template_kwargs))


@dataclass(frozen=True)
class Task:
    """Problems and their scores.

    Attributes:
        name: Name.
        problems: Columns `prompt` and whatever the rewards read.
        gold: What is reported, in TRL's signature of reward functions, or a classifier.
        proxy: What training could see, where that is something else.
        answer_of: Extracts the answer that votes compare; `None` if responses have none.
        binary: Whether gold is 0 or 1: then it is an accuracy, and pass@k is defined.
        max_new_tokens: Longest response.
        chat_template_kwargs: Switches of the chat template, for the prompts and for reward models that read chats.
    """

    name: str
    problems: Dataset
    gold: Any
    proxy: Any = None
    answer_of: AnswerOf | None = None
    binary: bool = True
    max_new_tokens: int = 256
    chat_template_kwargs: dict[str, Any] | None = None
    _runners: dict[str, RewardRunner] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.problems) == 0:
            raise ValueError(f"The task {self.name!r} has no problems; an evaluation needs at least one.")
        for kind in ("gold", "proxy"):
            if getattr(self, kind) is not None:
                self._runners[kind] = RewardRunner(getattr(self, kind), chat_template_kwargs=self.chat_template_kwargs)
                self._runners[kind].check_columns(self.problems.column_names)

    @property
    def marks(self) -> dict[str, Any]:
        """What samples of this task depend on, for a results folder: hashes of the problems and of the rewards."""
        rewards = {kind: reward_mark(getattr(self, kind)) for kind in self._runners}
        return {"problems": f"{len(self.problems)} ({digest(list(self.problems))})", "rewards": rewards}

    @property
    def score_name(self) -> str:
        """What the gold score is called in tables."""
        return "accuracy" if self.binary else "gold"

    def to(self, device: torch.device | str) -> "Task":
        """Moves reward models to a device."""
        for runner in self._runners.values():
            runner.device = torch.device(device)
            for func in runner.reward_funcs:
                if isinstance(func, nn.Module):
                    func.to(device).eval()
        return self

    def select(self, rows: Sequence[int]) -> "Task":
        """Returns the task with some of its problems."""
        return replace(self, problems=self.problems.select(list(rows)), _runners={})

    def for_training(self) -> "Task":
        """Returns the task with what training may see as its gold: the proxy, where there is one."""
        return self if self.proxy is None else replace(self, gold=self.proxy, proxy=None, _runners={})

    def score(self, rows: Sequence[int], responses: Sequence[str], ids: Sequence[list[int]]) -> dict[str, list[float]]:
        """Scores responses.

        Args:
            rows: The problem of each response.
            responses: Texts.
            ids: Their token ids.

        Returns:
            `"gold"`, and `"proxy"` if the task has one, each with one number per response.

        Raises:
            ValueError: If a reward gives no number for a problem.
        """
        examples = [self.problems[i] for i in rows]
        prompts = [example["prompt"] for example in examples]
        chat = isinstance(prompts[0], list)
        completions = [[{"role": "assistant", "content": text}] if chat else text for text in responses]
        scores = {}
        for kind, runner in self._runners.items():
            numbers = combine(runner(examples, prompts, completions, list(ids)), runner.reward_weights).tolist()
            missing = next((i for i, number in zip(rows, numbers, strict=True) if math.isnan(number)), None)
            if missing is not None:
                raise ValueError(
                    f"The {kind} score of {self.name!r} is None for problem {missing}; it must be a number."
                )
            scores[kind] = numbers
        return scores


@dataclass(frozen=True)
class TaskEntry:
    """A line of the registry.

    Attributes:
        description: One line for `--help`.
        load: Makes the task.
        splits: Splits that it has.
        base_model: The base that ships with it, if one does.
    """

    description: str
    load: Callable[[TaskOptions], Task]
    splits: tuple[str, ...]
    base_model: Path | None = None


def _embedded_math(options: TaskOptions) -> Task:
    return _word_problems("embedded_math", embedded_math, 54, options)


def _embedded_chains(options: TaskOptions) -> Task:
    return _word_problems("embedded_chains", embedded_chains, 116, options)


def _word_problems(name: str, module: Any, max_new_tokens: int, options: TaskOptions) -> Task:
    problems = module.make_problems(options.num_problems or 500, seed=options.problem_seed, split=options.split)
    problems = problems.map(lambda row: {"prompt": row["question"] + "\n"})
    return Task(name, problems, gsm8k_reward, answer_of=extract_answer, max_new_tokens=max_new_tokens)


def _embedded_preference(options: TaskOptions) -> Task:
    prompts = make_prompts(options.num_problems or 500, seed=options.problem_seed, split=options.split)
    # The score that responses are moved and chosen by: the ensemble's lower bound.
    proxy = ClassifierReward(options.reward_model or PROXY_DIR, lower_bound_coef=1.0, batch_size=128)
    problems = Dataset.from_dict({"prompt": prompts})
    return Task("embedded_preference", problems, gold_reward, proxy, binary=False, max_new_tokens=32)


def _gsm8k(options: TaskOptions) -> Task:
    problems = _math_problems(options, "openai/gsm8k", "train" if options.split == "validation" else "test")
    return Task("gsm8k", problems, gsm8k_reward, answer_of=extract_answer, max_new_tokens=320)


def _math500(options: TaskOptions) -> Task:
    problems = _math_problems(options, "HuggingFaceH4/MATH-500", "test")
    return Task("math500", problems, math_reward, answer_of=extract_expression, max_new_tokens=1024)


def _math_problems(options: TaskOptions, hub_id: str, split: str) -> Dataset:
    problems = load_math_dataset(
        options.dataset or hub_id,
        split,
        config_name=options.dataset_config,
        conversational=options.conversational,
        system_prompt=options.system_prompt,
    )
    # In the recipe too, validation problems are the first of the shuffled training set.
    problems = problems.shuffle(seed=options.problem_seed)
    default = 200 if options.split == "validation" else len(problems)
    return problems.select(range(min(options.num_problems or default, len(problems))))


def _prompts(options: TaskOptions) -> Task:
    for name in ("prompts_file", "reward_model"):
        if getattr(options, name) is None:
            raise ValueError(f"The task 'prompts' needs `--{name}`.")
    problems = _read_prompts(Path(options.prompts_file))  # type: ignore[arg-type]
    if options.num_problems is not None:
        problems = problems.shuffle(seed=options.problem_seed)
        problems = problems.select(range(min(options.num_problems, len(problems))))
    gold, proxy = options.reward_model, None
    if options.gold_model is not None:
        gold, proxy = options.gold_model, options.reward_model
    return Task("prompts", problems, gold, proxy, binary=False, max_new_tokens=256)


def _read_prompts(path: Path) -> Dataset:
    if not path.is_file():
        raise FileNotFoundError(f"`--prompts_file` {str(path)!r} does not exist.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}).") from error
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str | list) or not row["prompt"]:
            found = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{path}, line {number} needs a 'prompt', a text or a list of messages; found {found}.")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no prompts; an evaluation needs at least one.")
    return Dataset.from_list(rows)


TASKS: dict[str, TaskEntry] = {
    "embedded_math": TaskEntry(
        "generated word problems", _embedded_math, ("train", "validation", "test"), embedded_math.BASE_DIR
    ),
    "embedded_chains": TaskEntry(
        "generated word problems of five to nine steps",
        _embedded_chains,
        ("train", "validation", "test"),
        embedded_chains.BASE_DIR,
    ),
    "embedded_preference": TaskEntry(
        "generated preferences with a gold scorer",
        _embedded_preference,
        ("train", "validation", "test"),
        PREFERENCE_BASE_DIR,
    ),
    "gsm8k": TaskEntry("GSM8K, from the hub or a folder", _gsm8k, ("validation", "test")),
    "math500": TaskEntry("MATH-500, from the hub or a folder", _math500, ("test",)),
    "prompts": TaskEntry("a prompts file scored by a reward model", _prompts, ("validation", "test")),
}


def load_task(name: str, options: TaskOptions | None = None) -> Task:
    """Loads a task by name.

    Args:
        name: One of `TASKS`.
        options: Which problems.

    Returns:
        The task.

    Raises:
        ValueError: For an unknown task or split; those that exist are listed.

    Example:
        >>> task = load_task("embedded_math", TaskOptions(num_problems=2))
        >>> task.score([0], ["I do not know."], [[1]])
        {'gold': [0.0]}
    """
    options = options or TaskOptions()
    if name not in TASKS:
        raise ValueError(f"`task` must be one of {', '.join(TASKS)}; got {name!r}.")
    entry = TASKS[name]
    if options.split not in entry.splits:
        raise ValueError(f"The task {name!r} has the splits {', '.join(entry.splits)}; got {options.split!r}.")
    task = entry.load(options)
    given = {name: getattr(options, name) for name in ("max_new_tokens", "chat_template_kwargs")}
    changes = {name: value for name, value in given.items() if value is not None}
    return replace(task, **changes, _runners={}) if changes else task
