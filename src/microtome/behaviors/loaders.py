"""Behaviors from a user's JSONL or CSV file; errors name the row.

Columns: ``clean``, ``corrupt``, ``answer`` (or ``answers``), ``wrong`` (or ``wrongs``); optional
``cluster``, ``template``, ``split``, ``feature.NAME``. In CSV several answers are separated by
``|``. Without ``split``, clusters (or rows) are spread over the splits by a seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from microtome.behaviors.behavior import Behavior
from microtome.behaviors.items import SPLITS, Feature, Item, Span, Split
from microtome.core.seeds import rng
from microtome.errors import DataError, EmptyDataError
from microtome.store.tables import Row, read_csv, read_jsonl

SUFFIXES = (".jsonl", ".csv")

_SHARES = (0.5, 0.7)
"""Where, among the shuffled clusters, validation and test begin."""


def load(path: str | Path, *, seed: int = 0) -> Behavior:
    """Return the behavior in a JSONL or CSV file.

    Args:
        path: The file.
        seed: Spreads clusters over the splits where the file names none.

    Raises:
        DataError: If a row is wrong: missing columns, NaN, a wrong type, a binary file.
        EmptyDataError: If the file holds no rows.
        PairError: If a pair repeats, or an answer is also a wrong answer.
    """
    place = Path(path)
    if not place.is_file():
        raise DataError(f"There is no file {place}.")
    rows = read_csv(place) if place.suffix == ".csv" else read_jsonl(place)
    if not rows:
        raise EmptyDataError(f"{place} holds no rows.")
    items = [_item(row) for row in rows]
    if not any("split" in row for row in rows):
        items = _with_splits(items, seed)
    name = place.stem
    return Behavior(name, name, f"Pairs from {place.name}.", tuple(items), seed=seed)


def _item(row: Row) -> Item:
    roles = row.get("roles") or {}
    if not isinstance(roles, Mapping):
        raise DataError(f"{row.place}: roles must be an object of character ranges.")
    template = _text(row, "template", "file")
    return Item(
        clean=_text(row, "clean"),
        corrupt=_text(row, "corrupt"),
        answers=_answers(row, "answer"),
        wrongs=_answers(row, "wrong"),
        cluster=_text(row, "cluster", f"row {row.number}"),
        template=template,
        split=_split(row),
        roles={str(k): _spans(v, row) for k, v in roles.items()},
        features=_features(row),
        natural=bool(row.get("natural", False)),
        source=row.place,
    )


def _text(row: Row, name: str, default: str | None = None) -> str:
    value = row.get(name)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        if default is not None:
            return default
        raise DataError(
            f"{row.place}: the column {name!r} is missing or empty. Columns: {', '.join(row)}."
        )
    if not isinstance(value, str):
        raise DataError(
            f"{row.place}: {name!r} is {type(value).__name__} {value!r}; expected text."
        )
    return value


def _answers(row: Row, name: str) -> tuple[str, ...]:
    value = row.get(f"{name}s", row.get(name))
    if isinstance(value, str) and value:
        return tuple(part for part in value.split("|") if part)
    if isinstance(value, list) and value and all(isinstance(v, str) and v for v in value):
        return tuple(value)
    raise DataError(f"{row.place}: {name!r} is missing or not text: {value!r}.")


def _split(row: Row) -> Split:
    value = row.get("split") or "test"
    if value not in SPLITS:
        raise DataError(f"{row.place}: split {value!r} is none of {', '.join(SPLITS)}.")
    return cast(Split, value)


def _spans(value: Any, row: Row) -> tuple[Span, Span]:
    try:
        (a, b), (c, d) = value
        return (int(a), int(b)), (int(c), int(d))
    except (TypeError, ValueError):
        raise DataError(
            f"{row.place}: a role is [[start, end], [start, end]]; got {value!r}."
        ) from None


def _features(row: Row) -> dict[str, Feature]:
    found: dict[str, Any] = dict(row.get("features") or {})
    found.update(
        {k.removeprefix("feature."): v for k, v in row.items() if k.startswith("feature.")}
    )
    for name, value in found.items():
        if not isinstance(value, str | int | float | bool) or value != value:
            raise DataError(
                f"{row.place}: the feature {name!r} is {value!r}; expected text or a number."
            )
    return found


def _with_splits(items: list[Item], seed: int) -> list[Item]:
    """Spread clusters over the splits."""
    from dataclasses import replace

    clusters = sorted({i.cluster for i in items})
    order = rng(seed, "splits").permutation(len(clusters))
    rank = {clusters[int(c)]: (place + 0.5) / len(clusters) for place, c in enumerate(order)}

    def split(item: Item) -> Split:
        share = rank[item.cluster]
        return "train" if share < _SHARES[0] else "validation" if share < _SHARES[1] else "test"

    return [replace(item, split=split(item)) for item in items]
