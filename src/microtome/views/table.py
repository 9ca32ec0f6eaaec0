"""A table of text and numbers: the text alternative behind every picture.

Example::

    Table(columns=("layer", "effect"), rows=((0, 0.12), (1, math.nan)), caption="Effect by layer")

Numbers are written with three significant digits and set right in a monospaced face; whole
numbers are written exactly; True and False become words; None and NaN become a dash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from microtome.errors import ShapeError
from microtome.views import numbers
from microtome.views.markup import Markup, join, tag
from microtome.views.view import View

Cell = str | int | float | bool | None | numbers.Estimate


@dataclass(frozen=True, eq=False)
class Table(View):
    """Named columns and rows of cells.

    Attributes:
        columns: Column names.
        rows: One sequence of cells per row, as long as ``columns``.
        caption: What the table shows, or "".

    Raises:
        ShapeError: A row has another number of cells than there are columns.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    tabular = True

    def __post_init__(self) -> None:
        """Check that every row fits the columns."""
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ShapeError(
                    f"row {index} of the table has {len(row)} cells, but there are "
                    f"{len(self.columns)} columns; give one cell per column"
                )

    def table(self) -> Table:
        """Return the table itself."""
        return self

    def picture(self) -> Markup:
        """Return the table as HTML in a box that scrolls sideways by itself."""
        numeric = [self._is_numeric(index) for index in range(len(self.columns))]
        head = join(
            tag("th", name, scope="col", class_="num" if right else None)
            for name, right in zip(self.columns, numeric, strict=True)
        )
        rows = join(
            tag("tr", *(_cell(cell, right) for cell, right in zip(row, numeric, strict=True)))
            for row in self.rows
        )
        empty = tag("tr", tag("td", "no rows", colspan=max(1, len(self.columns)), class_="soft"))
        content = tag(
            "table",
            tag("caption", self.caption) if self.caption else None,
            tag("thead", tag("tr", head)),
            tag("tbody", rows or empty),
            class_="mt-table",
        )
        return tag(
            "div",
            content,
            class_="mt-scroll",
            tabindex="0",
            role="group",
            aria_label=self.caption or "table",
        )

    def _is_numeric(self, column: int) -> bool:
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and all(
            isinstance(cell, int | float | np.number | numbers.Estimate)
            and not isinstance(cell, bool)
            for cell in cells
        )


def cell_text(cell: Cell) -> str:
    """Return how one cell is written."""
    if cell is None:
        return numbers.ABSENT
    if isinstance(cell, Markup):
        return cell
    if isinstance(cell, numbers.Estimate):
        return cell.text
    if isinstance(cell, bool | np.bool_):
        return "yes" if cell else "no"
    if isinstance(cell, int | np.integer):
        return numbers.count(int(cell))
    if isinstance(cell, float | np.floating):
        return numbers.number(float(cell))
    return str(cell)


def _cell(cell: Cell, right: bool) -> Markup:
    return tag("td", cell_text(cell), class_="num" if right else None)
