# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Safetensors files that are written whole and checked when they are read."""

import os
import tempfile
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def atomic_save_file(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file that is either whole or absent.

    Args:
        tensors: What to write.
        path: Where.
        metadata: The file's string metadata.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def load_tensors(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reads a safetensors file and checks names and shapes.

    Args:
        path: The file.
        expected: Tensors with the names and shapes that it must have.

    Returns:
        The tensors.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is truncated, or holds other names or shapes; the message says what was expected and found.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; the folder is no complete VGF model.")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); it is truncated or foreign.") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    found_shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != found_shapes:
        raise ValueError(f"{path} holds {found_shapes}; the configuration beside it expects {shapes}.")
    return found
