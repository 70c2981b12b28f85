# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Preference pairs as rounds of training: a pair is a group of two responses with the rewards 1 and 0."""

from typing import TYPE_CHECKING, Any

from datasets import Dataset, IterableDataset
from trl import is_conversational

from vgf_llm.trainer.rollout import Rollout

if TYPE_CHECKING:
    from vgf_llm.trainer.rollout import RolloutEngine

COLUMNS = ("chosen", "rejected")


def has_pairs(dataset: Any) -> bool:
    """Whether a dataset has TRL's columns of preference pairs beside its prompts."""
    if not isinstance(dataset, (Dataset, IterableDataset)):
        return False
    row = next(iter(dataset), None)
    return row is not None and all(name in row for name in COLUMNS)


def preferred(completions: list[Any], preferred: list[float], **kwargs: Any) -> list[float]:
    """The reward of a pair's responses: 1 for the chosen one, 0 for the other."""
    return preferred


def check_pairs(args: Any, rollout_func: Any, eval_dataset: Any) -> None:
    """Refuses settings that pairs leave no room for.

    Raises:
        ValueError: If groups are not of two, something asks for samples, or an evaluation dataset has no pairs.
    """
    parts = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
    if any(part is not None and not has_pairs(part) for part in parts):
        raise ValueError(
            "`eval_dataset` must have the columns 'prompt', 'chosen' and 'rejected', as `train_dataset` has; without "
            "`reward_funcs` nothing else can score its responses."
        )
    sizes = {"num_generations": args.num_generations}
    if args.num_generations_eval is not None:
        sizes["num_generations_eval"] = args.num_generations_eval
    for name, size in sizes.items():
        if size != 2:
            raise ValueError(
                f"`{name}` must be 2 with preference pairs, got {size}: a pair is a group of two responses. Set it to "
                "2, or pass `reward_funcs` to sample responses instead of reading pairs."
            )
    sampled = args.distill_coef > 0 or args.rollout_transport_steps > 0 or args.rollout_prefetch > 0
    if sampled or rollout_func is not None:
        raise ValueError(
            "`distill_coef`, `rollout_transport_steps`, `rollout_prefetch` and `rollout_func` ask for sampled "
            "responses, but preference pairs are read and not sampled. Train the value on pairs first, then pass "
            "`reward_funcs`."
        )


def pair_rollout(engine: "RolloutEngine", inputs: list[dict[str, Any]], first_row: int) -> Rollout:
    """Turns rows of a dataset of pairs, each repeated twice, into chosen and rejected responses in turn.

    Args:
        engine: Tokenizes prompts and responses.
        inputs: Rows with `prompt`, `chosen` and `rejected`.
        first_row: The number of the first row among those of all processes.

    Returns:
        The rollout, with a column `preferred`.

    Raises:
        ValueError: If a response is empty.
    """
    prompts = [row["prompt"] for row in inputs]
    labels = [1.0 - (first_row + index) % 2 for index in range(len(inputs))]
    responses = [row["chosen" if label else "rejected"] for row, label in zip(inputs, labels, strict=True)]
    prompt_ids = engine.tokenize(prompts)
    ids = [_response_ids(engine, *pair) for pair in zip(prompts, responses, prompt_ids, strict=True)]
    return Rollout(prompts, prompt_ids, ids, engine.decode(prompts, ids), extra={"preferred": labels})


def _response_ids(engine: "RolloutEngine", prompt: Any, response: Any, prompt_ids: list[int]) -> list[int]:
    """The tokens of a response, ended where it fits into `max_completion_length`."""
    if is_conversational({"prompt": prompt}):
        messages = response if isinstance(response, list) else [{"role": "assistant", "content": response}]
        text = "".join(str(message["content"]) for message in messages)
    else:
        text = response
    if not text:
        raise ValueError(
            f"A preference pair of the dataset has an empty response (prompt {str(prompt)[:80]!r}); it has no value. "
            "Filter such pairs out."
        )
    ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids or ids[-1] not in engine.eos_token_ids:
        ids = [*ids, engine.tokenizer.eos_token_id]
    return ids[: engine.args.max_completion_length]
