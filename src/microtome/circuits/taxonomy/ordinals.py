"""Ordinal lists as token ids of a model: digits, letters, months, weekdays, or a user's own."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microtome.tracing.model import Model

LISTS: dict[str, tuple[str, ...]] = {
    "digits": tuple(string.digits),
    "letters": tuple(string.ascii_lowercase),
    "capitals": tuple(string.ascii_uppercase),
    "numbers": ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    "months": (
        "January", "February", "March", "April", "May", "June", "July", "August", "September",
        "October", "November", "December",
    ),
    "weekdays": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
}  # fmt: skip
"""The lists that are looked for in a tokenizer."""

SHORTEST = 4
"""Members a list needs at least."""


def token_lists(model: Model, lists: Mapping[str, Sequence[str]]) -> dict[str, tuple[int, ...]]:
    """Return the lists as token ids, with and without a space in front.

    A list is cut into its longest stretch of neighbors that are single tokens.
    """
    if model.tokenizer is None:
        return {}
    found: dict[str, tuple[int, ...]] = {}
    for name, members in {**LISTS, **lists}.items():
        for front, label in (("", name), (" ", f"{name} behind a space")):
            ids = [_single(model, front + text) for text in members]
            stretch = _longest(ids)
            if len(stretch) >= SHORTEST and stretch not in found.values():
                found[label] = stretch
    return found


def _single(model: Model, text: str) -> int | None:
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    known = getattr(model.tokenizer, "unk_token_id", None)
    return int(ids[0]) if len(ids) == 1 and ids[0] != known else None


def _longest(ids: Sequence[int | None]) -> tuple[int, ...]:
    best: tuple[int, ...] = ()
    now: tuple[int, ...] = ()
    for number in ids:
        now = (*now, number) if number is not None and number not in now else ()
        best = max(best, now, key=len)
    return best
