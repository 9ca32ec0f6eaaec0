"""Shards: files of rows of activations with the token that each row belongs to."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from microtome.core.hashing import sha256_file
from microtome.errors import FormatError
from microtome.sae.harvesting.collecting import Collected
from microtome.sae.harvesting.manifest import ShardRecord
from microtome.sae.harvesting.settings import Settings
from microtome.store.arrays import check_safetensors, save_arrays

COLUMNS = ("token_id", "doc", "pos")
"""Columns beside the sites: int32, the token, its document and its place in the document."""

MADE_ANEW = "run the same harvest with resume to write it anew"


def file_name(number: int) -> str:
    """Return the name of a shard's file."""
    return f"acts-{number:05}.safetensors"


def write_shard(folder: Path, number: int, found: Collected) -> ShardRecord:
    """Write one shard, atomically, and return its record.

    Raises:
        OutputError: If it cannot be written; a part of it never stays.
    """
    path = folder / file_name(number)
    # one entry only: safetensors writes several in an order that changes
    save_arrays(path, {**found.values, **found.columns}, metadata={"format": "microtome.shard/1"})
    return ShardRecord(
        file=path.name,
        rows=found.rows,
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        tokens=found.tokens,
        special=found.special,
        outliers=found.outliers,
    )


def open_shard(
    folder: Path, record: ShardRecord, settings: Settings, *, hashed: bool
) -> dict[str, Tensor]:
    """Return the tensors of a shard, mapped from its file and not copied.

    Args:
        folder: Where the shard is.
        record: What the manifest says of it.
        settings: Of the whole harvest.
        hashed: Whether to compare its hash, which reads the whole file.

    Raises:
        FormatError: If it is missing, truncated, changed or holds other tensors.
    """
    path = folder / record.file
    check_shard(folder, record, hashed=hashed)
    try:
        with safe_open(str(path), framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FormatError(f"cannot read shard {path}: {error}; {MADE_ANEW}.") from error
    dtype = getattr(torch, settings.dtype)
    expected = {site: ([record.rows, d], dtype) for site, d in settings.sites.items()}
    expected |= {name: ([record.rows], torch.int32) for name in COLUMNS}
    held = {name: (list(t.shape), t.dtype) for name, t in tensors.items()}
    if held != expected:
        raise FormatError(
            f"shard {path} holds {held}; the manifest asks for {expected}; {MADE_ANEW}."
        )
    return tensors


def check_shard(folder: Path, record: ShardRecord, *, hashed: bool) -> None:
    """Check that a shard is there, whole and, if asked, unchanged.

    Raises:
        FormatError: If it is not.
    """
    path = folder / record.file
    if not path.is_file():
        raise FormatError(f"shard {path} is missing; {MADE_ANEW}.")
    size = path.stat().st_size
    if size != record.bytes:
        raise FormatError(
            f"shard {path} has {size:,} bytes where the manifest asks for {record.bytes:,}; it is "
            f"{'truncated' if size < record.bytes else 'damaged'}: {MADE_ANEW}."
        )
    check_safetensors(path)
    if hashed and sha256_file(path) != record.sha256:
        raise FormatError(
            f"shard {path} is not the file that was harvested (other SHA-256); {MADE_ANEW}."
        )
