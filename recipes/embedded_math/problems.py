# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Generated word problems in GSM8K's format, and the partly wrong solutions that the embedded base learned from.

A problem starts from a count and changes it in two to four steps. Each step is worded by one of the `PHRASES`, and each
phrase has one right operation and one plausible wrong one. In the corpus of the base a step is right with the
probability of its phrase; for some phrases that is below one half, so the most likely solution is wrong there, and
neither greedy decoding nor a majority vote repairs it. A wrong value is carried on, so one slip spoils the answer.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from datasets import Dataset

MAX_NUMBER = 60
SPLITS = ("train", "validation", "test")
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana")
OBJECTS = ("apples", "books", "cards", "coins", "marbles", "pens", "shells", "stickers")
NUM_STEPS = (2, 3, 4)
_MAX_REDRAWS = 100


@dataclass(frozen=True)
class Phrase:
    """One way to word a step: `{name}` has `x` things, and `n` is the number in the text.

    Args:
        text: Template with `{name}`, `{friend}`, `{thing}` and `{n}`.
        right: The operation on `x` and `n` that the text asks for: `+`, `-`, `*` or `/`.
        wrong: The operation that the base mistakes it for.
        p_right: Probability of the right operation in the base's corpus.
        numbers: Values that `n` may take.
        passes_on: Whether the count of the next step belongs to `{friend}`.
    """

    text: str
    right: str
    wrong: str
    p_right: float
    numbers: tuple[int, ...]
    passes_on: bool = False


_SMALL = (2, 3, 4, 5)
_MEDIUM = tuple(range(2, 16))
PHRASES = {
    "buys": Phrase("{name} buys {n} more.", "+", "-", 0.9, _MEDIUM),
    "gives": Phrase("{name} gives {n} of them to {friend}.", "-", "+", 0.85, _MEDIUM),
    "loses": Phrase("{name} loses {n} of them.", "-", "+", 0.8, _MEDIUM),
    "returns": Phrase("{friend} gives back {n} to {name}.", "+", "-", 0.8, _MEDIUM),
    "doubles": Phrase("{name} doubles the number of {thing}.", "*", "+", 0.85, (2,)),
    "multiplies": Phrase("{name} trades each one for {n} others.", "*", "-", 0.7, _SMALL),
    "times_as_many": Phrase("{friend} has {n} times as many.", "*", "+", 0.25, _SMALL, True),
    "half": Phrase("{name} sells half of them.", "/", "-", 0.8, (2,)),
    "shares": Phrase("{name} shares them equally with others, {n} people in all.", "/", "-", 0.3, _SMALL),
    "groups": Phrase("{name} trades every {n} of them for one new one.", "/", "-", 0.75, _SMALL),
    "more_than": Phrase("{friend} has {n} more than {name}.", "+", "*", 0.8, _SMALL, True),
    "fewer_than": Phrase("{friend} has {n} fewer than {name}.", "-", "+", 0.85, _MEDIUM, True),
    "is_more_than": Phrase("That is {n} more than {friend} has.", "-", "+", 0.2, _MEDIUM, True),
    "is_fewer_than": Phrase("That is {n} fewer than {friend} has.", "+", "-", 0.6, _MEDIUM, True),
}


@dataclass(frozen=True)
class Step:
    """A drawn step: its phrase, the number in it, and who owns the count before and after it."""

    phrase: Phrase
    n: int
    name: str
    friend: str

    @property
    def owner(self) -> str:
        return self.friend if self.phrase.passes_on else self.name


@dataclass(frozen=True)
class WordProblem:
    """A start count, the owner of it, the kind of thing, and the steps."""

    start: int
    name: str
    thing: str
    steps: tuple[Step, ...]

    @property
    def question(self) -> str:
        sentences = [f"{self.name} has {self.start} {self.thing}."]
        for step in self.steps:
            sentences.append(step.phrase.text.format(name=step.name, friend=step.friend, thing=self.thing, n=step.n))
        sentences.append(f"How many {self.thing} does {self.steps[-1].owner} have now?")
        return " ".join(sentences)

    def line(self, step: Step, calculation: str, result: int) -> str:
        """Writes a step of a solution."""
        return f"{step.owner} has <<{calculation}={result}>>{result} {self.thing}."


class _Problem(WordProblem):
    """A problem whose solutions have one slip or none in each step."""

    def solution(self, rights: list[bool]) -> str:
        """Writes the solution in which step i uses its right operation where `rights[i]` holds."""
        value, lines = self.start, []
        for step, right in zip(self.steps, rights, strict=True):
            operator = step.phrase.right if right else step.phrase.wrong
            result = apply(operator, value, step.n)
            lines.append(self.line(step, f"{value}{operator}{step.n}", result))
            value = result
        return "\n".join([*lines, f"#### {value}"])


