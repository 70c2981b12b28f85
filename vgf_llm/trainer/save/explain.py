# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What an error of saving or of a vLLM server means for the run, and how to go on."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint


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
        folder = Path(run_dir).resolve()
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        whole = (
            f"the last whole one is {last}, from which `resume_from_checkpoint=True` goes on"
            if last
            else "there is no earlier one"
        )
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free / 2**20
        error.add_note(
            f"The checkpoint of step {step} was not written whole and does not count; {whole}. "
            f"{free:.0f} MiB are free on the disk of {str(run_dir)!r}: make room, or lower `save_total_limit`."
        )
        raise
