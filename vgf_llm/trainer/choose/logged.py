# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Logged completions as rounds of training: what a dataset holds of responses and rewards, in the place of samples.

They come in TRL's formats, texts or conversations. Rows of `prompt`, `completion` and `reward` (or `label`) are grouped
by prompt; a preference pair is a group of two with the rewards 1 and 0. Groups are made and tokenized once, before
training starts.
"""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl import apply_chat_template, is_conversational, maybe_extract_prompt

from vgf_llm.trainer.choose.prompts import (
    check_chat_template,
    check_dataset,
    plain_messages,
    problem_of_messages,
    tokenize_prompts,
    wrong_row,
)
from vgf_llm.trainer.keep.buffer import RolloutGroup
from vgf_llm.trainer.keep.outcomes import PromptOutcomes

logger = logging.getLogger(__name__)

PAIR = ("chosen", "rejected")
# What a group is once it is tokenized.
GROUP_COLUMNS = ("prompt", "prompt_ids", "completion_ids", "rewards")
# Rows of a stream among which those of one prompt are looked for.
_STREAMED_ROWS = 1000


def logged_kind(dataset: Any) -> str | None:
    """Names what a dataset has logged: `"pairs"`, `"completions"` or `None`; raises ValueError for both.

    Example:
        >>> logged_kind(Dataset.from_dict({"prompt": ["a"], "completion": ["b"], "reward": [0.5]}))
        'completions'
    """
    if not isinstance(dataset, (Dataset, IterableDataset)):
        return None
    columns = _columns(dataset)
    pairs, completions = all(name in columns for name in PAIR), "completion" in columns
    if pairs and completions:
        raise ValueError(
            "The dataset has the columns 'chosen' and 'rejected' beside 'completion': preference pairs and single "
            "completions are read in different ways. Remove the columns of one, e.g. with `dataset.remove_columns`."
        )
    return "pairs" if pairs else "completions" if completions else None


def logged_reward(completions: list[Any], logged_reward: list[float], **kwargs: Any) -> list[float]:
    """The reward that a dataset has for each of its completions."""
    return logged_reward


def check_logged(args: Any, kind: str, rollout_func: Any) -> None:
    """Raises ValueError for settings that completions of a kind that `logged_kind` returned leave no room for."""
    sizes = {"num_generations": args.num_generations}
    if args.num_generations_eval is not None:
        sizes["num_generations_eval"] = args.num_generations_eval
    for name, size in sizes.items():
        if kind == "pairs" and size != 2:
            raise ValueError(
                f"`{name}` must be 2 with preference pairs, got {size}: a pair is a group of two responses. Set it to "
                "2, or pass `reward_funcs` to sample responses instead of reading pairs."
            )
    asks = {
        "distill_coef": args.distill_coef > 0,
        "rollout_policy": args.rollout_policy in ("value", "transport"),
        "num_base_generations": args.num_base_generations is not None,
        "rollout_prefetch": args.rollout_prefetch > 0,
        "use_vllm": args.use_vllm,
        "prompt_selection": args.prompt_selection != "dataset",
        "rollout_func": rollout_func is not None,
    }
    found = [f"`{name}`" for name, asked in asks.items() if asked]
    if found:
        raise ValueError(
            "Without `reward_funcs` the completions of `train_dataset` are read and not sampled, which is asked for by "
            f"{', '.join(found)}. Leave that out, or train the value on logged completions first and pass "
            "`reward_funcs` then."
        )


def grouped(dataset: Any, size: int, name: str = "train_dataset") -> Any:
    """Makes groups of the logged completions of each prompt.

    More than `size` completions of a prompt are dealt out to several groups, of sizes that differ by one at most, with
    high and low rewards in each. Of a stream, the rows of a prompt are looked for among 1000 rows at a time.
    Completions without a reward (`None` or NaN) are left out, and a warning counts them.

    The groups have the columns `prompt`, `completions`, `rewards` and `whole`: whether the group is nothing without one
    of its completions, as a pair is. What `tokenized` returned, and what is no dataset, is passed through; errors call
    the dataset `name`.

    Example:
        >>> rows = {"prompt": ["a", "b", "a"], "completion": ["x", "y", "z"], "label": [True, False, False]}
        >>> grouped(Dataset.from_dict(rows), size=2)[0]
        {'prompt': 'a', 'completions': ['x', 'z'], 'rewards': [1.0, 0.0], 'whole': False}
    """
    if isinstance(dataset, Mapping):
        return {key: grouped(part, size, f"{name}[{key!r}]") for key, part in dataset.items()}
    if not isinstance(dataset, (Dataset, IterableDataset)):
        return dataset
    columns, kind = _columns(dataset), logged_kind(dataset)
    if set(GROUP_COLUMNS) <= set(columns):
        return dataset
    if kind is None:
        raise ValueError(
            f"`{name}` must have the columns 'prompt', 'completion' and 'reward' (or 'label'), or 'prompt', 'chosen' "
            "and 'rejected', as `train_dataset` has; without `reward_funcs` nothing else can score its responses."
        )
    if kind == "pairs":
        return dataset.map(_pair_group, with_indices=True, remove_columns=columns)
    check_dataset(dataset, name)
    given = [column for column in ("reward", "label") if column in columns]
    if len(given) != 1:
        found = "both `reward` and `label`" if given else "neither `reward` (a number) nor `label` (true or false)"
        raise ValueError(
            f"`{name}` has completions and {found}, and without `reward_funcs` one of them has to score each "
            f"completion. Its columns are {sorted(columns)}."
        )

    return _group_by_prompt(dataset, given[0], size, name)


def _group_by_prompt(dataset: Any, column: str, size: int, name: str) -> Any:
    """Groups rows of `prompt`, `completion` and the column of rewards."""

    def group(rows: dict[str, list], rewards: list[float], numbers: list[int]) -> dict[str, Any]:
        pairs = zip(rows["prompt"], rows["completion"], numbers, strict=True)
        completions = [_completion(prompt, completion, row, f"`{name}`") for prompt, completion, row in pairs]
        return {"prompt": rows["prompt"][0], "completions": completions, "rewards": rewards, "whole": False}

    if isinstance(dataset, IterableDataset):

        def groups_of(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
            rewards, made = _rewards(batch[column], column, numbers, name), []
            for places in _places(batch["prompt"], rewards, size):
                rows = {key: [batch[key][place] for place in places] for key in ("prompt", "completion")}
                made.append(group(rows, [rewards[place] for place in places], [numbers[place] for place in places]))
            return {key: [one[key] for one in made] for key in ("prompt", "completions", "rewards", "whole")}

        options = {"batched": True, "batch_size": _STREAMED_ROWS, "with_indices": True}
        return dataset.map(groups_of, remove_columns=_columns(dataset), **options)
    plain = dataset.with_format(None).select_columns(["prompt", "completion", column])
    rewards = _rewards(plain[column], column, range(len(plain)), name)
    every = _places(plain["prompt"], rewards, size)
    if not every:
        raise ValueError(f"No row of `{name}` has a `{column}`: all {len(plain)} are None or NaN.")
    largest = max(2, *map(len, every))
    if largest < size and PartialState().is_main_process:
        logger.warning(
            "No prompt of `%s` has more than %d completions, and groups have room for %d. Rounds are fuller with "
            "`num_generations=%d`.",
            name, largest, size, largest,
        )  # fmt: skip
    return Dataset.from_dict({"places": every}).map(
        lambda places: group(plain[places], [rewards[place] for place in places], places),
        input_columns="places",
        remove_columns="places",
        desc=f"Grouping {name}",
    )


def _columns(dataset: Dataset | IterableDataset) -> list[str]:
    return list(next(iter(dataset), {}) if isinstance(dataset, IterableDataset) else dataset.column_names)


def _rewards(values: Iterable[Any], column: str, rows: Sequence[int], name: str) -> list[float]:
    """The rewards of rows, NaN for those without."""
    rewards = []
    for value, row in zip(values, rows, strict=True):
        if value is not None and not isinstance(value, Real):
            raise wrong_row(row, f"`{name}`", f"`{column}` must be a number", value)
        reward = math.nan if value is None else float(value)
        if math.isinf(reward) or (column == "label" and reward not in (0, 1) and not math.isnan(reward)):
            allowed = "true or false" if column == "label" else "finite"
            raise ValueError(f"Row {row} of `{name}`: `{column}` must be {allowed}, got {value}.")
        rewards.append(reward)
    unscored = sum(map(math.isnan, rewards))
    if unscored and PartialState().is_main_process:
        logger.warning(
            "%d of %d completions of `%s` are left out: their `%s` is None or NaN.",
            unscored, len(rewards), name, column,
        )  # fmt: skip
    return rewards


def _places(prompts: Iterable[Any], rewards: Sequence[float], size: int) -> list[list[int]]:
    """The places of each group's rows, in the order in which prompts first come."""
    of_prompt: dict[str, list[int]] = defaultdict(list)
    for place, (prompt, reward) in enumerate(zip(prompts, rewards, strict=True)):
        if not math.isnan(reward):
            of_prompt[prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)].append(place)
    groups = []
    for places in of_prompt.values():
        count = math.ceil(len(places) / size)
        # Dealt out in the order of rewards, so that every group can compare.
        dealt = sorted(places, key=lambda place: rewards[place]) if count > 1 else places
        groups += [sorted(dealt[start::count]) for start in range(count)]
    return groups


