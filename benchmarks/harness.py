# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What the benchmarks share: pairs timed right after each other, their ratios, the hardware, and recorded baselines.

Seconds of a busy machine say little; a ratio of two calls made one after the other says more, and two clocks say more
than one. `wall` is what a user waits; `cpu` counts the seconds that this process computed (user and system), and hardly
moves when other jobs run. On a GPU only `wall` is meaningful.
"""

import argparse
import functools
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

BASELINES = Path(__file__).parent / "baselines"


@functools.cache
def hardware(device: str) -> str:
    """Names the processor that a figure was measured on."""
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(torch.device(device))
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = f"{models[0]}, {len(models)} logical processors" if models else name
    return name


@dataclass(frozen=True)
class Seconds:
    """What one call took.

    Attributes:
        wall: Seconds that passed.
        cpu: Seconds that this process computed.
    """

    wall: float
    cpu: float


def measure(call: Callable[[], Any], device: str | torch.device = "cpu", repeats: int = 1) -> Seconds:
    """Times `repeats` calls in a row, the device's queue included, and returns the seconds of one."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    if cuda:
        torch.cuda.synchronize(device)
    return Seconds((time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats)


@dataclass
class Pairs:
    """Calls made in pairs, a base and what is compared with it.

    Attributes:
        base: What the base took, one per pair.
        other: What the other took, one per pair.
    """

    base: list[Seconds] = field(default_factory=list)
    other: list[Seconds] = field(default_factory=list)

    def add(self, base: Seconds, other: Seconds) -> None:
        """Adds a pair."""
        self.base.append(base)
        self.other.append(other)

    def ratios(self, clock: str) -> list[float]:
        """Other over base by a clock, pair by pair."""
        pairs = zip(self.base, self.other, strict=True)
        return [getattr(other, clock) / getattr(base, clock) for base, other in pairs]


def time_pairs(
    base: Callable[[], Any],
    other: Callable[[], Any],
    pairs: int,
    device: str | torch.device = "cpu",
    repeats: int = 1,
) -> Pairs:
    """Times pairs of calls (base, other, base, other, ...); one pair before them warms up and is dropped."""
    result = Pairs()
    for index in range(pairs + 1):
        pair = measure(base, device, repeats), measure(other, device, repeats)
        if index > 0:
            result.add(*pair)
    return result


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median and the range of some ratios, rounded for a report."""
    return {name: round(f(values), 4) for name, f in (("median", statistics.median), ("min", min), ("max", max))}


def shown(values: Mapping[str, float]) -> str:
    """A `spread` as text: the median and, in brackets, the range."""
    return f"{values['median']:.2f} ({values['min']:.2f} - {values['max']:.2f})"


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The exponent b of seconds = a sizes^b, by least squares on the logarithms.

    Args:
        sizes: At least two different positive numbers.
        seconds: The cost at each.

    Returns:
        The slope.

    Raises:
        ValueError: Fewer than two different sizes, or another number of seconds.

    Example:
        >>> round(exponent([1, 2, 4], [3.0, 12.0, 48.0]), 6)
        2.0
    """
    if len(sizes) != len(seconds) or len(set(sizes)) < 2:
        raise ValueError(f"`sizes` must hold two different numbers and as many as `seconds`, got {sizes}, {seconds}.")
    x, y = [math.log(size) for size in sizes], [math.log(second) for second in seconds]
    return statistics.linear_regression(x, y).slope


def load_baseline(path: Path, ours: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a baseline: `settings`, and per row `limits`, the largest values that are let pass.

    Args:
        path: The JSON file: `settings`, and `rows` of `{quantity: {"value": ..., "tolerance": ...}}`.
        ours: The settings of this run.

    Returns:
        The baseline.

    Raises:
        ValueError: If it was measured with other settings.
    """
    baseline: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    theirs = baseline["settings"]
    differing = {name: (ours[name], theirs.get(name)) for name in ours if ours[name] != theirs.get(name)}
    if differing:
        raise ValueError(
            f"{path} holds for its own settings only; these differ (here, there): {differing}. Leave out --check, or "
            "name a --baseline of these settings."
        )
    return baseline


def check(medians: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Any]) -> list[str]:
    """Returns one sentence per quantity of a row that is above its baseline; what the baseline lacks passes.

    Args:
        medians: Per row, quantities of which less is better.
        baseline: What `load_baseline` returned.
    """
    failures = []
    for row, quantities in medians.items():
        for name, value in quantities.items():
            known = baseline["rows"].get(row, {}).get(name)
            if known is not None and value > (limit := known["value"] + known["tolerance"]):
                failures.append(f"{row}: {name} is {value:.3f}, allowed is {limit:.3f}.")
    return failures


def write_json(path: Path | None, result: Mapping[str, Any]) -> None:
    """Writes a report, if a file is named for it."""
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def write_seconds(args: argparse.Namespace, seconds: Mapping[str, Any]) -> None:
    """Writes the seconds of every turn beside what was asked for, if `args.json` names a file."""
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    write_json(args.json, {"settings": settings, "seconds": seconds})
