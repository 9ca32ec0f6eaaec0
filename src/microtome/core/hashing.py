"""SHA-256 of texts, files, JSON values and named arrays."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from microtome.errors import DataError

_CHUNK = 1 << 20


def sha256_text(text: str) -> str:
    """Return the hexadecimal SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes.

    Raises:
        DataError: The file does not exist or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as handle:
            while chunk := handle.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give an existing file") from error
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hexadecimal SHA-256 of a value's canonical JSON text.

    Keys are sorted and no spaces are written, so equal values have equal hashes.

    Raises:
        DataError: The value holds something that JSON cannot express, NaN included.
    """
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise DataError(
            f"cannot hash {type(value).__name__}: {error}; give numbers, texts, lists and mappings"
        ) from error
    return sha256_text(text)


def sha256_arrays(arrays: Mapping[str, Any]) -> str:
    """Return the hexadecimal SHA-256 of named arrays: names, dtypes, shapes and bytes.

    Args:
        arrays: Name to numpy array or torch tensor; the order of the names does not count.
            A tensor and the numpy array of the same dtype have the same hash.

    Raises:
        DataError: An array holds Python objects.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        dtype, shape, data = _parts(arrays[name], name)
        digest.update(json.dumps([name, dtype, shape]).encode())
        digest.update(data)
    return digest.hexdigest()


def _parts(array: Any, name: str) -> tuple[str, list[int], memoryview]:
    """Return the dtype's name, the shape and the raw bytes of one array or tensor."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        tensor = array.detach().cpu().contiguous()
        raw = tensor.reshape(-1).view(torch.uint8).numpy()
        return str(tensor.dtype).removeprefix("torch."), list(tensor.shape), raw.data
    values = np.asarray(array)
    if values.dtype.hasobject:
        raise DataError(f"array {name!r} holds Python objects; expected numbers or texts")
    raw = np.frombuffer(values.tobytes(), dtype=np.uint8)
    return str(values.dtype), list(values.shape), raw.data
