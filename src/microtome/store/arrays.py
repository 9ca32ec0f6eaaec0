"""Named arrays on disk, in safetensors only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from microtome.core.plain import is_tensor
from microtome.errors import DataError, FormatError, OutputError, UnsafeFileError
from microtome.store.atomic import atomic_file

_HEADER_LIMIT = 100_000_000
"""Longest header that the safetensors format allows, in bytes."""


def save_arrays(
    path: str | Path, arrays: Mapping[str, Any], *, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write named arrays to one safetensors file, atomically.

    Args:
        path: Where to write.
        arrays: Name to numpy array or torch tensor, any shape. If one is a tensor of a
            dtype that numpy lacks (bfloat16), all are written through torch.
        metadata: Text to text, kept in the file's header.

    Returns:
        The path written.

    Raises:
        DataError: An array holds Python objects or texts, or metadata is not text.
        OutputError: The file could not be written.
    """
    notes = dict(metadata or {})
    if not all(isinstance(item, str) for pair in notes.items() for item in pair):
        raise DataError("metadata of arrays must map text to text; turn numbers into text")
    write = _write_tensors if any(is_tensor(a) for a in arrays.values()) else _write_numpy
    with atomic_file(path) as temporary:
        # the library leaves the file to its owner alone; every other file of a result is as usual
        temporary.touch()
        usual = temporary.stat().st_mode
        try:
            write(temporary, arrays, notes)
            temporary.chmod(usual)
        except SafetensorError as error:
            raise OutputError(f"cannot write {path}: {error}; choose another place") from error
    return Path(path)


def load_arrays(path: str | Path) -> dict[str, NDArray[Any]]:
    """Read every array of a safetensors file as numpy.

    Args:
        path: The file.

    Returns:
        Name to array; bfloat16 comes back as float32, which holds it exactly.

    Raises:
        FormatError: The file is missing, truncated, empty or of another format.
        UnsafeFileError: The file is a pickle.
    """
    check_safetensors(path)
    try:
        with safe_open(str(path), framework="np") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FormatError(f"cannot read {path}: {error}; write it again") from error
    except (TypeError, AttributeError):
        return _load_through_torch(path)


def load_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata in the header of a safetensors file.

    Raises:
        FormatError: The file is missing, truncated or of another format.
        UnsafeFileError: The file is a pickle.
    """
    header = check_safetensors(path)
    return dict(header.get("__metadata__", {}))


def check_safetensors(path: str | Path) -> dict[str, Any]:
    """Check that a file is a whole safetensors file, without reading its arrays.

    Args:
        path: The file.

    Returns:
        The parsed header: tensor name to dtype, shape and data offsets.

    Raises:
        FormatError: The file is missing, truncated, too long or of another format.
        UnsafeFileError: The file is a pickle, which could run code when read.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            start = handle.read(512)
            refuse_pickle(file, start)
            length = int.from_bytes(start[:8], "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise FormatError(
                    f"{file} is not a safetensors file or is truncated ({size:,} bytes); "
                    "write or fetch it again"
                )
            handle.seek(8)
            header = json.loads(handle.read(length))
            ends = [e["data_offsets"][1] for name, e in header.items() if name != "__metadata__"]
    except OSError as error:
        raise FormatError(f"cannot read {file}: {error.strerror}; give an existing file") from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"{file} has no safetensors header; expected a file written as safetensors"
        ) from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise FormatError(
            f"{file} has {size:,} bytes where its header asks for {expected:,}; it is "
            f"{'truncated' if size < expected else 'damaged'}: write or fetch it again"
        )
    return dict(header)


def refuse_pickle(path: str | Path, start: bytes) -> None:
    """Refuse a file whose first bytes are those of a pickle or of a PyTorch archive.

    Args:
        path: Named in the message.
        start: The first bytes of the file, 512 or more where it is that long.

    Raises:
        UnsafeFileError: The file is a pickle, which could run code when read.
    """
    # A safetensors header of 640 bytes starts like a pickle of protocol 2, but then comes "{".
    is_pickle = start[:1] == b"\x80" and start[1:2] <= b"\x05" and start[8:9] != b"{"
    is_archive = start[:4] == b"PK\x03\x04"
    if is_pickle or (is_archive and b"data.pkl" in start):
        raise UnsafeFileError(
            f"{path} is a {'PyTorch archive' if is_archive else 'pickle'}, which can run code "
            "when it is read; expected safetensors: convert it on a machine you trust"
        )


def _numeric(array: Any, name: str) -> NDArray[Any]:
    """Return a contiguous array of numbers in native byte order."""
    values = np.asarray(array)
    if values.dtype.kind not in "biufc":
        raise DataError(f"array {name!r} has dtype {values.dtype}; expected numbers or booleans")
    return np.array(values, dtype=values.dtype.newbyteorder("="), order="C")


def _write_numpy(path: Path, arrays: Mapping[str, Any], notes: dict[str, str]) -> None:
    """Write numpy arrays."""
    from safetensors.numpy import save_file

    if not arrays:
        # safetensors 0.8 writes a broken header for metadata without arrays.
        header = json.dumps({"__metadata__": notes}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        return
    save_file({name: _numeric(array, name) for name, array in arrays.items()}, path, notes)


def _write_tensors(path: Path, arrays: Mapping[str, Any], notes: dict[str, str]) -> None:
    """Write arrays of which some are tensors; tensors that share memory are copied."""
    import torch
    from safetensors.torch import save_file

    tensors = {
        name: a.detach().cpu().contiguous().clone()
        if is_tensor(a)
        else torch.from_numpy(_numeric(a, name))
        for name, a in arrays.items()
    }
    save_file(tensors, path, notes)


def _load_through_torch(path: str | Path) -> dict[str, NDArray[Any]]:
    """Read arrays with a dtype that numpy lacks; bfloat16 is widened to float32."""
    import torch
    from safetensors.torch import load_file

    loaded = load_file(str(path))
    return {
        name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in loaded.items()
    }