def _completion(prompt: Any, completion: Any, row: int, where: str) -> Any:
    """A completion of its prompt's format: a text, or messages."""
    if isinstance(prompt, list) and isinstance(completion, str):
        return [{"role": "assistant", "content": completion}]
    if isinstance(prompt, str):
        problem = None if isinstance(completion, str) else "`completion` must be a text, as the prompt is"
    else:
        problem = problem_of_messages(completion, "completion")
    if problem:
        raise wrong_row(row, where, problem, completion)
    return completion


def _pair_group(row: dict[str, Any], index: int) -> dict[str, Any]:
    """A preference pair; without a prompt, the one that both responses begin with, as in TRL."""
    pair = {name: row[name] for name in ("prompt", *PAIR) if row.get(name) is not None}
    for name, part in pair.items():
        problem = None if isinstance(part, str) or (not part and name in PAIR) else problem_of_messages(part, name)
        if problem:
            raise wrong_row(index, "the preference pairs", problem, part)
    for name in PAIR:
        response = pair.get(name)
        if isinstance(response, str) and is_conversational({"prompt": pair.get("prompt")}):
            response = pair[name] = [{"role": "assistant", "content": response}]
        messages = plain_messages(response) if isinstance(response, list) else [{"content": response}]
        if not any(message.get("content") for message in messages):
            raise ValueError(
                f"Row {index} of the preference pairs has an empty response, `{name}` (prompt "
                f"{str(pair.get('prompt'))[:80]!r}); it has no value. Filter such pairs out."
            )
    pair = maybe_extract_prompt(pair)
    if not pair["prompt"]:
        raise ValueError(
            f"Row {index} of the preference pairs has no prompt and its responses begin with nothing in common: "
            f"{str(pair)[:200]}. Add a column `prompt`, or filter such pairs out."
        )
    completions = [pair[name] for name in PAIR]
    return {"prompt": pair["prompt"], "completions": completions, "rewards": [1.0, 0.0], "whole": True}


