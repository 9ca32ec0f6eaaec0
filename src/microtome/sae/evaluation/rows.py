"""Files of one JSON object a line that hold texts by name: labelled texts, and facts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from microtome.errors import DataError


def read_rows(path: str | Path, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the texts of each line's object, in the order of the names.

    Args:
        path: A JSONL file; empty lines are left out.
        names: Fields that every line has; others are ignored.

    Raises:
        DataError: The file cannot be read, or a line lacks a text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}; give a JSONL file") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            values = [row[name] for name in names]
        except (ValueError, KeyError, TypeError, RecursionError):
            values = []
        if not values or not all(isinstance(value, str) for value in values):
            raise DataError(
                f"{path}, line {number}: expected a JSON object with the texts "
                f"{', '.join(names)}; got {line[:60]!r}"
            )
        found.append(tuple(values))
    return found
