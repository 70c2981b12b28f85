# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Errors of a vLLM server that name it and say how to go on."""

from collections.abc import Iterator
from contextlib import contextmanager


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
