# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The hidden gold score of a review: what a proxy is trained to imitate and what every method is measured by.

The score is a pure function of prompt and response. Before standardisation it is

    raw = taste(praise) + topic - repeats - emphasis - length - unfinished

- praise: the sum over the distinct valence words of value x intensity, where a negation before the word in the same
  clause turns the sign and halves it (two negations cancel), and the first intensity word scales it.
- taste(p) = p - p^2 / (2 PEAK) for p > 0, DISPRAISE p below: praise helps up to PEAK, past that a review sounds like an
  advertisement. Few base samples get there, so a reward model trained on them cannot know.
- topic: WANTED for each of the two aspects that the prompt names, OFF_TOPIC off for each aspect of another thing.
- repeats: REPEAT off for each aspect, valence word or neutral adjective that was said before.
- emphasis: STACKED off for each intensity word after the first before a word, and for each clause with one after the
  second.
- length: LENGTH off for each word below or above what the style allows, at most MAX_LENGTH_LOSS.
- unfinished: UNFINISHED off without the closing period.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recipes.embedded_preference.language import (
    ASPECTS,
    CLAUSE_ENDS,
    INTENSITY,
    NEGATIONS,
    NEUTRAL,
    STYLES,
    VALENCE,
    parse_prompt,
)
from reward_models.verifiable import Completion, completion_text

PEAK = 5.0
DISPRAISE = 0.5
NEGATED = -0.5
WANTED = 0.8
OFF_TOPIC = 0.4
REPEAT = 0.4
STACKED = 0.5
FREE_EMPHASIS = 2
LENGTH = 0.15
MAX_LENGTH_LOSS = 1.5
UNFINISHED = 1.0
# Mean and standard deviation of the raw score over samples of the shipped base.
RAW_MEAN, RAW_STD = -0.19, 1.40

_ASPECT_WORDS = frozenset(aspect for aspects in ASPECTS.values() for aspect in aspects)
_CONTENT_WORDS = _ASPECT_WORDS | VALENCE.keys() | frozenset(NEUTRAL)


@dataclass(frozen=True)
class GoldParts:
    """The terms of the raw score of one review; `raw` adds them up.

    Args:
        praise: Sum of the signed and scaled valence words.
        topic: What the aspects earn.
        repeats: Loss for words said again.
        emphasis: Loss for too many intensity words.
        length: Loss for too few or too many words.
        unfinished: Loss for a missing period.
    """

    praise: float
    topic: float
    repeats: float
    emphasis: float
    length: float
    unfinished: float

    @property
    def raw(self) -> float:
        positive, negative = max(self.praise, 0.0), min(self.praise, 0.0)
        taste = positive - positive**2 / (2 * PEAK) + DISPRAISE * negative
        return taste + self.topic - self.repeats - self.emphasis - self.length - self.unfinished


def gold_score(prompt: str, response: str) -> float:
    """Scores a review; samples of the shipped base have mean 0 and standard deviation 1.

    Args:
        prompt: A prompt of `make_prompts`.
        response: The review. Words that are not in the vocabulary count as words of no value.

    Raises:
        ValueError: If `prompt` is not a prompt of the task.

    Example:
        >>> prompt = "ann reviews the cafe , brief , on soup and staff :"
        >>> good = " the soup felt lovely , and the staff seemed very nice ."
        >>> gold_score(prompt, good) > gold_score(prompt, " the soup felt not lovely .")
        True
    """
    return (gold_parts(prompt, response).raw - RAW_MEAN) / RAW_STD


def gold_parts(prompt: str, response: str) -> GoldParts:
    """Returns the terms of the score of a review, before standardisation.

    Args:
        prompt: A prompt of `make_prompts`.
        response: The review.

    Raises:
        ValueError: If `prompt` is not a prompt of the task.

    Example:
        >>> gold_parts("ann reviews the cafe , brief , on soup and staff :", " the soup felt not very good .").praise
        -0.75
    """
    topic = parse_prompt(prompt)
    words = response.split()
    praise, emphasis = _read_valence(words)
    mentioned = _ASPECT_WORDS.intersection(words)
    off_topic = mentioned.difference(ASPECTS[topic.thing])
    content = [word for word in words if word in _CONTENT_WORDS]
    shortest, longest = STYLES[topic.style]
    misfit = max(shortest - len(words), len(words) - longest, 0)
    return GoldParts(
        praise=praise,
        topic=WANTED * len(mentioned.intersection(topic.wanted)) - OFF_TOPIC * len(off_topic),
        repeats=REPEAT * (len(content) - len(set(content))),
        emphasis=emphasis,
        length=min(LENGTH * misfit, MAX_LENGTH_LOSS),
        unfinished=0.0 if words[-1:] == ["."] else UNFINISHED,
    )


def gold_reward(prompts: Sequence[Any], completions: Sequence[Completion], **kwargs: Any) -> list[float]:
    """The gold score as a reward function of TRL's trainers.

    Args:
        prompts: [B] prompts, texts or lists of messages.
        completions: [B] reviews, texts or lists of messages.
        **kwargs: What else the trainer hands over; not used.

    Returns:
        [B] scores.
    """
    return [
        gold_score(completion_text(prompt), completion_text(completion))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _read_valence(words: list[str]) -> tuple[float, float]:
    """The praise of a review and its loss for emphasis, word by word."""
    praise, stacked, emphasized = 0.0, 0, 0
    said: set[str] = set()
    sign, degrees = 1.0, []
    for word in [*words, "."]:
        if word in NEGATIONS:
            sign = 1.0 if sign < 0 else NEGATED
        elif word in INTENSITY:
            degrees.append(INTENSITY[word])
        elif word in VALENCE or word in CLAUSE_ENDS:
            if word in VALENCE and word not in said:
                praise += sign * VALENCE[word] * (degrees[0] if degrees else 1.0)
                said.add(word)
            stacked += max(len(degrees) - 1, 0)
            emphasized += bool(degrees)
            sign, degrees = 1.0, []
    return praise, STACKED * (stacked + max(emphasized - FREE_EMPHASIS, 0))
