"""Heat maps: layer by position, layer by head; row 0 at the bottom.

Example::

    HeatMap(values, row_labels=("0", "1"), col_labels=tokens, row_axis="layer", col_axis="position",
            title="effect of patching", unit="logits", zero=mask, highlight=((1, 3),), limit=None,
            signed=True)

NaN is hatched (not computed); cells that are zero by construction carry a dot; highlighted cells
are outlined; numbers stand inside when there are at most 12 x 12 cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microtome.errors import ShapeError
from microtome.views import colorbar, numbers
from microtome.views.glyphs import mono_width, shorten, text_width, visible_token
from microtome.views.markup import Markup, coordinate, join, tag
from microtome.views.palette import Shade, amount_shade, shade, symmetric_limit
from microtome.views.table import Cell, Table
from microtome.views.view import WIDE, Drawing, svg

SMALLEST, LARGEST, NUMBERED = 14, 40, 44
LABEL, LABEL_CELLS = 11, 16
MANY = 1500
"""Above this many cells one layout serves all widths, and cells carry no readout."""


@dataclass(frozen=True, eq=False)
class HeatMap(Drawing):
    """A matrix as colored cells.

    Attributes:
        values: Array [rows, columns]; row 0 is drawn at the bottom; NaN means not computed.
        row_labels: One label per row; their numbers if None.
        col_labels: One label per column, such as tokens or roles; their numbers if None.
        row_axis: What the rows are.
        col_axis: What the columns are.
        title: What is colored, for the color bar.
        unit: Unit of the values.
        zero: Boolean array of the same shape: cells that are zero by construction.
        highlight: Cells (row, column) to outline.
        highlight_label: What the outline means.
        limit: Value of the full color; the largest finite magnitude if None.
        signed: Two colors around zero, or one color for amounts from zero.

    Raises:
        ShapeError: The values are not a matrix with at least one cell, or labels, mask or
            highlighted cells do not fit it.
    """

    values: ArrayLike
    row_labels: Sequence[str] | None = None
    col_labels: Sequence[str] | None = None
    row_axis: str = "layer"
    col_axis: str = "position"
    title: str = "effect"
    unit: str = ""
    zero: ArrayLike | None = None
    highlight: Sequence[tuple[int, int]] = ()
    highlight_label: str = "in the circuit"
    limit: float | None = None
    signed: bool = True

    def __post_init__(self) -> None:
        """Check that everything fits the matrix."""
        shape = np.shape(self.values)
        if len(shape) != 2 or 0 in shape:
            raise ShapeError(
                f"a heat map needs values [rows, columns] with at least one cell, got shape {shape}"
            )
        for name, labels, length in (
            ("row_labels", self.row_labels, shape[0]),
            ("col_labels", self.col_labels, shape[1]),
        ):
            if labels is not None and len(labels) != length:
                raise ShapeError(
                    f"{name} has {len(labels)} entries, but values has shape {shape}; "
                    f"give {length} labels"
                )
        if self.zero is not None and np.shape(self.zero) != shape:
            raise ShapeError(f"zero has shape {np.shape(self.zero)}, but values has shape {shape}")
        for row, column in self.highlight:
            if not (0 <= row < shape[0] and 0 <= column < shape[1]):
                raise ShapeError(
                    f"highlighted cell ({row}, {column}) lies outside values of shape {shape}"
                )

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The values as an array of floats."""
        return np.asarray(self.values, dtype=np.float64)

    @property
    def scale_limit(self) -> float:
        """The value of the full color."""
        return symmetric_limit(self.matrix) if self.limit is None else self.limit

    def labels(self) -> tuple[list[str], list[str]]:
        """Return the row and column labels as they are drawn."""
        rows, columns = self.matrix.shape
        row_labels = self.row_labels if self.row_labels is not None else map(str, range(rows))
        col_labels = self.col_labels if self.col_labels is not None else map(str, range(columns))
        return [visible_token(t) for t in row_labels], [visible_token(t) for t in col_labels]

    def tone(self, value: float) -> Shade:
        """Return the color of a value."""
        return (shade if self.signed else amount_shade)(value, self.scale_limit)

    def draw(self, width: int) -> Markup:
        """Return the map as SVG; cells are square, 14 px or more, so it can be wider than asked."""
        rows, columns = self.matrix.shape
        return _Drawing(self, WIDE if rows * columns > MANY else width).draw()

    def table(self) -> Table:
        """Return the matrix with its labels, the highest row first, as it is drawn."""
        row_labels, col_labels = self.labels()
        rows: list[list[Cell]] = [
            [row_labels[r], *map(float, self.matrix[r])] for r in reversed(range(len(row_labels)))
        ]
        unit = f", {self.unit}" if self.unit else ""
        return Table([f"{self.row_axis} \\ {self.col_axis}", *col_labels], rows, self.title + unit)


