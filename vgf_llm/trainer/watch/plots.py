# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Plots of a run, drawn at every evaluation: how far the value can be trusted, what is reached, what a budget buys."""

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import IterableDataset
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from vgf_llm.trainer.measure.gate import ScoredPrompt
from vgf_llm.trainer.measure.metrics import trackers
from vgf_llm.trainer.sample.transformers import TransformersSampler

# Okabe and Ito's palette, which readers with any colour vision tell apart; Wong, Nature Methods 8, 441 (2011).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "savefig.dpi": 150,
}


class Point(NamedTuple):
    """A mean over `number` measurements, with its standard error."""

    x: float
    y: float
    error: float
    number: int

    @classmethod
    def of(cls, x: float, measured: Sequence[float]) -> "Point":
        """The mean of measurements at x; one alone has no standard error."""
        error = stdev(measured) / math.sqrt(len(measured)) if len(measured) > 1 else math.nan
        return cls(x, fmean(measured), error, len(measured))


def binned(x: Sequence[float], y: Sequence[float], most: int = 10, least: int = 20) -> list[Point]:
    """Means of y in bins of x that hold as many measurements each: at most `most` bins, of `least` or more.

    Example:
        >>> [(point.x, point.y, point.number) for point in binned([3, 1, 2, 4], [1, 0, 0, 1], least=2)]
        [(1.5, 0.0, 2), (3.5, 1.0, 2)]
    """
    if not len(x):
        return []
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    parts = np.array_split(xs.argsort(kind="stable"), min(most, max(1, len(x) // least)))
    return [Point.of(float(xs[part].mean()), ys[part].tolist()) for part in parts]


def _scored(prompt: ScoredPrompt) -> list[tuple[float, float]]:
    """The completions that have a reward, as pairs of value and reward."""
    return [pair for pair in zip(*prompt, strict=True) if not math.isnan(pair[1])]


def ordered_pairs(prompts: Sequence[ScoredPrompt]) -> tuple[list[float], list[float]]:
    """Of the pairs of a prompt that the rewards order, how far apart the values are, and 1 where they order it alike.

    Values that are equal order half a pair, so that the mean is `value/within_prompt_accuracy`.

    Example:
        >>> ordered_pairs([ScoredPrompt([0.5, 2.0, -1.0], [0.0, 1.0, 1.0])])
        ([1.5, 1.5], [1.0, 0.0])
    """
    gaps, right = [], []
    for prompt in prompts:
        for (value, reward), (other, other_reward) in combinations(_scored(prompt), 2):
            if reward != other_reward:
                ahead = (value - other) * (1 if reward > other_reward else -1)
                gaps.append(abs(ahead))
                right.append(0.5 + 0.5 * (ahead > 0) - 0.5 * (ahead < 0))
    return gaps, right


def centred(prompts: Sequence[ScoredPrompt]) -> tuple[list[float], list[float]]:
    """Values and rewards of all completions, minus the mean of their prompt's."""
    values: list[float] = []
    rewards: list[float] = []
    for prompt in prompts:
        for found, own in zip((values, rewards), zip(*_scored(prompt), strict=True), strict=False):
            mean = fmean(own)
            found += [number - mean for number in own]
    return values, rewards


class PlotCallback(TrainerCallback):
    """Draws plots of a run into `output_dir/plots` at every evaluation, and sends them to the trackers in use.

    - `eval_calibration.png`: the pairs of held-out prompts that the value orders rightly, over how far apart it puts
      them. Where the value's loss makes its differences log-odds, the curve of a calibrated value stands beside it.
      Then the mean reward over the value. Both come from what the evaluation has sampled and valued anyway; of the
      value's own samples (`rollout_policy="value"`) little is left that it can order.
    - `reward_over_completions.png`: rewards and held-out accuracy of the run so far, at its end too.
    - `eval_budget_curve.png`, with `budget_steps`: the mean reward of transported completions of the held-out prompts,
      at every budget, with the KL per token that they spent.

    Plots of the last evaluation take the place of earlier ones; trackers keep all. Every process has to have the
    callback.

    Args:
        trainer ([`VGFTrainer`]):
            The trainer.
        budget_steps (list of `int`, *optional*):
            Budgets L of the budget curve. Each samples and scores `num_generations_eval` completions of every
            evaluation prompt once more. Completions that the evaluation has sampled are not weighted instead: the
            weights of whole responses spread as exp(KL), and few would count.

    Raises:
        ImportError: Without matplotlib, which the extra `plots` installs.
        ValueError: If `budget_steps` has a budget that is none, or another engine than transformers samples.

    Example:

    ```python
    trainer.add_callback(PlotCallback(trainer))
    ```
    """

    def __init__(self, trainer: Any, budget_steps: Sequence[int] = ()) -> None:
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise ImportError('Plots need matplotlib: pip install "vgf-llm[plots]".') from error
        if budget_steps and not isinstance(trainer.sampler, TransformersSampler):
            raise ValueError(
                f"`budget_steps` ({list(budget_steps)}) samples transported completions, which transformers alone "
                f"does, but this trainer's come from {type(trainer.sampler).__name__}. Leave it out, and measure the "
                "saved model by `eval.tune_budget`."
            )
        self.trainer = trainer
        self.budgets = [replace(trainer.vgf_model.transport, transport_steps=steps) for steps in sorted(budget_steps)]

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Draws what the evaluation measured."""
        held_out = list(self.trainer.metrics.held_out)
        prefix = next((name.removesuffix("_runtime") for name in metrics if name.endswith("_runtime")), "eval")
        budgets = self._budgets(eval_dataloader.dataset, prefix) if self.budgets else []
        if state.is_world_process_zero:
            self._draw(f"{prefix}_calibration", self._calibration, held_out)
            self._draw("reward_over_completions", self._rewards)
            if budgets:
                self._draw(f"{prefix}_budget_curve", self._budget_curve, budgets)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draws the rewards of the whole run."""
        if state.is_world_process_zero:
            self._draw("reward_over_completions", self._rewards)

    def _draw(self, name: str, fill: Callable[..., bool], *data: Any) -> None:
        """Lets `fill` draw a figure, saves it and sends it; nothing if there is nothing to draw."""
        import matplotlib
        from matplotlib.figure import Figure

        trainer, step = self.trainer, self.trainer.state.global_step
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(9.0, 4.0), layout="constrained")  # not pyplot's, which a notebook would show
            if not fill(figure, *data):
                return
            folder = Path(str(trainer.args.output_dir)) / "plots"
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / f"{name}.png", dpi=110)
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_figure(f"plots/{name}", figure, step)
        for backend in trackers(trainer.args.report_to or []):
            image = backend.Image(str(folder / f"{name}.png"))
            backend.log({f"plots/{name}": image, "train/global_step": step})

    def _calibration(self, figure: Any, prompts: list[ScoredPrompt]) -> bool:
        gaps, right = ordered_pairs(prompts)
        if not gaps:
            return False
        rows = [pair for prompt in prompts for pair in _scored(prompt)]
        values, rewards = np.array(rows).T
        objective = self.trainer.objective.resolved(torch.from_numpy(rewards))  # no training may have decided it
        left, other = figure.subplots(1, 2)
        pairs = binned(gaps, right)
        _errorbars(left, pairs, "held-out pairs")
        if objective.kind in ("likelihood", "pairwise", "bernoulli"):
            x = np.linspace(0, max(point.x for point in pairs), 100)
            left.plot(x, 1 / (1 + np.exp(-x)), color="0.45", linestyle="--", label="difference as log-odds")
        left.axhline(0.5, color="0.45", linestyle=":", label="chance")
        left.set(title=f"{fmean(right):.3f} of {len(gaps)} pairs are ordered rightly")
        left.set(xlabel="difference of the two values", ylabel="share ordered rightly")
        left.legend()
        of_head = not objective.sequence and not objective.value.needs_logits
        if objective.kind == "regression" or (objective.kind == "bernoulli" and of_head):
            if objective.kind == "bernoulli":
                values = 1 / (1 + np.exp(-values))
            found = binned(values, rewards)
            ends = (found[0].x, found[-1].x)
            other.plot(ends, ends, color="0.45", linestyle="--", label="calibrated")
            other.set(xlabel="predicted reward", ylabel="mean reward")
        else:
            found = binned(*centred(prompts))
            other.set(xlabel="value minus its prompt's mean", ylabel="reward minus its prompt's mean")
        _errorbars(other, found, f"{len(rows)} completions")
        other.set(title="reward over value")
        other.legend()
        return True

    def _completions(self, step: int) -> int:
        """Completions that were sampled, or read, by an optimizer step."""
        trainer = self.trainer
        each = trainer.args.gradient_accumulation_steps
        sampled = min(step * each, trainer.schedule.sampled_steps(trainer.state.max_steps * each))
        return math.ceil(sampled / trainer.schedule.round_steps) * trainer.args.generation_batch_size

    def _rewards(self, figure: Any) -> bool:
        history = self.trainer.state.log_history
        names = dict.fromkeys(name for entry in history for name in entry)
        panels = figure.subplots(1, 2)
        drawn = False
        for axes, metric in zip(panels, ("reward", "value/within_prompt_accuracy"), strict=True):
            mine = [n for n in names if n in (metric, f"rollout/{metric}") or n.endswith(f"_{metric}")]
            for index, name in enumerate(mine):
                found = [(entry["step"], entry[name]) for entry in history if entry.get(name) is not None]
                x = [self._completions(step) for step, _ in found]
                style = {"marker": "s", "linestyle": "--"} if name not in (metric, f"rollout/{metric}") else {}
                axes.plot(x, [value for _, value in found], color=COLOURS[index % len(COLOURS)], label=name, **style)
                drawn = drawn or bool(found)
            axes.set(xlabel="completions", title=metric)
            if mine:
                axes.legend()
        panels[1].axhline(0.5, color="0.45", linestyle=":")
        return drawn

    @contextmanager
    def _transporting(self) -> Any:
        """Everything inside samples the transported policy; the transport is put back."""
        model, schedule = self.trainer.vgf_model, self.trainer.schedule
        transport, who = model.transport, schedule.samples_from
        try:
            schedule.samples_from = "transport"
            yield model
        finally:
            model.transport, schedule.samples_from = transport, who

    def _budgets(self, dataset: Any, prefix: str) -> list[tuple[Point, float | None]]:
        """Evaluates at every budget: the reward over L, with its standard error over prompts, and the KL per token."""
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                "`budget_steps` samples the evaluation prompts once per budget, but they are a stream. Give "
                "`eval_dataset` as a `Dataset`, or leave `budget_steps` out."
            )
        found: list[tuple[Point, float | None]] = []
        logs: dict[str, float] = {}
        with self._transporting() as model:
            for transport in self.budgets:
                model.transport = transport
                name = f"{prefix}_budget_{transport.transport_steps}"
                metrics = self.trainer.predict(dataset, metric_key_prefix=name).metrics
                rows = [[reward for _, reward in _scored(prompt)] for prompt in self.trainer.metrics.held_out]
                means = [fmean(row) for row in rows if row]
                if means:
                    point = Point.of(transport.transport_steps, means)
                    found.append((point, metrics.get(f"{name}_rollout/kl")))  # whole responses have none
                    logs |= {key: metrics[key] for key in (f"{name}_reward", f"{name}_rollout/kl") if key in metrics}
        self.trainer.log(logs)
        return found

    def _budget_curve(self, figure: Any, budgets: list[tuple[Point, float | None]]) -> bool:
        axes = figure.subplots()
        step_size = self.budgets[0].step_size
        points = [point._replace(x=place) for place, (point, _) in enumerate(budgets)]
        _errorbars(axes, points, f"{points[0].number} held-out prompts", linestyle="-")
        spent = ["-" if kl is None else f"{kl:.3f}" for _, kl in budgets]
        labels = [f"{point.x:g}\n{point.x * step_size:g}\n{kl}" for (point, _), kl in zip(budgets, spent, strict=True)]
        axes.set_xticks(range(len(budgets)), labels)
        axes.set(ylabel="mean reward", title="What the budget buys")
        axes.set_xlabel("transport steps L, L * epsilon, and KL to the base per token (nats)")
        axes.legend()
        return True


def _errorbars(axes: Any, points: Sequence[Point], label: str, linestyle: str = "") -> None:
    x, y, errors, _ = zip(*points, strict=True)
    axes.errorbar(x, y, yerr=errors, color=COLOURS[0], marker="o", linestyle=linestyle, capsize=3, label=label)
