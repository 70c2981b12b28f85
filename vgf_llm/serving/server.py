# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`vgf serve`: vLLM's OpenAI-compatible server, with the transport of a saved model in its engine."""

import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vgf_llm.models.config import VGFModelConfig
from vgf_llm.serving.artefacts import engine_arguments


def server_command(path: str | Path, view: str | Path, engine: Sequence[str] = ()) -> list[str]:
    """Returns the command line that serves a saved model, with files in `view` as long as the server lives.

    Options of `engine` come last and win; without a `--host` among them the server listens on this machine alone.
    """
    VGFModelConfig.load(path)
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "vLLM is not installed in this environment. On a machine with a GPU: pip install 'vgf-llm[vllm]'. Without "
            "one, `vgf generate` answers prompts, and scripts/setup_vllm_cpu.sh of the repository builds vLLM's CPU "
            "version for tests."
        )
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in engine_arguments(path, view).items():
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        command += [f"--{name.replace('_', '-')}", *values]
    command += ["--served-model-name", Path(path).resolve().name]
    command += ["--host", "127.0.0.1"]  # vLLM's own default is every interface, without a key
    return [*command, *engine]


def serve(path: str | Path, engine: Sequence[str] = ()) -> None:
    """Serves a saved model until it is stopped; `engine` are further options of vLLM's server.

    Raises ValueError if the model cannot be served or vLLM is not installed, OSError if the server ended with an error.
    """
    with tempfile.TemporaryDirectory(prefix="vgf-serve-") as view:
        child = subprocess.Popen(server_command(path, view, engine))

        def stop(number: int, frame: Any) -> None:
            child.send_signal(number)

        previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            code = child.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    if code > 0:
        raise OSError(f"vLLM's server ended with exit status {code}; its own message stands above.")
