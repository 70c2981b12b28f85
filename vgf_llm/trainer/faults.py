# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What happens when a run is told to stop, a disk is full or a server is gone: a whole checkpoint, and a plain word."""

import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy, get_last_checkpoint

SIGTERM_STATUS = 128 + signal.SIGTERM


class SaveOnSigterm(TrainerCallback):
    """Ends training with a checkpoint at the end of the step in which SIGTERM arrived, on every process alike.

    Without a save strategy the signal keeps its own meaning.

    Args:
        accelerator: The accelerator; processes agree through it, since a scheduler may signal one of them alone.
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
            self.received = True
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gives the signal back."""
        self.restore()

    def restore(self) -> None:
        """Gives the signal back, also after an error."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None


@contextmanager
def explained_save(run_dir: str | Path, step: int) -> Iterator[None]:
    """Adds to an error while a checkpoint is written what is left of it and how to go on.

    Args:
        run_dir: Where checkpoints are.
        step: The step being saved.
    """
    try:
        yield
    except Exception as error:
        last = get_last_checkpoint(str(run_dir))
        whole = (
            f"the last whole one is {last}, from which `resume_from_checkpoint=True` goes on"
            if last
            else "there is no earlier one"
        )
        free = shutil.disk_usage(run_dir).free / 2**20
        error.add_note(
            f"The checkpoint of step {step} was not written whole and does not count; {whole}. "
            f"{free:.0f} MiB are free on the disk of {str(run_dir)!r}: make room, or lower `save_total_limit`."
        )
        raise


@contextmanager
def explained_server(url: str, step: int) -> Iterator[None]:
    """Turns the many errors of a server that does not answer into one that names it.

    Args:
        url: The server.
        step: The optimisation step.

    Raises:
        ConnectionError: In place of any other connection error, also when the server keeps answering HTTP 500.
        RuntimeError: In place of the bare `Exception` that TRL's client raises for a request that was refused.
    """
    try:
        yield
    except OSError as error:  # what `requests` raises is one
        raise ConnectionError(
            f"The vLLM server at {url} did not answer at step {step} ({error}). Start it with `trl vllm-serve --model "
            "MODEL --host HOST --port PORT` (its log says why if it runs), check `vllm_server_host`, "
            "`vllm_server_port` and `vllm_server_timeout`, and go on with `resume_from_checkpoint=True`; or leave "
            "`use_vllm` out."
        ) from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise RuntimeError(
            f"The vLLM server at {url} refused a request at step {step} ({error}). Check that it serves this policy, "
            "with a `--max-model-len` that prompt and `max_completion_length` fit in, and that `generation_kwargs` "
            "are sampling parameters of vLLM; then go on with `resume_from_checkpoint=True`."
        ) from error
