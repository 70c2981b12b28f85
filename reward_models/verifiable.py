# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Rewards that a program can check: final answers of mathematics problems, their format and their length.

All have the signature of TRL's trainers, `f(prompts=, completions=, completion_ids=, **columns, trainer_state=,
log_extra=, log_metric=)`, and take completions as strings or as lists of messages. `trl.rewards.accuracy_reward` is not
used: it reads conversations alone, needs the answer in LaTeX, has no time limit outside the main thread, and skips a
gold answer that does not parse without a word. The thinking-format, length and repetition rewards are TRL's, with
their arguments checked and both forms of completions taken.
"""

import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Any

from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward

from reward_models import math_worker
from reward_models.answers import MAX_ANSWER_CHARS, extract_answer, extract_expression, normalize_number

logger = logging.getLogger(__name__)

Completion = str | list[dict[str, Any]]
Gold = str | float | None
LogExtra = Callable[[str, list[str]], None]

# An answer that leaves one of these to be worked out repeats the problem, unless the gold answer holds it too.
_OPERATION = re.compile(r"\\(?:i{1,3}nt|oint|sum|prod|lim|lfloor|lceil|max|min|gcd|lcm)(?![a-zA-Z])")
_EQUALS = re.compile(r"=|\\approx|\\simeq|\u2248")
_PERCENT_SIGN = re.compile(r"\\?%")
# What may stand beside the digits of a number with its unit.
_BESIDE_A_NUMBER = re.compile(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[a-zA-Z]+|[a-zA-Z]{3,}")
_HASH_LINE = re.compile(r"####[ \t]*(-?[$]?-?\d[\d,]*(?:\.\d+)?(?:/\d+)?)")


def gsm8k_reward(
    completions: Sequence[Completion],
    answer: Sequence[Gold] | None = None,
    log_extra: LogExtra | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Gives 1 for a completion whose final number equals the gold one and 0 for any other.

    Numbers are compared exactly. Where the number is looked for is written at `extract_answer`; math-verify is not
    needed.

    Args:
        completions: [B] texts, or lists of messages whose last one counts.
        answer: [B] dataset column: gold solutions that end in `#### n`, or the bare numbers, as texts or as numbers.
            None skips a row.
        log_extra: given by the trainer; the extracted answers become a column of the logged completions.
        **kwargs: the other columns and what else the trainer hands over; not used.

    Returns:
        [B] 1.0 or 0.0, None for skipped rows.

    Raises:
        ValueError: the column is missing or of another length, or a gold answer holds no number.
        TypeError: a gold answer is neither a text nor a number.

    Example:
        >>> gsm8k_reward(["48 / 2 = 24\\n#### 24", "I do not know."], answer=["... #### 24", "24"])
        [1.0, 0.0]
    """
    golds = _gold_column("answer", answer, completions, kwargs)
    answers = [extract_answer(completion_text(completion)) for completion in completions]
    _log_answers(log_extra, answers)
    return [
        None if gold is None else float(found == _gold_number(gold)) for found, gold in zip(answers, golds, strict=True)
    ]


def math_reward(
    completions: Sequence[Completion],
    answer: Sequence[Gold] | None = None,
    solution: Sequence[Gold] | None = None,
    log_extra: LogExtra | None = None,
    *,
    timeout_seconds: float = 5.0,
    batch_timeout_seconds: float = 60.0,
    **kwargs: Any,
) -> list[float | None]:
    r"""Gives 1 for a completion whose final expression equals the gold one by math-verify and 0 for any other.

    Every comparison runs in a worker process under a time limit (see `reward_models.math_worker`). An answer that
    does not parse, is longer than 1000 characters or takes too long counts 0, and so does one that leaves an integral,
    a sum or a limit to be worked out. A percent sign is a unit where the prompt asks for a percentage, else a
    hundredth. Where the expression is looked for is written at `extract_expression`.

    Args:
        completions: [B] texts, or lists of messages whose last one counts.
        answer: [B] dataset column: gold expressions in LaTeX, or solutions that name theirs. None skips a row.
        solution: [B] dataset column, read where there is no column `answer`.
        log_extra: given by the trainer; the extracted answers become a column of the logged completions.
        timeout_seconds: limit for one comparison.
        batch_timeout_seconds: limit for all comparisons of a call. A warning counts the rows that were not reached.
        **kwargs: the other columns and what else the trainer hands over; of these, `prompts` are read.

    Returns:
        [B] 1.0 or 0.0, None for skipped rows and for rows that were not reached in time.

    Raises:
        ImportError: math-verify is not installed.
        ValueError: both columns are missing, one is of another length, or a gold answer does not parse in time.
        TypeError: a gold answer is neither a text nor a number.

    Example:
        >>> math_reward([r"So \boxed{\frac{2}{4}}.", r"So \boxed{2}."], answer=[r"\frac{1}{2}", r"\frac{1}{2}"])
        [1.0, 0.0]
    """
    for name, limit in (("timeout_seconds", timeout_seconds), ("batch_timeout_seconds", batch_timeout_seconds)):
        if not limit > 0:
            raise ValueError(f"{name} must be positive; got {limit!r}.")
    column, golds = ("solution", solution) if answer is None and solution is not None else ("answer", answer)
    texts = _gold_column(column, golds, completions, kwargs)
    prompts = kwargs.get("prompts") or [""] * len(completions)
    answers = [extract_expression(completion_text(completion)) for completion in completions]
    _log_answers(log_extra, answers)
    rewards: list[float | None] = []
    deadline = time.monotonic() + batch_timeout_seconds
    late = 0
    for found, gold, prompt in zip(answers, texts, prompts, strict=True):
        expression = None if gold is None else _gold_expression(gold, timeout_seconds)
        if expression is None:
            rewards.append(None)
        elif found is None or len(found) > MAX_ANSWER_CHARS:
            rewards.append(0.0)
        elif (left := min(timeout_seconds, deadline - time.monotonic())) > 0 or found == expression:
            rewards.append(float(_is_equal(found, expression, prompt, left)))
        else:
            rewards.append(None)
            late += 1
    if late:
        logger.warning(
            "math_reward gives no reward to %d of %d completions: comparing the others took `batch_timeout_seconds` "
            "(%g). Raise it, or lower `timeout_seconds` (%g).",
            late,
            len(completions),
            batch_timeout_seconds,
            timeout_seconds,
        )
    return rewards


def _is_equal(found: str, gold: str, prompt: Any, timeout_seconds: float) -> bool:
    """Whether an answer equals the gold one, by text, as numbers or by math-verify."""
    if found == gold:
        return True
    if set(_OPERATION.findall(found)) - set(_OPERATION.findall(gold)):
        return False
    if "%" in found and "%" not in gold:
        number = _PERCENT_SIGN.sub("", found)
        asked = re.search(r"percent|%", prompt if isinstance(prompt, str) else completion_text(prompt), re.IGNORECASE)
        found = number if asked else rf"\frac{{{number}}}{{100}}"
    sides = [Fraction(number) for side in _EQUALS.split(found) if (number := normalize_number(side))]
    if len(sides) > 1 and "=" not in gold:
        # `5 = 7` names two numbers; `1/3 = 0.333` is one number twice.
        exact = "=" in found and not re.search(r"\\approx|\\simeq|\u2248", found)
        if max(sides) - min(sides) > (0 if exact else abs(max(sides, key=abs)) / 100):
            return False
    if not re.search("[a-zA-Z!]", _BESIDE_A_NUMBER.sub("", found)):
        number = normalize_number(found)
        if number is not None and number == normalize_number(gold):
            return True
    return math_worker.compare(gold, found, timeout_seconds) == "correct"


def format_reward(completions: Sequence[Completion], **kwargs: Any) -> list[float]:
    """Gives 1 for a completion that ends as GSM8K's solutions do, in one line `#### n`, and has no other `####`.

    Args:
        completions: [B] texts, or lists of messages whose last one counts.
        **kwargs: the dataset columns and what else the trainer hands over; not used.

    Returns:
        [B] 1.0 or 0.0.

    Example:
        >>> format_reward(["48 / 2 = 24\\n#### 24", "24", "#### 2\\n#### 24", "#### 24\\nDone."])
        [1.0, 0.0, 0.0, 0.0]
    """
    return [float(_ends_in_hash_line(completion_text(completion))) for completion in completions]


def get_length_reward(max_completion_length: int, soft_length: int) -> Callable[..., list[float]]:
    """Makes TRL's soft punishment of overlong completions (DAPO, arXiv 2503.14476, equation 13), its arguments checked.

    Args:
        max_completion_length: tokens from which the reward is -1.
        soft_length: tokens before that over which it falls from 0 to -1.

    Returns:
        A reward function of `completion_ids`.

    Raises:
        ValueError: `soft_length` is not between 1 and `max_completion_length`.

    Example:
        >>> get_length_reward(100, soft_length=20)(completion_ids=[[0] * 80, [0] * 90, [0] * 101])
        [0.0, -0.5, -1.0]
    """
    if not 1 <= soft_length <= max_completion_length:
        raise ValueError(
            f"soft_length must be between 1 and max_completion_length = {max_completion_length}; got {soft_length}."
        )
    return get_soft_overlong_punishment(max_completion_length, soft_length)


def thinking_reward(completions: Sequence[Completion], **kwargs: Any) -> list[float]:
    """Gives 1 for a completion that opens with one `<think>...</think>` block: TRL's `think_format_reward`.

    Args:
        completions: [B] texts, or lists of messages whose last one counts.
        **kwargs: the dataset columns and what else the trainer hands over; not used.

    Returns:
        [B] 1.0 or 0.0.

    Example:
        >>> thinking_reward(["<think>\\n2 + 2\\n</think>\\n4", "4"])
        [1.0, 0.0]
    """
    return think_format_reward([[{"content": completion_text(completion)}] for completion in completions])


def get_repetition_reward(ngram_size: int = 3, max_penalty: float = -1.0) -> Callable[..., list[float]]:
    """Makes TRL's penalty on repeated n-grams of tokens (arXiv 2502.03373, appendix C.2), its arguments checked.

    Args:
        ngram_size: tokens of an n-gram.
        max_penalty: what a completion that only repeats itself approaches; at most 0.

    Returns:
        A reward function of `completion_ids`.

    Raises:
        ValueError: `ngram_size` is below 1, or `max_penalty` above 0.

    Example:
        >>> get_repetition_reward(ngram_size=2)(completion_ids=[[1, 2, 3, 4], [5, 5, 5, 5, 5]])
        [0.0, -0.75]
    """
    if ngram_size < 1:
        raise ValueError(f"ngram_size must be at least 1; got {ngram_size}.")
    if not max_penalty <= 0:
        raise ValueError(f"max_penalty must be at most 0; got {max_penalty}.")
    return get_repetition_penalty_reward(ngram_size, max_penalty)


def completion_text(completion: Completion) -> str:
    """Returns the text of a completion: itself, or the content of its last message.

    Args:
        completion: a string, or messages whose content is a string, a list of parts, or None (a message of tool calls).

    Raises:
        TypeError: it is neither.

    Example:
        >>> completion_text([{"role": "assistant", "content": "#### 24"}])
        '#### 24'
    """
    content: Any = completion
    if isinstance(completion, list) and (not completion or isinstance(completion[-1], dict)):
        content = completion[-1].get("content") if completion else ""
        content = "" if content is None else content
        if isinstance(content, list) and all(isinstance(part, (str, dict)) for part in content):
            content = "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)
    if isinstance(content, str):
        return content
    raise TypeError(
        f"completions must be strings or lists of messages with a 'content'; got {type(completion).__name__}: "
        f"{str(completion)[:200]!r}."
    )


def _gold_column(
    name: str, golds: Sequence[Gold] | None, completions: Sequence[Completion], others: dict[str, Any]
) -> list[str | None]:
    """Checks that the column of gold answers is there and has a row for each completion; returns them as texts."""
    if golds is None:
        raise ValueError(
            f"The reward needs a dataset column {name!r} with the gold answers; the other columns it was given are "
            f"{sorted(others)}. Rename the column that holds them."
        )
    if len(golds) != len(completions):
        raise ValueError(f"The column {name!r} has {len(golds)} rows for {len(completions)} completions.")
    for gold in golds:
        number = isinstance(gold, (Real, Decimal)) and not isinstance(gold, bool)
        if not (gold is None or isinstance(gold, str) or (number and math.isfinite(gold))):  # type: ignore[arg-type]
            error = ValueError if number else TypeError
            raise error(
                f"A gold answer in the column {name!r} is {str(gold)[:200]} ({type(gold).__name__}); a text or a finite "
                "number is expected. Correct the row, or set it to None to skip it."
            )
    return [None if gold is None else str(gold) for gold in golds]


def _gold_number(gold: str) -> str:
    """The number of a gold solution, or of a bare answer."""
    number = extract_answer(gold) if "####" in gold else normalize_number(gold) or extract_answer(gold)
    if number is None or normalize_number(number) is None:
        raise ValueError(
            f"The gold answer {gold[-200:]!r} holds no number. gsm8k_reward reads '#### n' or a bare number; for "
            "expressions use math_reward."
        )
    return number


def _gold_expression(gold: str, timeout_seconds: float) -> str:
    """The expression of a gold solution or of a bare answer, checked to parse."""
    named = extract_expression(gold) if "####" in gold or "\\boxed{" in gold else None
    expression = named or gold.strip()
    verdict = math_worker.compare(expression, None, timeout_seconds)
    if verdict in ("bad_gold", "timeout"):
        problem = "is no expression that math-verify can parse" if verdict == "bad_gold" else "took too long to parse"
        raise ValueError(
            f"The gold answer {gold[-200:]!r} {problem} (limit {timeout_seconds} s). Correct the row, or set it to "
            "None to skip it."
        )
    return expression


def _ends_in_hash_line(text: str) -> bool:
    """Whether a text holds `####` once, in its last line, with a number alone."""
    last_line = text.strip().rpartition("\n")[2].strip()
    return text.count("####") == 1 and _HASH_LINE.fullmatch(last_line) is not None


def _log_answers(log_extra: LogExtra | None, answers: list[str | None]) -> None:
    """Shows the extracted answers in the trainer's table of completions."""
    if log_extra is not None:
        log_extra("extracted_answer", ["[none]" if answer is None else answer for answer in answers])
