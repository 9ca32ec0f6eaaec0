"""Files and folders that are either whole or not there.

Everything is written under a temporary name beside its place, synced to the disk and then
renamed, so that a killed process leaves the old file or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from microtome.core.plain import plain
from microtome.errors import MicrotomeError, OutputError

_REMEDIES = {
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.ENOSPC: "free some space or choose another disk",
    errno.EDQUOT: "free some space or choose another disk",
    errno.EISDIR: "choose a file name that is not a folder",
    errno.ENOTDIR: "a part of the path is a file; choose another path",
    errno.EEXIST: "a part of the path is a file; choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to; it takes the final name when the block ends well.

    Missing parent folders are made. On an error, or Ctrl-C, the temporary file is removed
    and the old file, if there was one, stays as it was.

    Args:
        path: The final place of the file.

    Yields:
        A path in the same folder; the block must create this file.

    Raises:
        OutputError: The file could not be written, synced or renamed.
    """
    target = Path(path)
    temporary = _temporary(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    except OSError as error:
        if not _concerns(error, temporary, target):
            raise
        raise _output_error(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write bytes so that the file is either the old or the new one.

    Args:
        path: Where to write; missing parent folders are made.
        data: The whole content.

    Returns:
        The path written.

    Raises:
        OutputError: The file could not be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text in UTF-8, with its line ends as they are, old or new and never a part.

    Raises:
        OutputError: The file could not be written.
    """
    return write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> Path:
    """Write a value as strict, indented JSON; numbers that are not finite become null.

    Args:
        path: Where to write.
        value: Anything that ``microtome.core.plain.plain`` takes.

    Raises:
        OutputError: The file could not be written.
        DataError: The value has no plain form.
    """
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it takes the final name when the block ends well.

    On an error, or Ctrl-C, the temporary folder is removed and nothing else has changed.
    Where the folder exists already, the new files replace those of the same name one by one
    and all others stay: nothing is deleted that was not written here.

    Args:
        path: The final place of the folder.

    Yields:
        An empty folder on the same disk.

    Raises:
        OutputError: The folder could not be made, or a file in it not be synced or moved.
    """
    target = Path(path)
    exists = target.is_dir()
    temporary = _temporary(target / "content" if exists else target)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                _sync(file)
        if exists:
            _merge(temporary, target)
        else:
            temporary.replace(target)
            _sync(target.parent)
    except OSError as error:
        if not _concerns(error, temporary, target):
            raise
        raise _output_error(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(target: Path) -> Path:
    """Return an unused hidden name beside the target."""
    return target.parent / f".{target.name[:80]}.{secrets.token_hex(6)}.tmp"


def _merge(source: Path, target: Path) -> None:
    """Move every file of one folder to the same place in another, on the same disk."""
    for file in sorted(source.rglob("*")):
        place = target / file.relative_to(source)
        if file.is_dir():
            place.mkdir(exist_ok=True)
        else:
            file.replace(place)
    _sync(target)


def _sync(path: Path) -> None:
    """Make the disk hold what was written to a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _concerns(error: OSError, temporary: Path, target: Path) -> bool:
    """Return whether an error is about the files written here.

    An error without a file name (a full disk) is; one that names a file elsewhere, or that
    microtome has worded already, comes from the caller's own work and passes as it is.
    """
    if isinstance(error, MicrotomeError):
        return False
    if not isinstance(error.filename, str | Path):
        return True
    path = Path(error.filename)
    return path.is_relative_to(temporary) or path in (target, *target.parents)


def _output_error(target: Path, error: OSError) -> OutputError:
    """Return the error that says what could not be written, why, and what to do."""
    reason = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, "choose another place")
    return OutputError(f"cannot write {target}: {reason}; nothing was changed there; {remedy}")
