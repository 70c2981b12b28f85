# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""How well a reward model orders responses: held-out pairs, and the samples of a policy within each prompt."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from reward_models.bradley_terry import pad_responses
from reward_models.pairs import encode_response
from vgf_llm.functional import within_prompt_accuracy
from vgf_llm.models.sequence_value import DifferentiableValue


@torch.inference_mode()
def score_responses(
    value: DifferentiableValue,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    responses: Sequence[Any],
    batch_size: int = 64,
) -> Tensor:
    """Returns the members' values `[R, H]` of R responses, in their order.

    Args:
        value: The reward model as a value.
        tokenizer: Its tokenizer.
        prompts: [R] texts or lists of messages.
        responses: [R] texts or lists of messages.
        batch_size: Responses a forward pass.

    Raises:
        ValueError: A response has no token or is longer than the value's context.
    """
    encoded = [encode_response(tokenizer, p, r) for p, r in zip(prompts, responses, strict=True)]
    order = sorted(range(len(encoded)), key=lambda row: len(encoded[row][0]))
    scores: list[Tensor | None] = [None] * len(encoded)
    device = value.embedding.device
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids, starts = zip(*(encoded[row] for row in rows), strict=True)
        batch = pad_responses(list(ids), list(starts), tokenizer.pad_token_id or 0)
        values = value.from_ids(**{name: tensor.to(device) for name, tensor in batch.items()})
        for row, score in zip(rows, values.cpu(), strict=True):
            scores[row] = score
    return torch.stack([score for score in scores if score is not None])


def pair_accuracy(
    value: DifferentiableValue, tokenizer: PreTrainedTokenizerBase, pairs: Any, batch_size: int = 64
) -> float:
    """Returns how often the ensemble's mean is higher for the chosen response; a tie counts one half.

    Args:
        value: The reward model as a value.
        tokenizer: Its tokenizer.
        pairs: Rows with `prompt`, `chosen` and `rejected`.
        batch_size: Responses a forward pass.
    """
    prompts = list(pairs["prompt"])
    chosen, rejected = (
        value.mean(score_responses(value, tokenizer, prompts, list(pairs[side]), batch_size))
        for side in ("chosen", "rejected")
    )
    return float((chosen > rejected).float().mean() + 0.5 * (chosen == rejected).float().mean())


def policy_accuracy(
    value: DifferentiableValue,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    responses: Sequence[Sequence[Any]],
    rewards: Sequence[Sequence[float]],
    batch_size: int = 64,
) -> float:
    """Returns how often the ensemble's mean orders two samples of one prompt as their true rewards do.

    Args:
        value: The reward model as a value.
        tokenizer: Its tokenizer.
        prompts: `[P]` prompts.
        responses: `[P, N]` samples of the policy, the same number for each prompt.
        rewards: `[P, N]` their true rewards.
        batch_size: Responses a forward pass.

    Raises:
        ValueError: The numbers of samples and rewards differ, or no two rewards of a prompt do.
    """
    counts = {len(samples) for samples in responses} | {len(row) for row in rewards}
    if len(counts) != 1 or not len(prompts) == len(responses) == len(rewards):
        raise ValueError(
            f"Every prompt needs the same number of samples and of rewards; got {len(prompts)} prompts, "
            f"{len(responses)} rows of samples, {len(rewards)} rows of rewards, and rows of {sorted(counts)} entries."
        )
    (count,) = counts
    flat = [prompt for prompt in prompts for _ in range(count)]
    scores = score_responses(value, tokenizer, flat, [text for row in responses for text in row], batch_size)
    right, ordered = within_prompt_accuracy(value.mean(scores).view(-1, count), torch.tensor(rewards))
    if not ordered:
        raise ValueError("No two samples of a prompt differ in their reward, so there is no order to compare with.")
    return float(right / ordered)
