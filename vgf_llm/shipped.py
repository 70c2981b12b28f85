# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What an installation holds beside the package: `recipes`, `reward_models` and `eval`.

A checkout has the three at its root. A wheel has them in a folder of the package, since their names are too common to
stand beside other projects' in `site-packages`; `add_to_path` makes them importable in one process and its children.
"""

import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vgf_llm.command_line import did_you_mean

_PACKAGE = Path(__file__).parent


def root() -> Path:
    """Returns the folder that holds `recipes`, `reward_models` and `eval`."""
    installed = _PACKAGE / "_shipped"
    return installed if installed.is_dir() else _PACKAGE.parent


def add_to_path() -> None:
    """Makes `recipes`, `reward_models` and `eval` importable, in this process and in those that it starts.

    Example:
        >>> add_to_path()
        >>> from reward_models import gsm8k_reward
        >>> gsm8k_reward(["so that is #### 7"], answer=["#### 7"])
        [1.0]
    """
    folder = str(root())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, *paths]))


def recipes() -> dict[str, Path]:
    """Returns the scripts that `vgf recipe` launches, by name."""
    scripts = {path.stem: path for path in sorted((root() / "recipes").glob("*.py"))}
    scripts["reward_model"] = root() / "reward_models" / "train.py"
    return {name: path for name, path in scripts.items() if '\nif __name__ == "__main__":' in path.read_text("utf-8")}


def launch(argv: Sequence[str]) -> None:
    """Runs a recipe under `accelerate launch`: its options, the recipe's name, and the recipe's own options.

    A YAML file that is not here, such as `recipes/configs/gsm8k_embedded.yaml`, is looked for in `root()`.
    """
    from accelerate.commands.launch import launch_command_parser

    def found(text: str) -> str:
        shipped = root() / text
        return str(shipped) if text.endswith(".yaml") and not Path(text).exists() and shipped.is_file() else text

    args = launch_command_parser().parse_args([found(text) for text in argv])
    scripts = recipes()
    if args.training_script not in scripts:
        hint = did_you_mean(args.training_script, scripts, otherwise=f" There are {', '.join(scripts)}.")
        raise ValueError(f"There is no recipe {args.training_script!r}.{hint}")
    add_to_path()
    args.training_script = str(scripts[args.training_script])
    run_launcher(args)


def run_launcher(args: Any) -> None:
    """Runs `accelerate launch` with parsed options; without a GPU it says nothing of the defaults that it takes."""
    import torch
    from accelerate.commands import launch

    if not torch.accelerator.is_available():
        logging.getLogger(launch.__name__).setLevel(logging.ERROR)
    launch.launch_command(args)


def embedded_model(version: str) -> Path:
    """Returns the model of the embedded math recipe: of a run in this folder, or trained once and kept.

    It is kept by the package's version below `XDG_CACHE_HOME`, which is `~/.cache` if it is not set. Of a training that
    was interrupted or failed nothing is kept.
    """
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "vgf-llm", version, "gsm8k_embedded")
    for folder in (Path("outputs", "gsm8k_embedded"), kept):
        if (folder / "vgf_config.json").is_file():
            print(f"The embedded model is in {folder}.", flush=True)
            return folder
    print(
        "Training the embedded model, once: 0.9 million parameters on generated grade-school math, minutes on two CPU "
        f"cores, nothing is downloaded. It will be kept in {kept}.",
        flush=True,
    )
    unfinished = kept.with_name(f"{kept.name}-{os.getpid()}")
    try:
        launch(["gsm8k_vgf", "--skip_evaluation", "true", "--output_dir", str(unfinished)])
        if not kept.exists():  # another process may have been faster
            unfinished.rename(kept)
    except KeyboardInterrupt:
        print("Interrupted. Nothing of the model is kept; the next start trains it from the beginning.", flush=True)
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return kept
