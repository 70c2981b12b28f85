# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What training reports: TRL's metric names and the table of completions."""

import logging
import math
from collections import defaultdict, deque
from functools import partial
from itertools import compress, zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import is_trackio_available, is_wandb_available
from transformers.utils import is_rich_available

from vgf_llm._compat import nanstd, print_prompt_completions_sample
from vgf_llm.trainer.measure.gate import ScoredPrompt

logger = logging.getLogger(__name__)


class MetricLog:
    """Collects metrics between two logs, and the last `capacity` completions for the table.

    `values` and `logs` have the shape of `GRPOTrainer._metrics` and `_logs`, which callbacks read and write. `held_out`
    are the prompts of the last evaluation, each with the values and the rewards of its completions.
    """

    def __init__(self, accelerator: Any, reward_func_names: list[str], capacity: int) -> None:
        self.accelerator = accelerator
        self.reward_func_names = reward_func_names
        self.values: dict[str, dict[str, list[float]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._weights: dict[str, dict[str, list[float]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        self.logs: dict[str, Any] = {
            **{name: deque(maxlen=capacity) for name in ("images", "prompt", "completion", "advantages")},
            **{name: defaultdict(lambda: deque(maxlen=capacity)) for name in ("rewards", "extra")},
        }
        self.held_out: list[ScoredPrompt] = []
        self._pending_extra: dict[str, list[Any]] = defaultdict(list)
        self._pending_metrics: dict[str, list[float]] = defaultdict(list)

    def add(self, mode: str, name: str, value: float, weight: float = 1.0) -> None:
        """Adds one measurement to the weighted mean of the next log; NaN counts for nothing."""
        self.values[mode][name].append(float(value))
        self._weights[mode][name].append(float(weight))

    def set(self, mode: str, name: str, value: float) -> None:
        """Sets a metric whose last value is what counts."""
        self.values[mode][name], self._weights[mode][name] = [float(value)], [1.0]

    def _weighted(self, mode: str, name: str) -> list[tuple[float, float]]:
        """The values of a metric with their weights: 1 for those that a callback has added."""
        return list(zip_longest(self.values[mode][name], self._weights[mode][name], fillvalue=1.0))

    def state(self) -> dict[str, list[list[float]]]:
        """Returns what training measured since the last log, for a checkpoint."""
        return {name: [list(item) for item in self._weighted("train", name)] for name in self.values["train"]}

    def load(self, state: dict[str, list[list[float]]]) -> None:
        """Restores what `state` returned."""
        self.restart("train")
        for name, measured in state.items():
            for value, weight in measured:
                self.add("train", name, value, weight)

    def log_extra(self, column: str, values: list[Any]) -> None:
        """Adds a column to the completions table, one value per completion; handed to reward functions."""
        self._pending_extra[column].extend(values)

    def log_metric(self, name: str, value: float) -> None:
        """Adds a scalar of a reward function's own; handed to reward functions."""
        self._pending_metrics[name].append(float(value))

    def add_lengths(self, mode: str, lengths: Tensor, truncated: Tensor) -> None:
        """Adds the length metrics of gathered completions, `lengths` and `truncated` `[rows]`, by their number."""
        add = partial(self.add, mode, weight=len(lengths))
        ended = lengths[~truncated]
        if len(ended) == 0:
            ended = torch.zeros(1, device=lengths.device)
        for name, values in (("", lengths), ("_terminated", ended)):
            for statistic in ("mean", "min", "max"):
                add(f"completions/{statistic}{name}_length", getattr(values.float(), statistic)().item())
        add("completions/clipped_ratio", truncated.float().mean().item())

    def add_rewards(self, mode: str, per_func: Tensor, rewards: Tensor, num_generations: int) -> None:
        """Adds the reward metrics of gathered rows, `per_func` `[rows, funcs]` and `rewards` `[rows]`.

        A batch weighs as much as it has rows: the last one of an evaluation may have fewer.
        """
        add = partial(self.add, mode, weight=len(rewards))
        for index, name in enumerate(self.reward_func_names):
            add(f"rewards/{name}/mean", per_func[:, index].nanmean().item())
            add(f"rewards/{name}/std", nanstd(per_func[:, index]).item())
        add("reward", rewards.nanmean().item())
        add("reward_std", nanstd(rewards).item())
        grouped = rewards.view(-1, num_generations)
        spread = nanstd(grouped, dim=1).nan_to_num() if num_generations > 1 else torch.zeros(len(grouped))
        add("frac_reward_zero_std", torch.isclose(spread, torch.zeros_like(spread)).float().mean().item())

    def add_rows(
        self,
        prompts: list[Any],
        completions: list[Any],
        per_func: Tensor,
        rewards: Tensor,
        num_generations: int,
        present: list[bool],
    ) -> None:
        """Adds gathered rows to the completions table; an advantage is a reward minus the mean of its prompt's."""
        grouped = rewards.view(-1, num_generations)
        advantages = (grouped - grouped.nanmean(dim=1, keepdim=True)).flatten().tolist()
        for column, values in (("prompt", prompts), ("completion", completions), ("advantages", advantages)):
            self.logs[column].extend(compress(values, present))
        for index, name in enumerate(self.reward_func_names):
            self.logs["rewards"][name].extend(compress(per_func[:, index].tolist(), present))

    def flush_reward_logs(self, mode: str, num_rows: int) -> None:
        """Gathers what reward functions logged themselves."""
        # Sorted, so that all processes gather the same name at the same time.
        for column in sorted(set(gather_object(list(self._pending_extra)))):
            values = self._pending_extra.get(column, [None] * num_rows)
            self.logs["extra"][column].extend(gather_object(values))
        for name in sorted(set(gather_object(list(self._pending_metrics)))):
            values = gather_object(self._pending_metrics.get(name, []))
            self.add(mode, name, sum(values) / len(values))
        self._pending_extra.clear()
        self._pending_metrics.clear()

    def restart(self, mode: str) -> None:
        """Drops what was measured and not logged."""
        self.values[mode].clear()
        self._weights[mode].clear()

    def pop(self, mode: str, prefix: str = "") -> dict[str, float | None]:
        """Returns the means since the last call, `prefix` in front of their names; `None` for no valid value."""
        result: dict[str, float | None] = {}
        for name in self.values[mode]:
            valid = [(value, weight) for value, weight in self._weighted(mode, name) if not math.isnan(value)]
            total = sum(weight for _, weight in valid)
            result[prefix + name] = sum(value * weight for value, weight in valid) / total if total else None
        self.restart(mode)
        return result

    def show_completions(
        self, step: int, num_to_print: int | None, unique: bool, report_to: list[str], folder: Path
    ) -> None:
        """Prints the last completions, writes them to a Parquet file and sends them to the trackers in use."""
        rows = {name: list(self.logs[name]) for name in ("prompt", "completion", "advantages")}
        if not rows["prompt"]:
            return
        kinds = (self.logs[kind] for kind in ("rewards", "extra"))
        rewards, extra = ({name: list(column) for name, column in columns.items()} for columns in kinds)
        if is_rich_available():
            print_prompt_completions_sample(
                rows["prompt"], rows["completion"], rewards, rows["advantages"], step, num_to_print, extra=extra
            )
        count = len(rows["prompt"])
        frame = pd.DataFrame(
            {"step": [step] * count, "prompt": rows["prompt"], "completion": rows["completion"]}
            | rewards
            | {name: values for name, values in extra.items() if len(values) == count}
            | {"advantage": rows["advantages"]}
        )
        folder.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(folder / f"completions_{step:05d}.parquet")
        if unique:
            frame = frame[~frame["prompt"].astype(str).duplicated()]
        for backend in trackers(report_to):
            backend.log({"completions": backend.Table(dataframe=frame)})


def trackers(report_to: list[str]) -> list[Any]:
    """The modules of the trackers in use that take tables and images by one call: wandb and trackio."""
    backends: list[Any] = []
    if "wandb" in report_to and is_wandb_available():
        import wandb

        if wandb.run is not None:
            backends.append(wandb)
    if "trackio" in report_to and is_trackio_available():
        import trackio

        if trackio.context_vars.current_run.get() is not None:  # transformers ends it with training
            backends.append(trackio)
    return backends
