# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A small language of reviews: its words, its prompts, and the corpus that the embedded base learned from.

A prompt names a reviewer, a thing, a style and two aspects of the thing:

    ann reviews the cafe , brief , on soup and staff :

A review is clauses about aspects (`the soup seemed not very good`), joined and closed by a period. In the corpus each
writer has a mood, a sense of the topic and habits of his own, drawn independently, so that every ingredient of a good
review is common and all of them together are rare. What good means is in `recipes.embedded_preference.gold`.
"""

import hashlib
import random
from dataclasses import dataclass

from datasets import Dataset

NAMES = ("ann", "ben", "cleo", "dan", "eva", "finn", "gus", "hana")
ASPECTS = {
    "cafe": ("soup", "bread", "coffee", "staff", "tables", "menu"),
    "book": ("plot", "hero", "prose", "cover", "ending", "chapters"),
    "film": ("acting", "music", "script", "camera", "scenes", "cast"),
    "hotel": ("room", "bed", "pool", "lobby", "breakfast", "lift"),
    "phone": ("screen", "battery", "sound", "keys", "case", "speed"),
    "game": ("rules", "board", "pieces", "cards", "levels", "pace"),
    "train": ("seats", "windows", "doors", "aisle", "ticket", "driver"),
    "museum": ("halls", "paintings", "guide", "maps", "statues", "garden"),
}
# The fewest and the most words of a review in each style, punctuation included.
STYLES = {"brief": (8, 13), "medium": (14, 19), "detailed": (20, 26)}
POSITIVE = {
    **dict.fromkeys(("good", "nice", "neat", "pleasant", "fine", "solid"), 1.0),
    **dict.fromkeys(("great", "superb", "lovely", "brilliant", "splendid", "wonderful"), 2.0),
}
NEGATIVE = {
    **dict.fromkeys(("weak", "dull", "poor", "bland", "rough", "odd"), -1.0),
    **dict.fromkeys(("awful", "terrible", "horrid", "dreadful", "nasty", "ghastly"), -2.0),
}
VALENCE = {**POSITIVE, **NEGATIVE}
INTENSITY = {"very": 1.5, "truly": 1.5, "rather": 0.75, "slightly": 0.5}
NEGATIONS = ("not", "never", "hardly")
NEUTRAL = ("big", "small", "old", "new", "plain", "round", "green", "quiet")
DAYS = ("monday", "friday", "sunday")
VERBS = ("felt", "seemed", "looked")
CLAUSE_ENDS = (",", ".", "and", "but")
MAX_WORDS = 30
SPLITS = ("train", "validation", "test")

_ALL_ASPECTS = tuple(aspect for aspects in ASPECTS.values() for aspect in aspects)
_CLAUSES_OF_STYLE = {"brief": (2,), "medium": (3,), "detailed": (4,)}


@dataclass(frozen=True)
class Topic:
    """What a prompt asks for.

    Args:
        name: The reviewer.
        thing: A key of `ASPECTS`.
        style: A key of `STYLES`.
        wanted: Two aspects of the thing.
    """

    name: str
    thing: str
    style: str
    wanted: tuple[str, str]

    @property
    def prompt(self) -> str:
        return f"{self.name} reviews the {self.thing} , {self.style} , on {self.wanted[0]} and {self.wanted[1]} :"


def parse_prompt(prompt: str) -> Topic:
    """Reads a prompt back.

    Args:
        prompt: A text in the form of `Topic.prompt`.

    Raises:
        ValueError: If it has another form.

    Example:
        >>> parse_prompt("ann reviews the cafe , brief , on soup and staff :").wanted
        ('soup', 'staff')
    """
    words = prompt.split()
    if len(words) == 12:
        topic = Topic(words[0], words[3], words[5], (words[8], words[10]))
        if topic.prompt == " ".join(words) and topic.style in STYLES and set(topic.wanted) <= set(_of(topic.thing)):
            return topic
    raise ValueError(
        f"prompt must read '<name> reviews the <thing> , <style> , on <aspect> and <aspect> :' with a thing of "
        f"{sorted(ASPECTS)}, a style of {sorted(STYLES)} and two aspects of that thing; got {prompt!r}."
    )


def vocabulary() -> list[str]:
    """Returns the words of prompts and reviews, fewer than 150."""
    grammar = ("reviews", "the", "on", "i", "found", "we", "came", "it", "is", "and", "but", ",", ".", ":")
    groups = (NAMES, ASPECTS, _ALL_ASPECTS, STYLES, VALENCE, INTENSITY, NEGATIONS, NEUTRAL, DAYS, VERBS, grammar)
    return list(dict.fromkeys(word for group in groups for word in group))


def make_prompts(n: int, seed: int = 0, split: str = "train") -> list[str]:
    """Draws distinct prompts; the split of a prompt follows from a hash of it, so splits share none.

    Args:
        n: Number of prompts; there are about 4600 for training and 580 in each other split.
        seed: Seed of the draw.
        split: `"train"`, `"validation"` or `"test"`.

    Raises:
        ValueError: If `split` is unknown or has fewer than `n` prompts.

    Example:
        >>> make_prompts(1, seed=0)[0].endswith(":")
        True
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    prompts = [topic.prompt for topic in _all_topics() if _split_of(topic.prompt) == split]
    if not 1 <= n <= len(prompts):
        raise ValueError(f"n must be between 1 and {len(prompts)}, the prompts of split {split!r}; got {n}.")
    return random.Random(seed).sample(prompts, n)