def tokenized(
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    eos_token_ids: Collection[int],
    max_completion_length: int | None,
    max_prompt_length: int | None,
    chat_template_kwargs: dict[str, Any],
    name: str = "train_dataset",
) -> Any:
    """Tokenizes what `grouped` returned to `GROUP_COLUMNS`, and leaves out completions and prompts that are too long.

    Conversations go through the tokenizer's chat template. A completion without a token of `eos_token_ids` gets one.
    What was left out is counted in a warning; of a stream the first is told. Raises ValueError if nothing is left.
    """
    if isinstance(dataset, Mapping):
        of_part = partial(
            tokenized,
            tokenizer=tokenizer,
            eos_token_ids=eos_token_ids,
            max_completion_length=max_completion_length,
            max_prompt_length=max_prompt_length,
            chat_template_kwargs=chat_template_kwargs,
        )
        return {key: of_part(part, name=f"{name}[{key!r}]") for key, part in dataset.items()}
    if dataset is None or "completion_ids" in _columns(dataset):
        return dataset
    streamed, told = isinstance(dataset, IterableDataset), False
    limits = f"are longer than `max_completion_length` ({max_completion_length})"
    if max_prompt_length is not None:
        limits += (
            f", or have a prompt longer than the {max_prompt_length} tokens that the model's context leaves for it"
        )

    def encode(group: dict[str, Any]) -> dict[str, Any]:
        nonlocal told
        prompt_ids, ids = _encode(group, tokenizer, list(eos_token_ids), chat_template_kwargs)
        fits = [max_completion_length is None or len(row) <= max_completion_length for row in ids]
        too_long = max_prompt_length is not None and len(prompt_ids) > max_prompt_length
        if too_long or (group["whole"] and not all(fits)):
            fits = [False] * len(ids)
        if streamed and not told and not all(fits):
            told = True
            logger.warning("Completions of the stream `%s` are left out, those that %s.", name, limits)
        kept = [row for row, fit in enumerate(fits) if fit]
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": [ids[row] for row in kept],
            "rewards": [group["rewards"][row] for row in kept],
        }

    removed = ["completions", "whole"]
    if streamed:
        return dataset.map(encode, remove_columns=removed).filter(_is_group)
    with PartialState().main_process_first():  # the others find what it has cached
        encoded = dataset.map(encode, remove_columns=removed, desc=f"Tokenizing the completions of {name}")
        kept = encoded.filter(_is_group, desc=f"Leaving out long completions of {name}")
    before, after = (sum(map(len, rows["rewards"])) for rows in (dataset, kept))
    if after == 0:
        raise ValueError(f"All {before} completions of `{name}` {limits}. Raise `max_completion_length`.")
    if after < before and PartialState().is_main_process:
        logger.warning(
            "%d of the %d completions of `%s` are left out: those that %s, and the other responses of their pairs. "
            "Raise `max_completion_length` to keep completions whole.",
            before - after, before, name, limits,
        )  # fmt: skip
    return kept