class _Drawing:
    """The geometry of one heat map at one width."""

    def __init__(self, view: HeatMap, width: int) -> None:
        self.view = view
        self.rows, self.columns = view.matrix.shape
        rows, columns = view.labels()
        self.row_labels = [shorten(text, LABEL_CELLS) for text in rows]
        self.col_labels = [shorten(text, LABEL_CELLS) for text in columns]
        self.left = max(
            16 + max(mono_width(text, LABEL) for text in self.row_labels),
            10 + text_width(view.row_axis, 12),
        )
        self.numbered = self.rows <= 12 and self.columns <= 12
        room = math.floor((width - self.left - 2) / self.columns)
        self.cell = NUMBERED if self.numbered else max(SMALLEST, min(LARGEST, room))
        widest = max(mono_width(text, LABEL) for text in self.col_labels)
        self.upright = widest <= self.cell - 2
        self.foot = (16 if self.upright else widest + 8) + 20
        self.top = 24
        self.grid_width = self.columns * self.cell
        self.grid_height = self.rows * self.cell
        places = numbers.decimals_for(view.scale_limit)
        self.decimals = min(places, 3)
        self.titled = self.rows * self.columns <= MANY

    def draw(self) -> Markup:
        """Return the whole drawing."""
        legend, legend_width, legend_height = self._legend(max(self.left + self.grid_width, 330))
        below = self.top + self.grid_height + self.foot
        width = max(self.left + self.grid_width + 2, legend_width)
        view = self.view
        label = (
            f"heat map of {view.title}: {self.rows} rows ({view.row_axis}) by "
            f"{self.columns} columns ({view.col_axis})"
        )
        grid = tag("g", join(self._cells()), data_grid=self.columns)
        back = tag(
            "rect",
            x=self.left,
            y=self.top,
            width=self.grid_width,
            height=self.grid_height,
            class_="lattice",
            fill="#f0f0ee",
        )
        moved = tag("g", legend, transform=f"translate(0 {coordinate(below)})")
        parts = (back, grid, self._marks(), self._axes(), moved)
        return svg(width, below + legend_height, label, *parts, class_="mt-heat")

    def corner(self, row: int, column: int) -> tuple[float, float]:
        """Return the upper left corner of a cell."""
        return self.left + column * self.cell, self.top + (self.rows - 1 - row) * self.cell

    def _cells(self) -> list[Markup]:
        return [
            self._cell(row, column)
            for row in reversed(range(self.rows))
            for column in range(self.columns)
        ]

    def _cell(self, row: int, column: int) -> Markup:
        value = float(self.view.matrix[row, column])
        tone = self.view.tone(value)
        x, y = self.corner(row, column)
        title = tag("title", self._readout(row, column)) if self.titled else None
        size = self.cell - 1
        box = tag(
            "rect",
            title,
            class_=tone.css,
            style=tone.style,
            fill=tone.hex,
            x=x,
            y=y,
            width=size,
            height=size,
        )
        if not self.numbered or math.isnan(value) or self._is_zero(row, column):
            return box
        middle = self.cell / 2 - 0.5
        text = numbers.fixed(value, self.decimals)
        return box + tag(
            "text",
            text,
            x=x + middle,
            y=y + middle + 3.5,
            text_anchor="middle",
            class_=f"inside {tone.ink}",
        )

    def _readout(self, row: int, column: int) -> str:
        view, value = self.view, float(self.view.matrix[row, column])
        rows, columns = view.labels()
        shown = "not computed" if math.isnan(value) else numbers.number(value)
        if self._is_zero(row, column):
            shown = "0 by construction"
        elif not math.isnan(value) and view.unit:
            shown += numbers.THIN + view.unit
        return f"{view.row_axis} {rows[row]} · {view.col_axis} {columns[column]} · {shown}"

    def _is_zero(self, row: int, column: int) -> bool:
        return self.view.zero is not None and bool(np.asarray(self.view.zero)[row, column])

    def _marks(self) -> Markup:
        hatch: list[str] = []
        dots: list[Markup] = []
        light: list[str] = []
        dark: list[str] = []
        for row in range(self.rows):
            for column in range(self.columns):
                x, y = self.corner(row, column)
                value, middle = float(self.view.matrix[row, column]), self.cell / 2 - 0.5
                if self._is_zero(row, column):
                    dots.append(tag("circle", cx=x + middle, cy=y + middle, r=1.5, class_="dot"))
                elif math.isnan(value):
                    hatch.append(hatching(x, y, self.cell - 1))
                elif value < 0 and self.view.signed and not self.numbered:
                    # Printed in gray the two ends look alike: a dash marks what is below zero.
                    dash = f"M{coordinate(x + middle - 3)} {coordinate(y + middle)}h6"
                    (dark if self.view.tone(value).amount < 50 else light).append(dash)
        outlines = [self._outline(row, column) for row, column in self.view.highlight]
        return join(
            [
                tag("path", d="".join(hatch), class_="hatch"),
                join(dots),
                tag("path", d="".join(dark), class_="printed"),
                tag("path", d="".join(light), class_="printed reverse"),
                join(outlines),
            ]
        )

    def _outline(self, row: int, column: int) -> Markup:
        x, y = self.corner(row, column)
        size = self.cell - 1
        return tag("rect", x=x, y=y, width=size, height=size, class_="outline", fill="none")

    def _axes(self) -> Markup:
        view, parts = self.view, []
        parts.append(tag("text", view.row_axis, x=0, y=12, class_="label"))
        for row, text in enumerate(self.row_labels):
            y = self.corner(row, 0)[1] + self.cell / 2 + 3.5
            parts.append(tag("text", text, x=self.left - 8, y=y, text_anchor="end", class_="tick"))
        bottom = self.top + self.grid_height
        for column, text in enumerate(self.col_labels):
            x = self.left + (column + 0.5) * self.cell
            if self.upright:
                parts.append(
                    tag("text", text, x=x, y=bottom + 14, text_anchor="middle", class_="tick")
                )
            else:
                turn = f"translate({coordinate(x + 3.5)} {coordinate(bottom + 6)}) rotate(-90)"
                parts.append(tag("text", text, transform=turn, text_anchor="end", class_="tick"))
        parts.append(
            tag("text", view.col_axis, x=self.left, y=bottom + self.foot - 4, class_="label")
        )
        return join(parts)

    def _legend(self, width: float) -> tuple[Markup, float, float]:
        view = self.view
        title = f"{view.title} ({view.unit})" if view.unit else view.title
        bar, used = colorbar.color_bar(view.scale_limit, signed=view.signed, title=title)
        keys: list[tuple[Markup, str]] = []
        if bool(np.isnan(view.matrix).any()):
            frame = tag("rect", x=0, y=0, width=13, height=13, class_="frame", fill="none")
            keys.append((frame + tag("path", d=hatching(0, 0, 13), class_="hatch"), "not computed"))
        if view.zero is not None and bool(np.any(np.asarray(view.zero))):
            frame = tag("rect", x=0, y=0, width=13, height=13, class_="frame", fill="none")
            dot = tag("circle", cx=6.5, cy=6.5, r=1.5, class_="dot")
            keys.append((frame + dot, "zero by construction"))
        if view.highlight:
            frame = tag("rect", x=1, y=1, width=11, height=11, class_="outline", fill="none")
            keys.append((frame, view.highlight_label))
        placed, height, reach = _place_keys(keys, used + 32, width)
        group = tag("g", tag("g", bar, transform="translate(0 12)"), placed)
        return group, max(reach, used), height


