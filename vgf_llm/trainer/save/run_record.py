# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""How a run was started, in a file of its folder: the command, the settings, the versions and the commit."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vgf_llm.models.tensor_files import read_json, write_json

RUN_NAME = "vgf_run.json"
_PACKAGES = ("vgf-llm", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed", "vllm")
_SECRET = re.compile(r"(token|secret|password|api[_-]?key)$", re.IGNORECASE)
_MASK = "<masked>"


class RunRecord(TrainerCallback):
    """Adds an entry to `vgf_run.json` whenever training starts, on the main process; a resumed run adds one more.

    What is secret by its name (`hub_token`, a `token` in `model_init_kwargs`) is masked wherever it stands, and so are
    user and password of a URL. Of the environment nothing is written.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the file, whole or not at all."""
        if not state.is_world_process_zero:
            return
        path = Path(str(args.output_dir)) / RUN_NAME
        earlier = read_json(path)["starts"] if path.is_file() else []
        settings, hidden = masked_settings(args)
        start = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": _masked_command(sys.orig_argv, hidden),
            "resumed_at_step": state.global_step or None,
            "settings": settings,
            "versions": {"python": sys.version.split()[0], **_versions()},
            "git": git_commit(),
            "world_size": args.world_size,
            "device": args.device.type,
        }
        write_json({"starts": [*earlier, start]}, path)


def masked_settings(args: Any) -> tuple[dict[str, Any], set[str]]:
    """The settings as JSON gives them back, what is secret in them masked; and the secrets."""
    hidden = set(_secrets(vars(args)))
    return _masked(json.loads(json.dumps(args.to_dict(), default=str)), hidden), hidden


def git_commit() -> dict[str, Any] | None:
    """The commit of the working directory, and whether files that git tracks differ from it; `None` without one."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, no repository, or none with a commit
        return None
    return {"commit": found.removesuffix("-dirty"), "dirty": found.endswith("-dirty")}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _secrets(item: Any, name: str = "") -> Iterator[str]:
    """The strings that stand under a secret's name, at any depth."""
    if isinstance(item, dict):
        for key, value in item.items():
            yield from _secrets(value, str(key))
    elif isinstance(item, (list, tuple)):
        for value in item:
            yield from _secrets(value, name)
    elif isinstance(item, str) and item and _SECRET.search(name):
        yield item


def _masked(item: Any, hidden: set[str]) -> Any:
    if isinstance(item, dict):
        return {key: _masked(value, hidden) for key, value in item.items()}
    if isinstance(item, list):
        return [_masked(value, hidden) for value in item]
    if not isinstance(item, str):
        return item
    for secret in sorted(hidden, key=len, reverse=True):
        item = item.replace(secret, _MASK)
    return re.sub(r"(?<=://)[^/@\s]+@", f"{_MASK}@", item)


def _masked_command(argv: list[str], hidden: set[str]) -> str:
    """One line for a shell. Options of a script's own are secret by their names, too."""
    words, secret_follows = [], False
    for word in argv:
        option, equals, _ = word.partition("=")
        is_secret = word.startswith("-") and bool(_SECRET.search(option))
        if is_secret and equals:
            word = f"{option}={_MASK}"
        elif secret_follows and not word.startswith("-"):
            word = _MASK
        secret_follows = is_secret and not equals
        words.append(_masked(word, hidden))
    return shlex.join(words)
