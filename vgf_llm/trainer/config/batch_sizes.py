# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Batch sizes: TRL's rules, with errors that list the sizes that would work.

`per_device_train_batch_size` counts completions. A generation batch spans all processes and `steps_per_generation`
training steps, and holds every completion of each of its prompts. The batch of one step, or of one process, need not.
"""

import logging
import math
from typing import Any

from datasets import Dataset

logger = logging.getLogger(__name__)


def divisors(number: int, near: int, count: int = 8) -> list[int]:
    """List the divisors of a number, from 2 on, that are closest to another number, at most `count` of them.

    Example:
        >>> divisors(12, near=4, count=3)
        [2, 3, 4]
    """
    small = [candidate for candidate in range(1, math.isqrt(number) + 1) if number % candidate == 0]
    every = {*small, *(number // candidate for candidate in small)} - {1}
    return sorted(sorted(every, key=lambda divisor: (abs(divisor - near), divisor))[:count])


def nearest_multiples(value: int, of: int) -> list[int]:
    """List the multiple of a number below a value that is none, if positive, and the two above.

    Example:
        >>> nearest_multiples(21, of=8)
        [16, 24, 32]
    """
    below = value // of
    return [factor * of for factor in (below, below + 1, below + 2) if factor > 0]


def resolve_batch_sizes(args: Any) -> None:
    """Fill in `generation_batch_size` and `steps_per_generation` of a config, and check that groups are whole."""
    per_device, world_size, group = args.per_device_train_batch_size, args.world_size, args.num_generations
    step = per_device * world_size
    size, steps = args.generation_batch_size, args.steps_per_generation
    if size is None:
        steps = args.gradient_accumulation_steps if steps is None else steps
        size = step * steps
    elif size % step != 0:
        raise ValueError(
            f"`generation_batch_size` ({size}) must be divisible by the global batch size ({step} = "
            f"`per_device_train_batch_size` {per_device} * {world_size} processes). Valid values of "
            f"`generation_batch_size`: {nearest_multiples(size, of=step)}."
        )
    elif steps is not None and steps * step != size:
        raise ValueError(
            f"`generation_batch_size` ({size}) and `steps_per_generation` ({steps}) are two ways to set the same "
            f"thing, and {steps} steps of {step} completions are {steps * step}; give one of them."
        )
    args.generation_batch_size, args.steps_per_generation = size, size // step
    if args.do_eval and args.eval_strategy != "no":
        _check_eval_groups(args, args.num_generations_eval or group)
    if size % group != 0:
        unit = group // math.gcd(world_size * args.steps_per_generation, group)
        raise ValueError(
            f"`generation_batch_size` ({size}) must be divisible by `num_generations` ({group}), so that no prompt "
            f"loses completions. Valid values of `num_generations` for this batch: {divisors(size, near=group)}; "
            f"valid values of `per_device_train_batch_size` near {per_device} for this `num_generations`: "
            f"{nearest_multiples(per_device, of=unit)}."
        )


def _check_eval_groups(args: Any, group: int) -> None:
    per_device = args.per_device_eval_batch_size
    size = per_device * args.world_size
    if size % group != 0:
        raise ValueError(
            f"The global eval batch size ({size} = `per_device_eval_batch_size` {per_device} * {args.world_size} "
            f"processes) must be divisible by the number of generations in evaluation ({group}). Valid values of "
            f"`num_generations_eval`: {[1, *divisors(size, near=group)]}; multiples of {group} for "
            f"`per_device_eval_batch_size` always fit: {nearest_multiples(per_device, of=group)}."
        )


def fit_round(args: Any, dataset: Any, name: str = "train_dataset") -> None:
    """Shrink the rounds of a configuration to a training set that does not fill one; streams are not counted."""
    group = args.num_generations
    prompts = args.generation_batch_size // group
    if not isinstance(dataset, Dataset) or len(dataset) >= prompts:
        return
    step = args.generation_batch_size // args.steps_per_generation
    # A round is whole optimizer steps and whole groups.
    unit = math.lcm(args.gradient_accumulation_steps, group // math.gcd(step, group))
    steps = len(dataset) * group // step // unit * unit
    if steps == 0:
        raise ValueError(
            f"`{name}` has {len(dataset)} prompts, but a round takes at least {unit * step // group}: "
            f"`gradient_accumulation_steps` ({args.gradient_accumulation_steps}) whole steps of {step} completions "
            f"(`per_device_train_batch_size` * processes), in groups of `num_generations` ({group}). Lower "
            "`per_device_train_batch_size` or `gradient_accumulation_steps`, or give more prompts."
        )
    logger.warning(
        "`%s` has %d prompts, but a round takes %d: `steps_per_generation` is %d instead of %d.",
        name, len(dataset), prompts, steps, args.steps_per_generation,
    )  # fmt: skip
    args.steps_per_generation, args.generation_batch_size = steps, steps * step
