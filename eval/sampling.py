# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Sampling responses to a set of problems, and what each way of choosing among them scores."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from vgf_llm.generation import select
from vgf_llm.models import VGFModel

CheckFn = Callable[[list[str], list[str]], list[float]]
AnswerOf = Callable[[str], str | None]


@dataclass(frozen=True)
class Samples:
    """N responses to each of B problems.

    Attributes:
        correct: `[B, N]`, 0/1 scores.
        values: `[B, N]`, the value of each response; `None` if it was not computed.
        answers: `B` lists of `N` extracted answers, `None` where there is none.
        num_tokens: `[B, N]`, sampled tokens.
        kl: Mean KL to the base per token in nats.
        seconds: Wall time of sampling (and of valuing, where values were asked for).
    """

    correct: Tensor
    values: Tensor | None
    answers: list[list[str | None]]
    num_tokens: Tensor
    kl: float
    seconds: float

    def take(self, n: int) -> "Samples":
        """Returns the first `n` responses of each problem, with their share of the cost."""
        share = n / self.correct.shape[1]
        values = None if self.values is None else self.values[:, :n]
        answers = [row[:n] for row in self.answers]
        return Samples(self.correct[:, :n], values, answers, self.num_tokens[:, :n], self.kl, self.seconds * share)

    def single(self) -> Tensor:
        """Accuracy of one response, per problem `[B]`: the mean over its N responses."""
        return self.correct.mean(dim=-1)

    def best_of_n(self) -> Tensor:
        """Score of the response of highest value, per problem `[B]`."""
        if self.values is None:
            raise ValueError("These samples have no values; sample with `with_values=True`.")
        return self._pick(select(self.values, "value", answers=()))

    def majority(self) -> Tensor:
        """Score of the most frequent answer, per problem `[B]`; ties go to the answer that was drawn first."""
        order = -torch.arange(self.correct.shape[1], dtype=torch.float32).expand_as(self.correct)
        return self._pick(select(order, "majority", answers=self.answers))

    def any_correct(self) -> Tensor:
        """Whether one of the N responses is right, per problem `[B]`: pass@N."""
        return self.correct.amax(dim=-1)

    def _pick(self, chosen: Tensor) -> Tensor:
        return self.correct.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


def sample(
    model: VGFModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    golds: Sequence[str],
    *,
    check: CheckFn,
    answer_of: AnswerOf,
    num_samples: int,
    batch_size: int = 512,
    seed: int = 0,
    with_values: bool = False,
    description: str = "sampling",
    **generate_kwargs: Any,
) -> Samples:
    """Samples `num_samples` responses per problem and scores them.

    Args:
        model: The model.
        tokenizer: Its tokenizer, padding left.
        prompts: Texts, or lists of messages.
        golds: What `check` compares with, one per prompt.
        check: Maps responses and their golds to 0/1 scores.
        answer_of: Extracts a response's answer, for votes.
        num_samples: N.
        batch_size: Rows (responses) per forward.
        seed: Seed of the sampling.
        with_values: Whether responses are valued.
        description: Shown on the progress bar.
        **generate_kwargs: Handed to `VGFModel.generate`.

    Returns:
        `Samples`.
    """
    torch.manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # like lengths together: less padding
    per_batch = max(1, batch_size // num_samples)
    texts: list[list[str]] = [[] for _ in prompts]
    values = torch.zeros(len(prompts), num_samples)
    tokens = torch.zeros(len(prompts), num_samples)
    spent, seconds = 0.0, 0.0
    for start in tqdm(range(0, len(order), per_batch), desc=description, leave=False):
        rows = order[start : start + per_batch]
        batch = _encode(tokenizer, [prompts[i] for i in rows]).to(model.device)
        began = time.perf_counter()
        output = model.generate(
            batch["input_ids"],
            batch["attention_mask"],
            num_particles=num_samples,
            selection="none",
            return_dict_in_generate=with_values,
            **generate_kwargs,
        )
        seconds += time.perf_counter() - began
        sequences = output.sequences if with_values else output
        responses = sequences[:, batch["input_ids"].shape[1] :]
        decoded = tokenizer.batch_decode(responses, skip_special_tokens=True)
        lengths = (responses != tokenizer.pad_token_id).sum(dim=-1).view(-1, num_samples)
        for position, i in enumerate(rows):
            texts[i] = decoded[position * num_samples : (position + 1) * num_samples]
        tokens[rows] = lengths.float().cpu()
        if with_values:
            values[rows] = output.values.float().cpu()
            spent += float(output.kl.sum())
    flat = [text for row in texts for text in row]
    repeated = [gold for gold in golds for _ in range(num_samples)]
    correct = torch.tensor(check(flat, repeated)).view(len(prompts), num_samples)
    answers = [[answer_of(text) for text in row] for row in texts]
    kl = spent / float(tokens.sum()) if with_values else float("nan")
    return Samples(correct, values if with_values else None, answers, tokens, kl, seconds)


def _encode(tokenizer: PreTrainedTokenizerBase, prompts: list[Any]) -> Any:
    if isinstance(prompts[0], str):
        return tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    return tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )
