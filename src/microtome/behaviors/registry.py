"""Behaviors by name, and from files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from microtome.behaviors.behavior import Behavior
from microtome.behaviors.generators import code, english, lookup, numbers, statements, symbols
from microtome.errors import UnknownNameError, nearest

_GENERATORS: dict[str, Callable[..., Behavior]] = {
    **english.GENERATORS,
    **code.GENERATORS,
    **statements.GENERATORS,
    **lookup.GENERATORS,
    **numbers.GENERATORS,
    **symbols.GENERATORS,
}

CODE = tuple(code.GENERATORS)
"""Names of the behaviors in Python code that have natural items."""

PYTHON = (*CODE, *statements.GENERATORS, "docstring-arguments")
"""Names of all behaviors in Python code."""


def names() -> tuple[str, ...]:
    """Return the names of all behaviors, sorted."""
    return tuple(sorted(_GENERATORS))


def get(name: str | Path, *, n: int = 200, seed: int = 0) -> Behavior:
    """Return a behavior by its name (``-`` and ``_`` are the same), or from files.

    Args:
        name: A name, a path that ends in ``.jsonl`` or ``.csv``, or a contrast of two files of
            prompts, ``contrast:A.txt,B.txt,answer= No|Sorry,wrong= Yes``.
        n: Examples over all splits, for generated behaviors.
        seed: For generated behaviors.

    Raises:
        UnknownNameError: If there is none of this name.
        DataError: If the file cannot be used; the message names the row.
    """
    from microtome.behaviors.contrasts import PREFIX, parse_contrast
    from microtome.behaviors.loaders import SUFFIXES, load

    text = str(name)
    if text.startswith(PREFIX):
        return parse_contrast(text, seed=seed)
    key = text.strip().replace("_", "-")
    if key in _GENERATORS:
        return _GENERATORS[key](n, seed=seed)
    if Path(text).suffix.lower() in SUFFIXES or Path(text).exists():
        return load(text)
    raise UnknownNameError(
        f"No behavior {text!r}{nearest(key, names())}. A file ends in .jsonl or .csv."
    )
