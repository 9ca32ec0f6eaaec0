"""Reading foreign files with limits: size, encoding, strict JSON, checked fields."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microtome.errors import FormatError

LIMIT_BYTES = 256 * 2**20
"""Largest file that is read unless asked otherwise: 256 MiB."""

LIMIT_EDGES = 5_000_000
"""Most edges of a graph that is built for a file."""


def read_text(path: str | Path, *, limit_bytes: int = LIMIT_BYTES) -> str:
    """Return the text of a file of limited size.

    Raises:
        FormatError: The file is missing, too large, empty, or not text in UTF-8.
    """
    place = Path(path)
    try:
        size = place.stat().st_size
        if size > limit_bytes:
            raise FormatError(
                f"{place} has {size} bytes, more than the {limit_bytes} that are read; check that "
                "it is a circuit, or raise limit_bytes"
            )
        text = place.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise FormatError(
            f"cannot read {place}: {error.strerror}; give an existing file"
        ) from error
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{place} is not text in UTF-8 ({error.reason}); export it again"
        ) from None
    if not text.strip():
        raise FormatError(f"{place} is empty; export it again")
    return text


def read_json(path: str | Path, *, limit_bytes: int = LIMIT_BYTES) -> dict[str, Any]:
    """Return the object of a strict JSON file: no NaN, no infinity, no key twice.

    Raises:
        FormatError: The file cannot be read, is truncated, or is not such an object.
    """
    text = read_text(path, limit_bytes=limit_bytes)
    try:
        found = json.loads(text, parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{path} is not strict JSON or is truncated ({error}); export it again"
        ) from error
    if not isinstance(found, dict):
        raise FormatError(f"{path} holds a JSON {type(found).__name__}; expected an object in {{}}")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


_WORDS = {
    str: "text", int: "a whole number", float: "a finite number", bool: "true or false",
    list: "a list", dict: "an object",
}  # fmt: skip


def field(record: Mapping[str, Any], name: str, kind: type, *, where: str) -> Any:
    """Return a field of a record, checked.

    Args:
        record: The record.
        name: Its key.
        kind: ``str``, ``int``, ``float`` (finite), ``bool``, ``list`` or ``dict``.
        where: What the record is, for the message.

    Raises:
        FormatError: The field is missing or of another kind.
    """
    if not isinstance(record, Mapping):
        raise FormatError(f"{where} is {_brief(record)}; expected an object")
    if name not in record:
        raise FormatError(f"{where} lacks {name!r}; expected {_WORDS[kind]}")
    return checked(record[name], kind, where=f"{name!r} of {where}")


def checked(value: Any, kind: type, *, where: str) -> Any:
    """Return a value if it is of a kind (see ``field``).

    Raises:
        FormatError: It is of another kind.
    """
    plain = type(value) is kind or (kind is float and type(value) is int)
    if plain and kind is float:
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
        plain = math.isfinite(value)
    if not plain:
        raise FormatError(f"{where} is {_brief(value)}; expected {_WORDS[kind]}")
    return value


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