def _is_group(group: dict[str, Any]) -> bool:
    return len(group["rewards"]) > 0


def _encode(
    group: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    eos_token_ids: list[int],
    template_kwargs: dict[str, Any],
) -> tuple[list[int], list[list[int]]]:
    """Tokenizes a group as a policy samples: texts apart, and conversations as they are rendered."""
    prompt, completions = group["prompt"], group["completions"]
    if isinstance(prompt, list):
        check_chat_template(tokenizer, template_kwargs)
        try:
            rendered = [
                apply_chat_template(
                    {"prompt": plain_messages(prompt), "completion": plain_messages(completion)},
                    tokenizer,
                    **template_kwargs,
                )
                for completion in completions
            ]
        except (ValueError, TemplateError) as error:  # TRL knows few roles for the last message, a template its own
            raise ValueError(
                f"A prompt of logged completions cannot be written as the chat template wants it ({error}): "
                f"{str(group)[:200]}. Correct the roles, or filter such rows out."
            ) from error
        # A template may write more behind the prompt than is in front of every completion.
        start = min((texts["prompt"] for texts in rendered), key=len)
        texts = [(texts["prompt"] + texts["completion"])[len(start) :] for texts in rendered]
        prompt_ids = tokenizer(start, add_special_tokens=False)["input_ids"]
        wholes = tokenizer([start + text for text in texts], add_special_tokens=False)["input_ids"]
    else:
        texts, prompt_ids = completions, tokenize_prompts([prompt], tokenizer)[0]
        wholes = [[] for _ in texts]
    if not prompt_ids:
        raise ValueError(
            f"A prompt of logged completions has no tokens, so nothing can follow it: {str(group)[:200]}. Filter such "
            "rows out."
        )
    ids = []
    for text, whole in zip(texts, wholes, strict=True):
        if whole[: len(prompt_ids)] == prompt_ids:
            own = whole[len(prompt_ids) :]
        else:  # a text, or a token that would reach over the prompt's end
            own = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids.append(_ended(own, tokenizer, eos_token_ids))
    return prompt_ids, ids


def _ended(ids: list[int], tokenizer: PreTrainedTokenizerBase, eos_token_ids: list[int]) -> list[int]:
    """Ends a response with an end-of-sequence token; blanks that a template writes behind it are cut."""
    last = max((index for index, token in enumerate(ids) if token in eos_token_ids), default=None)
    if last is not None and not tokenizer.decode(ids[last + 1 :]).strip():
        return ids[: last + 1]
    return [*ids, tokenizer.eos_token_id]


def logged_outcomes(dataset: Any, objective: Any) -> PromptOutcomes:
    """Returns what rewards each prompt has, and lets all rewards decide the loss; of a stream nothing is known ahead.

    A warning counts the completions that teach the value nothing. Raises ValueError if none teaches it anything.
    """
    outcomes = PromptOutcomes()
    if not isinstance(dataset, Dataset):
        return outcomes
    for group in _groups(dataset):
        outcomes.record(group.prompt_ids, group.rewards)
    objective.observe(torch.tensor([reward for rewards in dataset["rewards"] for reward in rewards]))
    sizes = [(len(group), bool(objective.learns(group, outcomes))) for group in _groups(dataset)]
    total, silent = sum(size for size, _ in sizes), sum(size for size, teaches in sizes if not teaches)
    reason = (
        f"of the {total} completions of `train_dataset` teach the value nothing (`value_loss` "
        f"{objective.kind or 'auto'!r}): it learns from what differs between completions of one prompt, and theirs "
        "have one completion or one reward"
    )
    if silent == total:
        raise ValueError(
            f"All {reason}. Log better and worse completions of a prompt, or set `value_parametrization='bilinear'`, "
            "which learns from every completion."
        )
    if silent and PartialState().is_main_process:
        logger.warning("%d %s. The other %.0f %% train it.", silent, reason, 100 * (total - silent) / total)
    return outcomes


def _groups(dataset: Dataset) -> Iterator[RolloutGroup]:
    for row in dataset:
        yield RolloutGroup(row["prompt_ids"], row["completion_ids"], row["rewards"])
