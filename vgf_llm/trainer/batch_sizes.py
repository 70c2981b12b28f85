# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Batch sizes: TRL's rules, with errors that list the sizes that would work.

`per_device_train_batch_size` counts completions. A generation batch spans all processes and `steps_per_generation`
training steps, and holds every completion of each of its prompts.
"""

import logging
import math
from typing import Any

from datasets import Dataset

from vgf_llm._compat import _BaseConfig

logger = logging.getLogger(__name__)


def _require_positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an integer, got {value!r} ({type(value).__name__}).")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")
    return value


def divisors(number: int, at_least: int = 1) -> list[int]:
    """List the divisors of a positive number in ascending order.

    Args:
        number: The number to divide.
        at_least: Smallest divisor listed.

    Returns:
        The divisors.

    Example:
        >>> divisors(12, at_least=2)
        [2, 3, 4, 6, 12]
    """
    return [candidate for candidate in range(at_least, number + 1) if number % candidate == 0]


def nearest_multiples(value: int, of: int) -> list[int]:
    """List the positive multiples of a number around a value that is not one.

    Args:
        value: The value to stay close to.
        of: The number whose multiples are listed.

    Returns:
        The multiple below `value` when it is positive, and the two above.

    Example:
        >>> nearest_multiples(21, of=8)
        [16, 24, 32]
    """
    below = value // of
    return [factor * of for factor in (below, below + 1, below + 2) if factor > 0]


def resolve_batch_sizes(args: _BaseConfig) -> None:
    """Fill in `generation_batch_size` and `steps_per_generation` of a config, and check that groups are whole.

    Args:
        args: A config with TRL's batch fields; changed in place.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, if both sizes are given, or if one does not divide the other.
    """
    num_generations = _require_positive("num_generations", args.num_generations)
    if num_generations < 2:
        raise ValueError(
            f"`num_generations` must be at least 2, got {num_generations}: values are learned by comparing completions "
            "of one prompt."
        )
    per_device = _require_positive("per_device_train_batch_size", args.per_device_train_batch_size)
    if args.num_generations_eval is not None:
        _require_positive("num_generations_eval", args.num_generations_eval)
    global_batch_size = per_device * args.world_size
    _resolve_generation_batch(args, global_batch_size)
    _check_eval_groups(args, args.num_generations_eval or num_generations)
    if args.generation_batch_size % num_generations != 0:
        choices = divisors(args.generation_batch_size, at_least=2)
        raise ValueError(
            f"`generation_batch_size` ({args.generation_batch_size}) must be divisible by `num_generations` "
            f"({num_generations}), so that no prompt loses completions. Valid values of `num_generations` for this "
            f"batch: {choices}; valid values of `per_device_train_batch_size` near {per_device} for this "
            f"`num_generations`: {_valid_per_device(per_device, num_generations, args)}."
        )


def check_whole_groups(per_device_train_batch_size: int, num_generations: int) -> None:
    """Refuse training batches that tear the completions of a prompt apart, where the loss compares them.

    Args:
        per_device_train_batch_size: Completions in the batch of one step on one process.
        num_generations: Completions of one prompt.

    Raises:
        ValueError: If the first is no multiple of the second; the message lists valid sizes.
    """
    if per_device_train_batch_size % num_generations != 0:
        choices = nearest_multiples(per_device_train_batch_size, of=num_generations)
        groups = divisors(per_device_train_batch_size, at_least=2)
        raise ValueError(
            f"`per_device_train_batch_size` ({per_device_train_batch_size}) must be a multiple of `num_generations` "
            f"({num_generations}): the pairwise value loss compares the completions of a prompt within one batch. "
            f"Valid values of `per_device_train_batch_size`: {choices}; of `num_generations`: {groups}. "
            "Use `gradient_accumulation_steps` for larger batches."
        )


def fit_round(args: Any, dataset: Any, name: str = "train_dataset") -> None:
    """Shrink the rounds of a configuration to a training set that does not fill one.

    Args:
        args: The configuration, changed in place: `steps_per_generation` and `generation_batch_size`.
        dataset: A dataset that passed `check_dataset`; streams are not counted.
        name: Name of the argument, for errors.

    Raises:
        ValueError: If it has fewer prompts than one optimizer step takes.
    """
    prompts = args.generation_batch_size // args.num_generations
    if not isinstance(dataset, Dataset) or len(dataset) >= prompts:
        return
    accumulated = args.gradient_accumulation_steps
    micro_batch = args.generation_batch_size // args.steps_per_generation
    steps = len(dataset) * args.num_generations // micro_batch // accumulated * accumulated
    if steps == 0 or steps * micro_batch % args.num_generations:
        raise ValueError(
            f"`{name}` has {len(dataset)} prompts, but an optimizer step takes "
            f"{micro_batch * accumulated / args.num_generations:g}: per_device_train_batch_size * "
            "gradient_accumulation_steps * processes / `num_generations`. Lower `per_device_train_batch_size` or "
            "`gradient_accumulation_steps`, or give more prompts."
        )
    logger.warning(
        "`%s` has %d prompts, but a round takes %d: `steps_per_generation` is %d instead of %d.",
        name, len(dataset), prompts, steps, args.steps_per_generation,
    )  # fmt: skip
    args.steps_per_generation, args.generation_batch_size = steps, steps * micro_batch


def _resolve_generation_batch(args: _BaseConfig, global_batch_size: int) -> None:
    if args.generation_batch_size is not None and args.steps_per_generation is not None:
        raise ValueError(
            f"`generation_batch_size` ({args.generation_batch_size}) and `steps_per_generation` "
            f"({args.steps_per_generation}) are two ways to set the same thing; give one of them."
        )
    if args.generation_batch_size is None:
        steps = args.gradient_accumulation_steps if args.steps_per_generation is None else args.steps_per_generation
        args.steps_per_generation = _require_positive("steps_per_generation", steps)
        args.generation_batch_size = global_batch_size * args.steps_per_generation
        return
    size = _require_positive("generation_batch_size", args.generation_batch_size)
    if size % global_batch_size != 0:
        raise ValueError(
            f"`generation_batch_size` ({size}) must be divisible by the global batch size ({global_batch_size} = "
            f"`per_device_train_batch_size` {args.per_device_train_batch_size} * {args.world_size} processes). Valid "
            f"values of `generation_batch_size`: {nearest_multiples(size, of=global_batch_size)}."
        )
    args.steps_per_generation = size // global_batch_size


def _check_eval_groups(args: _BaseConfig, num_generations: int) -> None:
    if not args.do_eval or args.eval_strategy == "no":
        return
    per_device = _require_positive("per_device_eval_batch_size", args.per_device_eval_batch_size)
    size = per_device * args.world_size
    if size % num_generations != 0:
        raise ValueError(
            f"The global eval batch size ({size} = `per_device_eval_batch_size` {per_device} * {args.world_size} "
            f"processes) must be divisible by the number of generations in evaluation ({num_generations}). Valid "
            f"values of `num_generations_eval`: {divisors(size)}; multiples of {num_generations} for "
            f"`per_device_eval_batch_size` always fit: {nearest_multiples(per_device, of=num_generations)}."
        )


def _valid_per_device(per_device: int, num_generations: int, args: _BaseConfig) -> list[int]:
    """Sizes around `per_device` whose generation batch holds whole groups."""
    factor = args.world_size * args.steps_per_generation
    return nearest_multiples(per_device, of=num_generations // math.gcd(factor, num_generations))
