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
