"""A browser of many like things: a list to search and sort, and a card of the chosen one.

Example::

    Browser(items=(Item(17, "a bracket is open", cells=(0.24, 0.73)),),
            columns=(Column("active", "share of the tokens", "percent"), Column("score")),
            name="latent")

Everything about every item is inside the page, compressed; the page's script draws the rows that
are in sight and one card. Without the script, in a notebook or in print, the first items stand in
a table.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from microtome.errors import ShapeError
from microtome.views import numbers
from microtome.views.glyphs import visible_token
from microtome.views.markup import Markup, harmless, tag
from microtome.views.palette import shade
from microtome.views.prose import inline
from microtome.views.table import Cell, Table
from microtome.views.view import View

SHOWN = 40
"""Items of the table that stands where the script does not run."""


@dataclass(frozen=True)
class Column:
    """A number that every item has.

    Attributes:
        name: Its heading.
        meaning: What it says, shown on hover.
        kind: How it is written: with two decimals, or as a percentage.
    """

    name: str
    meaning: str = ""
    kind: Literal["number", "percent"] = "number"


@dataclass(frozen=True, eq=False)
class Excerpt:
    """A stretch of text with a value at each token.

    Attributes:
        tokens: The tokens as text.
        values: One for each.
        note: A few words about it.
    """

    tokens: Sequence[str]
    values: Sequence[float]
    note: str = ""


@dataclass(frozen=True, eq=False)
class Ranking:
    """What goes with an item, the strongest first.

    Attributes:
        title: What is ranked.
        measure: By what.
        rows: A text, or the number of another item, with its value.
    """

    title: str
    measure: str
    rows: Sequence[tuple[str | int, float]]


@dataclass(frozen=True, eq=False)
class Item:
    """One thing in the list.

    Attributes:
        number: Its number, by which others refer to it.
        words: What it is, in a line; `code` in backticks.
        cells: Its number in each column, None where there is none.
        facts: Names and texts at the head of its card.
        excerpts: Texts with values, colored on one scale.
        counts: Counts of a histogram in equal bins; empty for none.
        span: From where to where the bins go.
        rankings: What goes with it.
    """

    number: int
    words: str
    cells: Sequence[float | None] = ()
    facts: Sequence[tuple[str, str]] = ()
    excerpts: Sequence[Excerpt] = ()
    counts: Sequence[int] = ()
    span: tuple[float, float] = (0.0, 1.0)
    rankings: Sequence[Ranking] = ()


@dataclass(frozen=True, eq=False)
class Browser(View):
    """Many items, one of them at a time in full.

    Attributes:
        items: The items; the first is shown at first.
        columns: The numbers that each has.
        name: What an item is called, such as "latent".
        says: What its words say.
        unit: What the values of excerpts and histograms are.
        heading: What the excerpts show.

    Raises:
        ShapeError: There is no item, a number is given twice, or cells do not fit the columns.
    """

    items: Sequence[Item]
    columns: Sequence[Column] = ()
    name: str = "item"
    says: str = "what it is"
    unit: str = "value"
    heading: str = "Examples"

    tabular = True

    def __post_init__(self) -> None:
        """Check that the items fit."""
        known = {item.number for item in self.items}
        if not known or len(known) < len(self.items):
            raise ShapeError(
                f"{len(self.items)} items with {len(known)} numbers; give at least one item, and "
                "each its own number"
            )
        for item in self.items:
            if len(item.cells) != len(self.columns):
                raise ShapeError(
                    f"{self.name} {item.number} has {len(item.cells)} cells, but there are "
                    f"{len(self.columns)} columns; give one cell for each column"
                )

    def picture(self) -> Markup:
        """Return the browser with its data, and a table for where no script runs."""
        return tag(
            "div",
            tag("div", self.table().picture(), class_="mt-browser-plain"),
            tag("div", self.packed(), class_="mt-browser-data", hidden=True),
            class_="mt-browser",
            data_browser=self.name,
        )

    def table(self) -> Table:
        """Return one row for each of the first items."""
        rows: list[list[Cell]] = [
            [str(item.number), *map(self._cell, item.cells, self.columns), inline(item.words)]
            for item in self.items[:SHOWN]
        ]
        left = len(self.items) - len(rows)
        return Table(
            (self.name, *(c.name for c in self.columns), self.says),
            rows,
            f"The first {len(rows)}; {numbers.count(left)} more are in the data." if left else "",
        )

    @staticmethod
    def _cell(value: float | None, column: Column) -> str:
        if value is None or math.isnan(value):
            return numbers.ABSENT
        return f"{100 * value:.2f}{numbers.THIN}%" if column.kind == "percent" else f"{value:.2f}"

    def packed(self) -> str:
        """Return everything as JSON, deflated, in base64."""
        text = json.dumps(self._data(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii")

    def _data(self) -> dict[str, Any]:
        words: dict[str, int] = {}
        items = [self._packed(item, words) for item in self.items]
        inks = {
            sign: [shade(factor * amount, 100).ink for amount in range(101)]
            for sign, factor in (("pos", 1), ("neg", -1))
        }
        columns = [[c.name, c.meaning, c.kind] for c in self.columns]
        return {
            "name": self.name, "says": self.says, "unit": self.unit, "heading": self.heading,
            "columns": columns, "inks": inks,
            "words": [harmless(visible_token(w)) for w in words], "items": items,
        }  # fmt: skip

    def _packed(self, item: Item, words: dict[str, int]) -> list[Any]:
        def place(token: str) -> int:
            return words.setdefault(token, len(words))

        largest = max((abs(v) for e in item.excerpts for v in e.values), default=0.0)
        excerpts = []
        for excerpt in item.excerpts:
            flat: list[int] = []
            for token, value in zip(excerpt.tokens, excerpt.values, strict=True):
                flat += [place(token), round(100 * value / largest) if largest else 0]
            excerpts.append([harmless(excerpt.note), flat])
        rankings = [
            [
                harmless(r.title),
                harmless(r.measure),
                [[v if isinstance(v, int) else harmless(v), _three(x)] for v, x in r.rows],
            ]
            for r in item.rankings
        ]
        return [
            item.number,
            harmless(item.words),
            [None if c is None or math.isnan(c) else _three(c) for c in item.cells],
            [[harmless(name), harmless(text)] for name, text in item.facts],
            _three(largest),
            excerpts,
            list(item.counts),
            [_three(end) for end in item.span],
            rankings,
        ]


def _three(value: float) -> float:
    """Return a number with four significant digits."""
    return float(f"{value:.4g}")
