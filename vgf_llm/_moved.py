# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Module names of release 0.1: imports under them still work, and say where the module stands now."""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "vgf_llm.models.vgf_model": "vgf_llm.vgf_model",
    "vgf_llm.trainer.buffer": "vgf_llm.trainer.keep.buffer",
    "vgf_llm.trainer.checkpoint": "vgf_llm.trainer.save.checkpoint",
    "vgf_llm.trainer.metrics": "vgf_llm.trainer.measure.metrics",
    "vgf_llm.trainer.preferences": "vgf_llm.trainer.choose.logged",
    "vgf_llm.trainer.prompt_selection": "vgf_llm.trainer.choose.schedule",
    "vgf_llm.trainer.rewards": "vgf_llm.trainer.score.rewards",
    "vgf_llm.trainer.rollout_config": "vgf_llm.trainer.config",
    "vgf_llm.trainer.rounds": "vgf_llm.trainer.keep.rounds",
    "vgf_llm.trainer.sharding": "vgf_llm.trainer.save.sharding",
    "vgf_llm.trainer.validation": "vgf_llm.trainer.choose.prompts",
    "vgf_llm.trainer.vgf_config": "vgf_llm.trainer.config",
}
# The settings that a configuration shares with TRL's are TRL's own class now.
_ELSEWHERE = {"RolloutConfig": ("trl", "GRPOConfig")}


class _MovedModules(MetaPathFinder, Loader):
    """Gives a module under its old name the names of the module that took its place."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Finds modules that have moved."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Looks names up in the new place when they are asked for."""
        new = MOVED[module.__name__]
        warnings.warn(f"`{module.__name__}` is `{new}` now.", FutureWarning, stacklevel=2)

        def look_up(name: str) -> Any:
            home, known = _ELSEWHERE.get(name, (new, name))
            return getattr(import_module(home), known)

        module.__getattr__ = look_up  # type: ignore[method-assign]


def install() -> None:
    """Makes the old names importable."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
