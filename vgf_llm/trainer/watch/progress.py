# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""One bar and one short line per log, in a terminal of any width and in a file."""

import atexit
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import has_length

SHOWN = ("loss", "reward", "rollout/reward", "value/within_prompt_accuracy", "transport/kl", "prompts/solved")


def shown_metrics(logs: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The metrics of a log that say whether a run learns, by their names in the log, those of evaluations too.

    Example:
        >>> list(shown_metrics({"eval_reward": 0.5, "reward_std": 0.1, "transport/kl": None, "loss": 1.0}))
        [('loss', 1.0), ('eval_reward', 0.5)]
    """
    for metric in SHOWN:
        for name, value in logs.items():
            if (name == metric or name.endswith(f"_{metric}")) and isinstance(value, (int, float)):
                yield name, value


class VGFProgressCallback(TrainerCallback):
    """Shows reward, held-out accuracy and KL of a run, in the place of transformers' bar and dictionaries.

    In a terminal a bar stands under one short line per log. Where the output is no terminal there are the lines alone,
    without control characters. All metrics are in the trackers and in `trainer.state.log_history`. With
    `disable_tqdm=True` transformers prints its dictionaries, and this shows nothing.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer, whose bar is taken away.

    Example:

    ```python
    trainer.add_callback(VGFProgressCallback(trainer))
    ```
    """

    def __init__(self, trainer: Any) -> None:
        if not trainer.args.disable_tqdm:
            trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)
        # FORCE_COLOR and the like do not make a terminal of a file.
        self.console = Console(force_terminal=sys.stdout.isatty())
        self._bar: Progress | None = None
        self._training: TaskID | None = None
        self._evaluation: TaskID | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draws the bar."""
        if args.disable_tqdm or not state.is_world_process_zero or not self.console.is_terminal:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self.console)
        self._training = self._bar.add_task("training", total=state.max_steps, completed=state.global_step)
        self._bar.start()
        atexit.register(self._bar.stop)  # an error in training leaves the cursor hidden

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        if self._bar is not None and self._training is not None:
            self._bar.update(self._training, completed=state.global_step)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Moves a second bar, of the evaluation."""
        if self._bar is None or not has_length(eval_dataloader):
            return
        if self._evaluation is None:
            self._evaluation = self._bar.add_task("evaluation", total=len(eval_dataloader))
        self._bar.advance(self._evaluation)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the second bar away."""
        if self._bar is not None and self._evaluation is not None:
            self._bar.remove_task(self._evaluation)
            self._evaluation = None

    on_predict = on_evaluate

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Prints a line; a terminal that is narrower breaks it between metrics."""
        metrics = [f"{name}={value:.4g}" for name, value in shown_metrics(logs or {})]
        if metrics and state.is_world_process_zero and not args.disable_tqdm:
            line = f"[{state.global_step}/{state.max_steps}] {' '.join(metrics)}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=not self.console.is_terminal)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.stop()
            atexit.unregister(self._bar.stop)
            self._bar = None
