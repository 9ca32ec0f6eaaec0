"""The text: source files of the running Python's standard library, split by package.

A file belongs to the split of its top-level package or module, so that no package is in two splits.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation", "test"]

LONGEST_FILE = 80_000
"""Characters after which a file is left out: tables and generated parsers."""

LEFT_OUT = frozenset(
    {"test", "site-packages", "__pycache__", "pydoc_data", "lib2to3", "idlelib", "turtledemo"}
)
"""Folders that are not read: tests, data and programs in another style."""


@dataclass(frozen=True)
class SourceFile:
    """One source file.

    Attributes:
        path: Path inside the standard library, with forward slashes.
        split: Where its package belongs.
        sha256: Hash of its bytes.
        text: Its text.
    """

    path: str
    split: Split
    sha256: str
    text: str


def split_of(package: str) -> Split:
    """Return the split of a top-level package or module, decided by a hash of its name."""
    bucket = int(hashlib.sha256(package.encode()).hexdigest(), 16) % 20
    if bucket == 0:
        return "test"
    return "validation" if bucket == 1 else "train"


def standard_library(root: Path | None = None) -> list[SourceFile]:
    """Return the source files of the standard library, sorted by path.

    Args:
        root: Its folder; that of the running Python by default.

    Raises:
        FileNotFoundError: If there are no source files.
    """
    folder = root or Path(sysconfig.get_paths()["stdlib"])
    files = list(_read(folder))
    if not files:
        raise FileNotFoundError(f"No Python source files in {folder}.")
    return files


def _read(folder: Path) -> Iterator[SourceFile]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if LEFT_OUT & set(parts) or "tests" in parts:
            continue
        raw = path.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if not 200 <= len(text) <= LONGEST_FILE:
            continue
        package = parts[0].removesuffix(".py")
        yield SourceFile("/".join(parts), split_of(package), hashlib.sha256(raw).hexdigest(), text)


def python_version() -> str:
    """Return the version of Python whose library is read."""
    return platform.python_version()
