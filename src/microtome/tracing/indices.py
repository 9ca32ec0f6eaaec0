"""Indices along an axis: single ones, lists and ranges, and their text form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from microtome.errors import SelectorError


@dataclass(frozen=True)
class Span:
    """A range of indices, as in ``[pos=4:9]``; ``None`` means the open end."""

    start: int | None
    stop: int | None

    def __str__(self) -> str:
        return (
            f"{'' if self.start is None else self.start}:{'' if self.stop is None else self.stop}"
        )

    def resolve(self, size: int) -> tuple[int, ...]:
        """Return the indices this range covers among ``size``."""
        return tuple(range(size)[slice(self.start, self.stop)])


Index = tuple[int, ...] | Span


def resolve_index(index: Index, size: int, what: str) -> tuple[int, ...]:
    """Return the indices that an index selects among ``size``, negative ones counted from the end.

    Raises:
        SelectorError: If one is out of range or nothing is selected.
    """
    found = index.resolve(size) if isinstance(index, Span) else index
    wrong = [i for i in found if not -size <= i < size]
    if wrong:
        raise SelectorError(
            f"{what}: {wrong[0]} is out of range; there are {size} (0 to {size - 1})."
        )
    if not found:
        raise SelectorError(f"{what}: {index_text(index)} selects nothing among {size}.")
    return tuple(i % size for i in found)


def as_index(value: int | Sequence[int] | slice | Index, what: str) -> Index:
    """Return an index value for an integer, a sequence of integers or a slice.

    Raises:
        SelectorError: If it is none of these, empty, or a slice with a step.
    """
    if isinstance(value, Span):
        return value
    if isinstance(value, bool):
        raise SelectorError(f"{what}={value!r} is not an index.")
    if isinstance(value, int):
        return (value,)
    if isinstance(value, slice):
        if value.step not in (None, 1):
            raise SelectorError(f"{what}={value!r}: slices with a step are not supported.")
        return Span(value.start, value.stop)
    try:
        items = tuple(int(i) for i in value)
    except (TypeError, ValueError):
        raise SelectorError(
            f"{what}={value!r} is not an integer, a list of integers or a slice."
        ) from None
    if not items:
        raise SelectorError(f"{what} is empty and would select nothing.")
    return items


def parse_index(value: str, text: str) -> Index:
    """Return the index that a text such as ``5``, ``6,9`` or ``4:9`` means.

    Args:
        value: The index.
        text: The whole text, for the error.

    Raises:
        SelectorError: If it is no index.
    """
    if re.fullmatch(r"-?\d+(\s*,\s*-?\d+)*", value):
        return tuple(int(i) for i in value.split(","))
    match = re.fullmatch(r"(-?\d+)?:(-?\d+)?", value)
    if match is None:
        raise SelectorError(f"{text!r}: {value!r} is not an index such as 5, 6,9 or 4:9.")
    start, stop = (None if g is None else int(g) for g in match.groups())
    return Span(start, stop)


def index_text(index: Index) -> str:
    """Return the text form of an index."""
    return str(index) if isinstance(index, Span) else ",".join(str(i) for i in index)
