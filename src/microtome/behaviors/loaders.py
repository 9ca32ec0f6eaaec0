r"""Behaviors from a user's JSONL or CSV file; errors name the row.

Columns:

- ``clean``, ``corrupt``, ``answer``, ``wrong``: required. ``answers`` and ``wrongs`` mean the same.
  In JSONL several answers are a list of texts, in CSV they are separated by ``|`` (``\|`` is the
  mark itself).
- ``cluster``: rows that are not independent share one; by default every row is its own.
- ``template``, ``source``, ``natural``, ``sets`` (answers are sets, compared by first tokens).
- ``split``: ``train``, ``validation`` or ``test``, in every row or in none; without it, clusters
  are spread over the splits by a seed.
- ``feature.NAME``, or in JSONL an object ``features``: text, number or true/false.
- ``roles``: an object ``{name: [[start, end], [start, end]]}`` of character ranges in ``clean`` and
  ``corrupt``; in CSV as JSON text.

Every item has to fit the tokenizer it is prepared for: one that does not is an error, unless
misfits are dropped. Files written by :meth:`~microtome.behaviors.behavior.Behavior.save` begin with
a row that describes the behavior.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from microtome.behaviors.behavior import HEADER, VERSION, Behavior, Misfits
from microtome.behaviors.items import SPLITS, Feature, Item, Span, Split, check_item
from microtome.core.seeds import rng
from microtome.errors import DataError, EmptyDataError, FormatError, nearest
from microtome.store.tables import Row, read_csv, read_jsonl

SUFFIXES = (".jsonl", ".csv")

COLUMNS = (
    "clean", "corrupt", "answer", "answers", "wrong", "wrongs", "cluster", "template", "split",
    "features", "roles", "natural", "source",
    "sets",
)  # fmt: skip
"""Columns that a row may have, besides ``feature.NAME``."""

_BEGINS: Mapping[Split, float] = {"train": 0.0, "validation": 0.5, "test": 0.7}
"""Where, among the shuffled clusters, each split begins."""


def load(path: str | Path, *, seed: int = 0, misfits: Misfits | None = None) -> Behavior:
    """Return the behavior in a JSONL or CSV file.

    Args:
        path: The file.
        seed: Spreads clusters over the splits where the file names none.
        misfits: ``refuse`` items that do not fit a tokenizer, or ``drop`` and count them. By
            default a file's items are refused, and a saved behavior's treated as before.

    Raises:
        DataError: If a row is wrong: missing or unknown columns, NaN, a wrong type, a binary file.
        EmptyDataError: If the file holds no rows.
        FormatError: If a newer version wrote the file.
        PairError: If a pair repeats, or an answer is also a wrong answer.
    """
    if not isinstance(path, str | Path):
        raise DataError(f"A file of pairs is a path; got {type(path).__name__}.")
    place = Path(path)
    if place.is_dir() or not place.exists():
        what = "is a folder" if place.is_dir() else "does not exist"
        raise DataError(f"{place} {what}; give a JSONL or CSV file of prompt pairs.")
    csv = place.suffix.lower() == ".csv"
    rows = read_csv(place) if csv else read_jsonl(place)
    header = _header(rows[0]) if rows and "schema" in rows[0] else {}
    if header:
        rows = rows[1:]
    if not rows:
        raise EmptyDataError(f"{place} holds no items.")
    items = _with_splits([_item(row, csv) for row in rows], rows, seed)
    settings: dict[str, Any] = {
        "name": place.stem,
        "title": place.stem,
        "description": f"Pairs from {place.name}.",
        "misfits": "refuse",
        "seed": seed,
        **header,
    }
    if misfits is not None:
        settings["misfits"] = misfits
    return Behavior(items=tuple(items), **settings)


def _header(row: Row) -> dict[str, Any]:
    """Return a saved behavior's settings."""
    if row["schema"] != HEADER or not isinstance(row.get("version"), int):
        raise FormatError(
            f"{row.place}: schema {row['schema']!r}; expected {HEADER!r} with a version."
        )
    if row["version"] > VERSION:
        raise FormatError(
            f"{row.place}: version {row['version']} of a behavior file; this microtome reads up to "
            f"{VERSION}. Update it."
        )
    known = [k for k in Behavior.__dataclass_fields__ if k != "items"]
    unknown = [k for k in row if k not in (*known, "schema", "version")]
    if unknown:
        raise FormatError(
            f"{row.place}: unknown setting {unknown[0]!r}{nearest(unknown[0], known)}."
        )
    settings = {k: v for k, v in row.items() if k not in ("schema", "version")}
    _check_settings(settings, row.place)
    return settings


def _check_settings(settings: dict[str, Any], place: str) -> None:
    """Refuse a saved behavior's settings that would fail only when they are used."""
    from microtome.behaviors.metrics import METRICS

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    expected: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "n": ("a positive whole number or null", lambda v: v is None or (whole(v) and v > 0)),
        "metric": (f"one of {', '.join(METRICS)}", lambda v: v in METRICS),
        "chance": (
            "a number from 0 to 1",
            lambda v: (whole(v) or isinstance(v, float)) and 0 <= v <= 1,
        ),
        "seed": ("a whole number", whole),
        "misfits": ("drop or refuse", lambda v: v in ("drop", "refuse")),
    }
    for name, value in settings.items():
        words, fits = expected.get(name, ("a text", lambda v: isinstance(v, str)))
        if not (isinstance(value, str | int | float | None) and fits(value)):
            raise FormatError(f"{place}: setting {name} is {value!r}; expected {words}.")


