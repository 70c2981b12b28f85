# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Files of a saved folder: each is written whole, the folder lists them with checksums, and reading checks both."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

# Files up to this size are hashed whole. Of larger ones the start, with the names and shapes of all tensors, is hashed
# together with blocks at equal distances: another file is told apart, a single changed weight may not be.
_WHOLE_BYTES, _START_BYTES, _BLOCK_BYTES, _BLOCKS = 256 * 2**20, 8 * 2**20, 2**16, 256


@contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside `path`, which takes its place once it is written."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise OSError(getattr(error, "errno", None), f"could not be written ({error})", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file that is either whole or absent; raises OSError, which names `path`."""
    with _written_whole(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def write_json(data: Any, path: Path) -> None:
    """Writes a JSON file that is either whole or absent; raises OSError, which names `path`."""
    text = json.dumps(data, indent=2, sort_keys=True) + "\n"
    with _written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file that exists; raises ValueError, which names it, if it holds anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); the file is truncated or foreign.") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}; expected a JSON object.")
    return data


def load_tensors(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reads a safetensors file and checks that it has the names and shapes of `expected`.

    Raises FileNotFoundError, or ValueError if it is truncated or holds others; the message says what was expected and
    found.
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
        raise ValueError(
            f"{path} holds {_difference(found_shapes, shapes)}; the model beside it expects "
            f"{_difference(shapes, found_shapes)}."
        )
    return found


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    differing = [f"{name} {list(shape)}" for name, shape in ours.items() if theirs.get(name) != shape]
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    return ", ".join(differing[:3]) + more if differing else "nothing else"


def load_whole(auto_class: Any, origin: str | Path, **kwargs: Any) -> Any:
    """Calls `from_pretrained`, and refuses weights that transformers would leave at random.

    Raises ValueError, which names the tensor, if the files lack one of the model or hold one of another shape.
    """
    options = {"ignore_mismatched_sizes": True, **kwargs}  # so that they are named below
    model, info = auto_class.from_pretrained(str(origin), output_loading_info=True, **options)
    mismatched = sorted((name, list(found), list(expected)) for name, found, expected in info["mismatched_keys"])
    if mismatched:
        name, shape, expected = mismatched[0]
        raise ValueError(
            f"The weights in {str(origin)!r} do not fit the model: {name} has the shape {shape}, expected {expected} "
            f"(of {len(mismatched)} such). The files are of different models."
        )
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        found = sorted(info["unexpected_keys"])[:3]
        raise ValueError(
            f"The weights in {str(origin)!r} lack {', '.join(missing[:3])}{more}, which would be left at random; "
            f"tensors without a place in the model: {', '.join(found) or 'none'}. The files are not whole."
        )
    return model


def file_digest(path: Path) -> str:
    """Returns size and checksum of a file, such as `"12 bytes, blake2b 6f1ed002ab559585"`.

    Beyond 256 MiB its start, its end and blocks at equal distances are read, not all of it.
    """
    size, digest = path.stat().st_size, hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            hashlib.file_digest(file, lambda: digest)
            return f"{size} bytes, blake2b {digest.hexdigest()}"
        digest.update(file.read(_START_BYTES))
        for index in range(_BLOCKS):
            file.seek(_START_BYTES + (size - _START_BYTES - _BLOCK_BYTES) * index // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
    return f"{size} bytes, blake2b of samples {digest.hexdigest()}"


def files_below(directory: Path) -> list[str]:
    """Returns the paths of all files in a folder and in those below it, relative to it, in order."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def check_files(directory: Path, files: Mapping[str, str], listing: str) -> None:
    """Checks that the files of a folder have the digests by which `listing`, a file's name, lists them.

    Raises FileNotFoundError if one is missing, ValueError if one is truncated, changed or of another folder; both name
    it.
    """
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist, but {listing} beside it lists it: the folder is not whole. Copy all of it."
            )
        found = file_digest(path)
        if found != expected:
            raise ValueError(
                f"{path} is not the file that {listing} lists: expected {expected}, found {found}. It is truncated, "
                "was changed, or is of another folder. Copy the folder again, or save the model again."
            )
