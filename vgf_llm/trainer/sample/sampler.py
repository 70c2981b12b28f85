# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What every source of completions has in common: it is told who samples each row, and never sees the trainer."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Prompt = str | list[dict[str, str]]
# Who draws a completion: the base model, the model behind a log-ratio value, or the transported policy. A group keeps
# the index of each row's sampler.
WHO = ("base", "value", "transport")


@dataclass(frozen=True)
class Request:
    """The prompts of one process, one row per completion, with what makes their seeds.

    Attributes:
        prompts: As the dataset gave them.
        prompt_ids: Token ids without padding; the rows of a group stand together.
        who: Who samples each row, of `WHO`.
        num_generations: Completions of a group, which may be shared by processes.
        first_row: Number of the first row among those of all processes.
        mode: `"train"` or `"eval"`.
        step: The round, or the optimisation step of an evaluation.
        seed: The run's seed.
        rows: The rows of the dataset, where completions are read and not sampled.
    """

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    who: list[str]
    num_generations: int
    first_row: int
    mode: str
    step: int
    seed: int
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Samples:
    """The completions of a request.

    Attributes:
        completion_ids: Token ids without padding, with the end-of-sequence token where there is one.
        finished: Whether each completion ended by itself, and was not cut at the greatest length.
        kl: Mean KL to the base per token, in nats, of the rows that the transported policy sampled.
        prompt_ids: The prompts as the sampler tokenized them, where it did that itself.
        ref_logps: Log-probability of each completion token under the base at temperature 1, where sampling told.
        extra: Further columns for the reward functions.
        present: Which rows are completions; all when left out. The others stand in where a group has fewer, and count
            nowhere.
    """

    completion_ids: list[list[int]]
    finished: list[bool]
    kl: Tensor | None = None
    prompt_ids: list[list[int]] | None = None
    ref_logps: list[list[float]] | None = None
    extra: dict[str, list[Any]] = field(default_factory=dict)
    present: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.present.extend([True] * (len(self.completion_ids) - len(self.present)))


class Sampler:
    """A source of completions, which subclasses are."""

    def __call__(self, request: Request) -> Samples:
        """Samples a completion for every row of a request."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends what runs in the background, if anything does; a call still samples."""
