"""Reading texts: files, folders of files, and JSON lines with one text each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from microtome.errors import DataError

FIELD = "text"
"""The field of a JSON line that holds its text."""


def read_texts(paths: Sequence[str | Path]) -> list[str]:
    """Return the texts of files, and of all files below folders that are UTF-8.

    A file is one text; a file whose name ends with ``.jsonl`` has one on each line, as
    ``{"text": "..."}``.

    Args:
        paths: Files and folders.

    Raises:
        DataError: A file cannot be read, is not UTF-8, or a JSON line has no text.
    """
    texts: list[str] = []
    for path in map(Path, paths):
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            try:
                whole = file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                if not path.is_dir():
                    raise DataError(
                        f"{file} is not UTF-8 text; give text files or a folder of them."
                    ) from None
                continue
            except OSError as error:
                raise DataError(
                    f"{file} cannot be read: {error.strerror}; give an existing file or folder."
                ) from None
            texts += _lines(file, whole) if file.suffix == ".jsonl" else [whole]
    return texts


def _lines(file: Path, whole: str) -> list[str]:
    texts = []
    for number, line in enumerate(whole.split("\n"), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[FIELD]
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise DataError(
                f'{file}, line {number}: expected a JSON object with a text, {{"{FIELD}": "..."}}; '
                f"got {line[:60]!r}."
            )
        texts.append(text)
    return texts
