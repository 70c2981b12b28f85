# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What training reports: TRL's metric names and the table of completions."""

import logging
import math
from collections import defaultdict, deque
from typing import Any

import pandas as pd
import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import is_trackio_available, is_wandb_available

from vgf_llm._compat import nanstd, print_prompt_completions_sample

logger = logging.getLogger(__name__)

# By name, the values since the last log with their weights.
_Measurements = dict[str, list[tuple[float, float]]]


class MetricLog:
    """Collects metrics between two logs, and the last completions for the table.

    Args:
        accelerator: Gathers what the processes measured.
        reward_func_names: Names of the reward functions.
        capacity: Completions kept for the table.
    """

    def __init__(self, accelerator: Any, reward_func_names: list[str], capacity: int) -> None:
        self.accelerator = accelerator
        self.reward_func_names = reward_func_names
        self._metrics: dict[str, _Measurements] = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._table: dict[str, deque[Any]] = defaultdict(lambda: deque(maxlen=capacity))
        self._pending_extra: dict[str, list[Any]] = defaultdict(list)
        self._pending_metrics: dict[str, list[float]] = defaultdict(list)

    def add(self, mode: str, name: str, value: float, weight: float = 1.0) -> None:
        """Adds one measurement to the weighted mean of the next log; NaN counts for nothing."""
        self._metrics[mode][name].append((float(value), float(weight)))

    def set(self, mode: str, name: str, value: float) -> None:
        """Sets a metric whose last value is what counts."""
        self._metrics[mode][name] = [(float(value), 1.0)]

    def state(self) -> dict[str, list[list[float]]]:
        """Returns what training measured since the last log, for a checkpoint."""
        return {name: [list(item) for item in values] for name, values in self._metrics["train"].items()}

    def load(self, state: dict[str, list[list[float]]]) -> None:
        """Restores what `state` returned."""
        pending = {name: [(value, weight) for value, weight in values] for name, values in state.items()}
        self._metrics["train"] = defaultdict(list, pending)

    def log_extra(self, column: str, values: list[Any]) -> None:
        """Adds a column to the completions table, one value per completion; handed to reward functions."""
        self._pending_extra[column].extend(values)

    def log_metric(self, name: str, value: float) -> None:
        """Adds a scalar of a reward function's own; handed to reward functions."""
        self._pending_metrics[name].append(float(value))

    def add_lengths(self, mode: str, lengths: Tensor, truncated: Tensor) -> None:
        """Adds the length metrics of gathered completions: `lengths` `[rows]`, `truncated` `[rows]`."""
        ended = lengths[~truncated]
        if len(ended) == 0:
            ended = torch.zeros(1, device=lengths.device)
        for name, values in (("", lengths), ("_terminated", ended)):
            for statistic in ("mean", "min", "max"):
                self.add(mode, f"completions/{statistic}{name}_length", getattr(values.float(), statistic)().item())
        self.add(mode, "completions/clipped_ratio", truncated.float().mean().item())

    def add_rewards(self, mode: str, per_func: Tensor, rewards: Tensor, num_generations: int) -> None:
        """Adds the reward metrics of gathered rows: `per_func` `[rows, funcs]`, `rewards` `[rows]`."""
        for index, name in enumerate(self.reward_func_names):
            self.add(mode, f"rewards/{name}/mean", per_func[:, index].nanmean().item())
            self.add(mode, f"rewards/{name}/std", nanstd(per_func[:, index]).item())
        self.add(mode, "reward", rewards.nanmean().item())
        self.add(mode, "reward_std", nanstd(rewards).item())
        grouped = rewards.view(-1, num_generations)
        spread = nanstd(grouped, dim=1) if num_generations > 1 else torch.zeros(len(grouped))
        self.add(mode, "frac_reward_zero_std", torch.isclose(spread, torch.zeros_like(spread)).float().mean().item())

    def add_rows(self, prompts: list[Any], completions: list[Any], per_func: Tensor) -> None:
        """Adds gathered rows to the completions table."""
        self._table["prompt"].extend(prompts)
        self._table["completion"].extend(completions)
        for index, name in enumerate(self.reward_func_names):
            self._table[f"reward/{name}"].extend(per_func[:, index].tolist())

    def flush_reward_logs(self, mode: str, num_rows: int) -> None:
        """Gathers what reward functions logged themselves."""
        # Sorted, so that all processes gather the same name at the same time.
        for column in sorted(set(gather_object(list(self._pending_extra)))):
            values = self._pending_extra.get(column, [None] * num_rows)
            self._table[f"extra/{column}"].extend(gather_object(values))
        for name in sorted(set(gather_object(list(self._pending_metrics)))):
            values = gather_object(self._pending_metrics.get(name, []))
            self.add(mode, name, sum(values) / len(values))
        self._pending_extra.clear()
        self._pending_metrics.clear()

    def restart(self, mode: str) -> None:
        """Drops what was measured and not logged."""
        self._metrics[mode].clear()

    def pop(self, mode: str, prefix: str = "") -> dict[str, float | None]:
        """Returns the means since the last call, `prefix` in front of their names; `None` for no valid value."""
        result: dict[str, float | None] = {}
        for name, values in self._metrics[mode].items():
            valid = [(value, weight) for value, weight in values if not math.isnan(value)]
            total = sum(weight for _, weight in valid)
            result[prefix + name] = sum(value * weight for value, weight in valid) / total if total else None
        self._metrics[mode].clear()
        return result

    def show_completions(self, step: int, num_to_print: int | None, unique: bool, report_to: list[str]) -> None:
        """Prints the last completions and sends them to the trackers in use."""
        rows = {name: list(values) for name, values in self._table.items()}
        if not rows.get("prompt"):
            return
        rewards = {name: rows[f"reward/{name}"] for name in self.reward_func_names}
        extra = {name.removeprefix("extra/"): v for name, v in rows.items() if name.startswith("extra/")}
        # TRL's table has a column for advantages; a value gate has none, so the total reward stands there.
        total = [float(sum(x for x in row if not math.isnan(x))) for row in zip(*rewards.values(), strict=True)]
        print_prompt_completions_sample(
            rows["prompt"], rows["completion"], rewards, total, step, num_to_print, extra=extra
        )
        frame = pd.DataFrame(
            {"step": [step] * len(rows["prompt"]), "prompt": rows["prompt"], "completion": rows["completion"]}
            | rewards
            | {name: values for name, values in extra.items() if len(values) == len(rows["prompt"])}
        )
        if unique:
            frame = frame[~frame["prompt"].astype(str).duplicated()]
        for backend in _trackers(report_to):
            backend.log({"completions": backend.Table(dataframe=frame)})


def _trackers(report_to: list[str]) -> list[Any]:
    backends: list[Any] = []
    if "wandb" in report_to and is_wandb_available():
        import wandb

        if wandb.run is not None:
            backends.append(wandb)
    if "trackio" in report_to and is_trackio_available():
        import trackio

        backends.append(trackio)
    return backends
