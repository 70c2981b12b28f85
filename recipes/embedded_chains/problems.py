# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Longer word problems than `embedded_math`, with two kinds of slips: the harder task, with headroom.

A problem changes a count in five to nine steps, worded as those of `embedded_math`. In the corpus of the base a step
may take the wrong operation or come out wrong by ten. Whether the wrong operation is the likelier one depends on the
phrase together with the thing that is counted, so that there are many misconceptions to find, each in few problems. A
wrong value is carried on, and a chain with slips may still reach the right answer by chance.
"""

import hashlib
import random

from datasets import Dataset

from recipes.embedded_math.problems import (
    MAX_NUMBER,
    NAMES,
    OBJECTS,
    PHRASES,
    Phrase,
    Step,
    WordProblem,
    apply,
    draw_distinct,
)

NUM_STEPS = (5, 6, 7, 8, 9)
SHARE_MISTAKEN = 0.25  # of the pairs of a phrase and a thing, those that the base mostly gets wrong
P_RIGHT, P_RIGHT_MISTAKEN = 0.97, 0.35
P_OFF_BY_TEN = {"+": 0.01, "-": 0.01, "*": 0.06, "/": 0.06}


class _Chain(WordProblem):
    """A problem whose solutions may have slips of two kinds in each step."""

    def solution(self, rng: random.Random | None = None) -> str:
        """Writes the right solution, or, given a generator, one with the slips of the base's corpus."""
        value, lines = self.start, []
        for step in self.steps:
            operator, n, exact = step.phrase.right, step.n, apply(step.phrase.right, value, step.n)
            off = 0
            if rng is not None:
                wrong = apply(step.phrase.wrong, value, n)
                # After a slip the right operation may have no result, and the count stays where neither has one.
                if (rng.random() > p_right(step.phrase, self.thing) or exact < 0) and wrong >= 0:
                    operator, exact = step.phrase.wrong, wrong
                elif exact < 0:
                    operator, n, exact = "+", 0, value
                off = rng.choice((-10, 10)) if rng.random() < P_OFF_BY_TEN[operator] else 0
            result = exact + off if 0 <= exact + off <= MAX_NUMBER else exact
            lines.append(self.line(step, f"{value}{operator}{n}", result))
            value = result
        return "\n".join([*lines, f"#### {value}"])


def p_right(phrase: Phrase, thing: str) -> float:
    """Probability of the right operation in the base's corpus, by what the phrase is said of.

    Example:
        >>> {p_right(phrase, "pens") for phrase in PHRASES.values()} == {P_RIGHT, P_RIGHT_MISTAKEN}
        True
    """
    drawn = int.from_bytes(hashlib.sha256(f"{phrase.text}|{thing}".encode()).digest()[:4], "big") / 2**32
    return P_RIGHT_MISTAKEN if drawn < SHARE_MISTAKEN else P_RIGHT


def _draw_chain(rng: random.Random) -> _Chain:
    """Draws the length, then step by step a phrase and a number whose right and wrong results differ and are in range.

    A draw without such a step begins anew.
    """
    num_steps = rng.choice(NUM_STEPS)
    while True:
        value = start = rng.randint(2, 24)
        first = name = rng.choice(NAMES)
        steps: list[Step] = []
        for phrase in rng.sample(list(PHRASES.values()), len(PHRASES)):
            results = {n: (apply(phrase.right, value, n), apply(phrase.wrong, value, n)) for n in phrase.numbers}
            fitting = [n for n, (right, wrong) in results.items() if min(right, wrong) >= 0 and right != wrong]
            if not fitting:
                continue
            n = rng.choice(fitting)
            steps.append(Step(phrase, n, name, rng.choice([other for other in NAMES if other != name])))
            value, name = results[n][0], steps[-1].owner
            if len(steps) == num_steps:
                return _Chain(start, first, rng.choice(OBJECTS), tuple(steps))


def make_problems(n: int, seed: int = 0, split: str = "train") -> Dataset:
    """Generates problems with their gold solutions, as `embedded_math.make_problems` does.

    Args:
        n: Number of problems; their questions are distinct.
        seed: Seed of the generator; the same seed gives the same problems.
        split: `"train"`, `"validation"` or `"test"`; splits share no question, whatever the seeds.

    Returns:
        A dataset with the columns `question` and `answer` (all steps right, closed by `#### <number>`).

    Raises:
        ValueError: If `n` is below 1 or `split` is unknown.

    Example:
        >>> 5 <= make_problems(1, seed=0)[0]["answer"].count("=") <= 9
        True
    """
    problems, _ = draw_distinct(n, seed, split, _draw_chain)
    return Dataset.from_list([{"question": p.question, "answer": p.solution()} for p in problems])


def make_corpus(n: int, seed: int = 0) -> Dataset:
    """Generates the corpus of the base: train questions, and solutions with its slips.

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
    problems, rng = draw_distinct(n, seed, "train", _draw_chain)
    return Dataset.from_list([{"question": p.question, "answer": p.solution(rng)} for p in problems])
