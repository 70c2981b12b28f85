# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A checkpoint when a run is told to stop.

`TrainingArguments.enable_jit_checkpoint` of transformers saves in whichever hook comes next, also between the gradient
and the optimizer step, and each process decides alone. Here all processes save after the same whole step.
"""

import signal
import threading
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

SIGTERM_STATUS = 128 + signal.SIGTERM


class SaveOnSigterm(TrainerCallback):
    """Ends training with a checkpoint at the end of the step in which SIGTERM arrived, on every process alike.

    Processes agree through the accelerator, since a scheduler may signal one of them alone. Without a save strategy the
    signal keeps its own meaning.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received = False
        self._previous: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the signal over."""
        self.received = False
        main_thread = threading.current_thread() is threading.main_thread()  # others cannot have handlers
        if args.save_strategy != SaveStrategy.NO and main_thread:
            self._previous = signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, number: int, frame: Any) -> None:
        self.received = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Asks for a checkpoint and the end if any process was told to stop."""
        if args.save_strategy == SaveStrategy.NO:
            return
        flag = torch.tensor(float(self.received), device=self.accelerator.device)
        if float(self.accelerator.reduce(flag, reduction="sum")) > 0:
            self.received = control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        """Gives the signal back, also after an error."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None