def hatching(x: float, y: float, size: float) -> str:
    """Return path data of diagonal lines that fill a square."""
    lines = []
    for offset in np.arange(4.0, 2 * size, 4.5):
        start, end = min(offset, size), max(0.0, offset - size)
        lines.append(
            f"M{coordinate(x + end)} {coordinate(y + start)}"
            f"L{coordinate(x + start)} {coordinate(y + end)}"
        )
    return "".join(lines)


def _place_keys(
    keys: list[tuple[Markup, str]], start: float, width: float
) -> tuple[Markup, float, float]:
    """Return the legend's keys beside the color bar, or below it where there is no room."""
    widths = [22 + text_width(text, 12) + 20 for _, text in keys]
    beside = start + sum(widths) <= width
    x, y, reach = (start, 25.0, start) if beside else (0.0, 68.0, 0.0)
    parts = []
    for (mark, text), wide in zip(keys, widths, strict=True):
        if not beside and x > 0 and x + wide > width:
            x, y = 0.0, y + 22
        label = tag("text", text, x=20, y=10.5, class_="label")
        parts.append(tag("g", mark, label, transform=f"translate({coordinate(x)} {coordinate(y)})"))
        x += wide
        reach = max(reach, x)
    height = 12 + colorbar.HEIGHT if beside or not keys else y + 20
    return join(parts), height, reach
