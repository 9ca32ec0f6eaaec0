"""Refusing places that cannot be written before any work is done."""

from __future__ import annotations

from pathlib import Path


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written before any work is done.

    Raises:
        OutputError: If it cannot be made or written.
    """
    from microtome.errors import OutputError
    from microtome.store.atomic import atomic_file

    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; --out needs a folder.")
    existing = folder
    while not existing.exists():
        existing = existing.parent
    try:
        with atomic_file(existing / ".microtome-probe") as probe:
            probe.write_text("")
        (existing / ".microtome-probe").unlink()
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error}. Choose another folder with --out."
        ) from None


def check_file(path: Path) -> None:
    """Refuse a file that cannot be written.

    Raises:
        OutputError: If it is a folder, or its folder cannot be written.
    """
    from microtome.errors import OutputError

    if path.is_dir():
        raise OutputError(f"{path} is a folder; --out needs a file in it.")
    check_folder(path.parent)