def _item(row: Row, csv: bool) -> Item:
    for name in row:
        if name not in COLUMNS and not name.startswith("feature."):
            raise DataError(
                f"{row.place}: unknown column {name!r}{nearest(name, COLUMNS)}. Name a property "
                f"feature.{name}, or remove the column."
            )
    item = Item(
        clean=_text(row, "clean"),
        corrupt=_text(row, "corrupt"),
        answers=_answers(row, "answer", csv),
        wrongs=_answers(row, "wrong", csv),
        cluster=_text(row, "cluster", f"row {row.number}"),
        template=_text(row, "template", "file"),
        split=_split(row),
        roles=_roles(row, csv),
        features=_features(row, csv),
        natural=_truth(row, "natural"),
        source=row.place,
        sets=_truth(row, "sets"),
    )
    check_item(item, row.place)
    return item


def _absent(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _text(row: Row, name: str, default: str | None = None) -> str:
    value = row.get(name)
    if _absent(value):
        if default is not None:
            return default
        raise DataError(
            f"{row.place}: the column {name!r} is missing, empty or NaN. Columns: {', '.join(row)}."
        )
    if not isinstance(value, str):
        raise DataError(
            f"{row.place}: {name!r} is {type(value).__name__} {value!r}; expected text."
        )
    return value


def _answers(row: Row, name: str, csv: bool) -> tuple[str, ...]:
    if name in row and f"{name}s" in row:
        raise DataError(f"{row.place}: both {name!r} and {f'{name}s'!r} are given; give one.")
    value = row.get(f"{name}s", row.get(name))
    if isinstance(value, str) and value:
        parts = re.split(r"(?<!\\)\|", value) if csv else [value]
        return tuple(p.replace("\\|", "|") for p in parts) if csv else tuple(parts)
    if isinstance(value, list) and value and all(isinstance(v, str) and v for v in value):
        return tuple(value)
    raise DataError(
        f"{row.place}: {name!r} is missing, empty or not text: {value!r}. "
        f"Columns: {', '.join(row)}."
    )


def _split(row: Row) -> Split:
    value = row.get("split") or "test"
    if value not in SPLITS:
        raise DataError(f"{row.place}: split {value!r} is none of {', '.join(SPLITS)}.")
    return cast(Split, value)


def _truth(row: Row, name: str) -> bool:
    value = _value(row.get(name, False) or False)
    if not isinstance(value, bool):
        raise DataError(f"{row.place}: {name!r} is {value!r}; expected true or false.")
    return value


def _roles(row: Row, csv: bool) -> dict[str, tuple[Span, Span]]:
    value = row.get("roles") or {}
    if csv and isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise DataError(f"{row.place}: roles are not JSON: {value[:60]!r}.") from None
    if not isinstance(value, Mapping):
        raise DataError(f"{row.place}: roles must be an object of character ranges.")
    lengths = (len(row["clean"]), len(row["corrupt"]))
    return {str(name): _spans(spans, lengths, row) for name, spans in value.items()}


def _spans(value: Any, lengths: tuple[int, int], row: Row) -> tuple[Span, Span]:
    try:
        (a, b), (c, d) = value
        clean = (operator.index(a), operator.index(b))
        corrupt = (operator.index(c), operator.index(d))
    except (TypeError, ValueError):
        raise DataError(
            f"{row.place}: a role is [[start, end], [start, end]]; got {value!r}."
        ) from None
    for (start, end), length in zip((clean, corrupt), lengths, strict=True):
        if not 0 <= start <= end <= length:
            raise DataError(
                f"{row.place}: the range [{start}, {end}] is outside a prompt of {length} "
                "characters."
            )
    return clean, corrupt


def _features(row: Row, csv: bool) -> dict[str, Feature]:
    given = row.get("features") or {}
    if not isinstance(given, Mapping):
        raise DataError(
            f"{row.place}: features must be an object; in CSV use feature.NAME columns."
        )
    found: dict[str, Any] = dict(given)
    found.update(
        {k.removeprefix("feature."): v for k, v in row.items() if k.startswith("feature.")}
    )
    read: dict[str, Feature] = {}
    for name, value in found.items():
        kept = _value(value) if csv else value
        if not isinstance(kept, str | int | float | bool) or kept == "" or kept != kept:
            raise DataError(
                f"{row.place}: the feature {name!r} is {value!r}; expected text, a number or "
                "true/false."
            )
        read[name] = kept if isinstance(kept, str | bool) else float(kept)
    return read


def _value(value: Any) -> Any:
    """Return the truth value or number that a CSV field holds, or its text."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        return float(value)
    except ValueError:
        return value


def _with_splits(items: list[Item], rows: Sequence[Row], seed: int) -> list[Item]:
    """Spread clusters over the splits where the rows name none.

    Raises:
        DataError: If only some rows name one, or a cluster is in two of them.
    """
    named = [not _absent(row.get("split")) for row in rows]
    if all(named):
        return _checked(items, rows)
    if any(named):
        row = rows[named.index(False)]
        raise DataError(f"{row.place}: no split, but other rows name one; name it in all or none.")
    clusters = sorted({i.cluster for i in items})
    order = rng(seed, "splits").permutation(len(clusters))
    rank = {clusters[int(c)]: (place + 0.5) / len(clusters) for place, c in enumerate(order)}

    def split(item: Item) -> Split:
        share = rank[item.cluster]
        return [name for name in SPLITS if share >= _BEGINS[name]][-1]

    return [replace(item, split=split(item)) for item in items]


def _checked(items: list[Item], rows: Sequence[Row]) -> list[Item]:
    first: dict[str, tuple[Split, str]] = {}
    for item, row in zip(items, rows, strict=True):
        split, place = first.setdefault(item.cluster, (item.split, row.place))
        if split != item.split:
            raise DataError(
                f"{row.place}: cluster {item.cluster!r} is in {item.split} here and in {split} in "
                f"{place}; a cluster belongs to one split."
            )
    return items
