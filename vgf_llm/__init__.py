# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""vgf-llm: fine-tune and steer language models by Value Gradient Flow (arXiv 2604.14265)."""

from typing import TYPE_CHECKING, Any

from vgf_llm import _moved

__version__ = "0.2.0"

if TYPE_CHECKING:
    from vgf_llm.models.config import TransportConfig
    from vgf_llm.trainer import VGFConfig, VGFTrainer
    from vgf_llm.trainer.watch.plots import PlotCallback
    from vgf_llm.trainer.watch.progress import VGFProgressCallback
    from vgf_llm.vgf_model import VGFModel

_HOMES = {
    "TransportConfig": "vgf_llm.models.config",
    "VGFModel": "vgf_llm.vgf_model",
    "PlotCallback": "vgf_llm.trainer.watch.plots",
    "VGFConfig": "vgf_llm.trainer",
    "VGFProgressCallback": "vgf_llm.trainer.watch.progress",
    "VGFTrainer": "vgf_llm.trainer",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy: `vgf_llm.functional` needs torch alone, not transformers and trl.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vgf_llm' has no attribute {name!r}")


_moved.install()