def make_corpus(n: int, seed: int = 0) -> Dataset:
    """Generates the corpus of the base: prompts of the train split, each time with a review by another writer.

    Args:
        n: Number of reviews.
        seed: Seed of the generator.

    Returns:
        A dataset with the columns `prompt` and `response`; a response opens with a space.

    Raises:
        ValueError: If `n` is below 1.

    Example:
        >>> make_corpus(2, seed=0).column_names
        ['prompt', 'response']
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    rng = random.Random(seed)
    topics = [topic for topic in _all_topics() if _split_of(topic.prompt) == "train"]
    drawn = rng.choices(topics, k=n)
    return Dataset.from_dict(
        {"prompt": [topic.prompt for topic in drawn], "response": [_write_review(topic, rng) for topic in drawn]}
    )


@dataclass(frozen=True)
class _Writer:
    """One writer's habits: probabilities that hold for a whole review."""

    mood: float
    focus: float
    emphasis: float
    stubbornness: float
    favourite: str

    @classmethod
    def draw(cls, rng: random.Random) -> "_Writer":
        return cls(
            mood=rng.betavariate(1.2, 2.0),
            focus=rng.betavariate(1.5, 1.8),
            emphasis=rng.betavariate(1.2, 3.0),
            stubbornness=rng.betavariate(0.8, 3.0),
            favourite=rng.choice(tuple(VALENCE)),
        )


def _write_review(topic: Topic, rng: random.Random) -> str:
    """Draws a writer and a review of at most `MAX_WORDS` words."""
    writer = _Writer.draw(rng)
    fits = rng.random() < 0.5
    num_clauses = rng.choice(_CLAUSES_OF_STYLE[topic.style] if fits else (1, 2, 3, 4, 5))
    while True:
        words: list[str] = []
        used: list[str] = []
        for index in range(num_clauses):
            if index:
                words += rng.choice(((",", "and"), (",", "but"), (".",), (",",)))
            words += _write_clause(topic, writer, used, rng)
        if len(words) < MAX_WORDS:
            return " " + " ".join([*words, "."])


def _write_clause(topic: Topic, writer: _Writer, used: list[str], rng: random.Random) -> list[str]:
    """One clause; `used` collects its aspect, to come back to."""
    kind = rng.random()
    if kind < 0.12:
        return ["we", "came", "on", rng.choice(DAYS)]
    if used and rng.random() < 0.6 * writer.stubbornness:
        aspect = rng.choice(used)
    elif rng.random() < writer.focus:
        aspect = rng.choice(topic.wanted)
    else:
        aspect = rng.choice(_of(topic.thing) if rng.random() < 0.65 else _ALL_ASPECTS)
    used.append(aspect)
    opening = ["i", "found", "the", aspect] if rng.random() < 0.25 else ["the", aspect, rng.choice(VERBS)]
    if kind < 0.3:
        return [*opening, rng.choice(NEUTRAL)]
    negated = rng.random() < 0.2
    if rng.random() < writer.stubbornness:
        adjective = writer.favourite
    else:
        positive = (rng.random() < writer.mood) != negated
        strong = rng.random() < 0.35
        words = POSITIVE if positive else NEGATIVE
        adjective = rng.choice([word for word, value in words.items() if (abs(value) > 1) == strong])
    degrees = []
    while len(degrees) < 3 and rng.random() < (writer.emphasis if not degrees else 0.15):
        degrees.append(rng.choice(tuple(INTENSITY)))
    return [*opening, *([rng.choice(NEGATIONS)] if negated else []), *degrees, adjective]


def _of(thing: str) -> tuple[str, ...]:
    return ASPECTS.get(thing, ())


def _all_topics() -> list[Topic]:
    return [
        Topic(name, thing, style, (first, second))
        for name in NAMES
        for thing, aspects in ASPECTS.items()
        for style in STYLES
        for first in aspects
        for second in aspects
        if first != second
    ]


def _split_of(prompt: str) -> str:
    bucket = hashlib.sha256(prompt.encode()).digest()[0] % 10
    return {8: "validation", 9: "test"}.get(bucket, "train")
