# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What every source of completions has in common: it is told who samples each row, and never sees the trainer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

Prompt = str | list[dict[str, str]]
# Who draws a completion: the base model, the model behind a log-ratio value, or the transported policy. A group keeps
# the index of each row's sampler.
WHO = ("base", "value", "transport")


@dataclass(frozen=True)
class Request:
    """The prompts of one process, one row per completion, with what makes their seeds."""

    prompts: list[Prompt]  # as the dataset gave them
    prompt_ids: list[list[int]]  # token ids without padding; the rows of a group stand together
    who: list[str]  # who samples each row, of `WHO`
    num_generations: int  # completions of a group, which may be shared by processes
    first_row: int  # number of the first row among those of all processes
    mode: str  # `"train"` or `"eval"`
    step: int  # the round, or the optimisation step of an evaluation
    seed: int  # the run's seed
    # The rows of the dataset, where completions are read and not sampled
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def samplers(self) -> list[int]:
        """Who samples each row, by its index in `WHO`."""
        return [WHO.index(who) for who in self.who]


@dataclass(frozen=True)
class Samples:
    """The completions of a request."""

    completion_ids: list[list[int]]  # token ids without padding, with the end-of-sequence token where there is one
    finished: list[bool]  # whether each completion ended by itself, and was not cut at the greatest length
    kl: Tensor | None = None  # mean KL to the base per token, in nats, of the rows that the transported policy sampled
    prompt_ids: list[list[int]] | None = None  # the prompts as the sampler tokenized them, where it did that itself
    # Log-probability of each completion token under the base at temperature 1, where sampling told
    ref_logps: list[list[float]] | None = None
    extra: dict[str, list[Any]] = field(default_factory=dict)  # further columns for the reward functions
    # Which rows are completions; all when left out. The others stand in where a group has fewer, and count nowhere.
    present: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.present.extend([True] * (len(self.completion_ids) - len(self.present)))


class Sampler:
    """A source of completions, which subclasses are."""

    def __call__(self, request: Request) -> Samples:
        """Samples a completion for every row of a request."""
        raise NotImplementedError

    def prepare(self, request: Request) -> Callable[[], Samples]:
        """Returns the call that samples a request with the weights of this moment, whenever it is made."""
        return partial(self, request)

    def close(self) -> None:
        """Ends what runs in the background, if anything does; a call still samples."""