P = TypeVar("P", bound=WordProblem)


@cache
def apply(operator: str, x: int, n: int) -> int:
    """Returns `x operator n`, or -1 where that is no whole number from 0 to `MAX_NUMBER`."""
    result = {"+": x + n, "-": x - n, "*": x * n, "/": x // n if x % n == 0 else -1}[operator]
    return result if 0 <= result <= MAX_NUMBER else -1


def _draw_start_and_numbers(phrases: list[Phrase], rng: random.Random) -> tuple[int, list[int]] | None:
    """Draws numbers for which every mix of right and wrong steps stays in range and only the right one is correct."""
    for _ in range(_MAX_REDRAWS):
        start, numbers = rng.randint(2, 24), [rng.choice(phrase.numbers) for phrase in phrases]
        values = [start]  # of all mixes of right and wrong steps, the all-right one in front
        for phrase, n in zip(phrases, numbers, strict=True):
            values = [apply(operator, x, n) for operator in (phrase.right, phrase.wrong) for x in values]
            if -1 in values:
                break
        else:
            if values[0] not in values[1:]:
                return start, numbers
    return None


def _draw_problem(rng: random.Random) -> _Problem:
    """Draws the length first, then the phrases, then numbers that fit them, so that no length or phrase starves."""
    num_steps = rng.choice(NUM_STEPS)
    while True:
        phrases = rng.sample(list(PHRASES.values()), num_steps)
        drawn = _draw_start_and_numbers(phrases, rng)
        if drawn is None:
            continue
        start, numbers = drawn
        first = name = rng.choice(NAMES)
        steps = []
        for phrase, n in zip(phrases, numbers, strict=True):
            friend = rng.choice([other for other in NAMES if other != name])
            steps.append(Step(phrase, n, name, friend))
            name = steps[-1].owner
        return _Problem(start, first, rng.choice(OBJECTS), tuple(steps))


def _split_of(question: str) -> str:
    bucket = hashlib.sha256(question.encode()).digest()[0] % 10
    return {8: "validation", 9: "test"}.get(bucket, "train")


def draw_distinct(n: int, seed: int, split: str, draw: Callable[[random.Random], P]) -> tuple[list[P], random.Random]:
    """Draws `n` problems of a split with distinct questions; returns the generator too, to go on drawing from it.

    Raises:
        ValueError: If `n` is below 1 or `split` is unknown.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    rng = random.Random(seed)
    problems: dict[str, P] = {}
    while len(problems) < n:
        problem = draw(rng)
        if _split_of(problem.question) == split:
            problems.setdefault(problem.question, problem)
    return list(problems.values()), rng


def make_problems(n: int, seed: int = 0, split: str = "train") -> Dataset:
    """Generates problems with their gold solutions, in the columns of `openai/gsm8k`.

    The split of a problem follows from a hash of its question, so splits share no question, whatever the seeds.

    Args:
        n: Number of problems; their questions are distinct.
        seed: Seed of the generator; the same seed gives the same problems.
        split: `"train"`, `"validation"` or `"test"`.

    Returns:
        A dataset with the columns `question` and `answer` (all steps right, closed by `#### <number>`).

    Raises:
        ValueError: If `n` is below 1 or `split` is unknown.

    Example:
        >>> problem = make_problems(1, seed=0)[0]
        >>> print(problem["answer"].splitlines()[-1])  # doctest: +ELLIPSIS
        #### ...
    """
    problems, _ = draw_distinct(n, seed, split, _draw_problem)
    rows = [{"question": p.question, "answer": p.solution([True] * len(p.steps))} for p in problems]
    return Dataset.from_list(rows)


def make_corpus(n: int, seed: int = 0) -> Dataset:
    """Generates the corpus of the base: train questions, and solutions that are right only at their phrases' rates.

    Args:
        n: Number of problems, each with one solution.
        seed: Seed of the generator.

    Returns:
        A dataset with the columns `question` and `answer`.

    Raises:
        ValueError: If `n` is below 1.

    Example:
        >>> make_corpus(2, seed=0).column_names
        ['question', 'answer']
    """
    problems, rng = draw_distinct(n, seed, "train", _draw_problem)
    rows = []
    for problem in problems:
        rights = [rng.random() < step.phrase.p_right for step in problem.steps]
        rows.append({"question": problem.question, "answer": problem.solution(rights)})
    return Dataset.from_list(rows)
