"""The geometry of a heat map: square cells, labels beside and below, color bar and keys."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from microtome.views import colorbar, numbers
from microtome.views.glyphs import mono_width, shorten, text_width
from microtome.views.markup import Markup, coordinate, join, tag
from microtome.views.palette import Shade, amount_shade, shade
from microtome.views.view import svg

if TYPE_CHECKING:
    from microtome.views.heatmap import HeatMap

SMALLEST, LARGEST, NUMBERED = 14, 40, 44
LABEL, LABEL_CELLS, INSIDE = 11, 18, 10.5
SLANT = math.sqrt(0.5)


class HeatMapDrawing:
    """The geometry of one heat map at one width."""

    def __init__(self, view: HeatMap, width: int, *, titled: bool) -> None:
        """Choose the size of the cells and the way the column labels are turned.

        Args:
            view: The heat map.
            width: Width to lay it out for, in pixels.
            titled: Whether every cell carries its readout.
        """
        self.view = view
        self.titled = titled
        # Read once: every one of them walks over all values.
        self.matrix, self.limit, self.names = view.matrix, view.scale_limit, view.labels()
        self.rows, self.columns = self.matrix.shape
        self.zero = np.zeros_like(self.matrix, dtype=bool)
        if view.zero is not None:
            self.zero = np.asarray(view.zero, dtype=bool)
        self.row_labels = [shorten(text, LABEL_CELLS) for text in self.names[0]]
        self.col_labels = [shorten(text, LABEL_CELLS) for text in self.names[1]]
        self.left = 16 + max(mono_width(text, LABEL) for text in self.row_labels)
        self.numbered = self.rows <= 12 and self.columns <= 12
        room = math.floor((width - self.left - 2) / self.columns)
        self.cell = max(SMALLEST, min(LARGEST, room))
        if self.numbered:
            widest = max(mono_width(self._text(value), INSIDE) for value in self.matrix.flat)
            self.cell = max(NUMBERED, math.ceil(widest) + 6)
        self.turn = self._turn()
        self.top = 24
        self.grid_width = self.columns * self.cell
        self.grid_height = self.rows * self.cell

    def _text(self, value: float) -> str:
        """Return the number inside a cell: the same decimals in all, as the largest value needs."""
        limit = self.limit
        if limit >= 1e5 or limit < 1e-2:
            return numbers.number(float(value))
        return numbers.fixed(float(value), min(numbers.decimals_for(limit), 3))

    def _turn(self) -> int:
        """Degrees by which the column labels are turned; makes room for them at left and below."""
        widths = [mono_width(text, LABEL) for text in self.col_labels]
        widest = max(widths)
        if widest <= self.cell - 2:
            self.foot = 36.0
            return 0
        if self.cell < 20:
            self.foot = widest + 28
            return -90
        reach = [wide * SLANT - (index + 0.5) * self.cell for index, wide in enumerate(widths)]
        self.left = max(self.left, max(reach) + 4)
        self.foot = widest * SLANT + 34
        return -45

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
        value = float(self.matrix[row, column])
        tone = self._tone(value)
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
        if not self.numbered or math.isnan(value) or self.zero[row, column]:
            return box
        middle = self.cell / 2 - 0.5
        return box + tag(
            "text",
            self._text(value),
            x=x + middle,
            y=y + middle + 3.5,
            text_anchor="middle",
            class_=f"inside {tone.ink}",
        )

    def _readout(self, row: int, column: int) -> str:
        view, value = self.view, float(self.matrix[row, column])
        rows, columns = self.names
        shown = "not computed" if math.isnan(value) else numbers.number(value)
        if self.zero[row, column]:
            shown = "0 by construction"
        elif not math.isnan(value) and view.unit:
            shown += numbers.THIN + view.unit
        return f"{view.row_axis} {rows[row]} · {view.col_axis} {columns[column]} · {shown}"

    def _tone(self, value: float) -> Shade:
        return (shade if self.view.signed else amount_shade)(value, self.limit)

    def _marks(self) -> Markup:
        hatch: list[str] = []
        dots: list[Markup] = []
        light: list[str] = []
        dark: list[str] = []
        for row in range(self.rows):
            for column in range(self.columns):
                x, y = self.corner(row, column)
                value, middle = float(self.matrix[row, column]), self.cell / 2 - 0.5
                if self.zero[row, column]:
                    dots.append(tag("circle", cx=x + middle, cy=y + middle, r=1.5, class_="dot"))
                elif math.isnan(value):
                    hatch.append(hatching(x, y, self.cell - 1))
                elif value < 0 and self.view.signed and not self.numbered:
                    # Printed in gray the two ends look alike: a dash marks what is below zero.
                    dash = f"M{coordinate(x + middle - 3)} {coordinate(y + middle)}h6"
                    (dark if self._tone(value).amount < 50 else light).append(dash)
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
            parts.append(self._column_label(text, x, bottom))
        parts.append(
            tag("text", view.col_axis, x=self.left, y=bottom + self.foot - 4, class_="label")
        )
        return join(parts)

    def _column_label(self, text: str, x: float, bottom: float) -> Markup:
        if not self.turn:
            return tag("text", text, x=x, y=bottom + 14, text_anchor="middle", class_="tick")
        place = f"translate({coordinate(x + 3.5)} {coordinate(bottom + 8)}) rotate({self.turn})"
        return tag("text", text, transform=place, text_anchor="end", class_="tick")

    def _legend(self, width: float) -> tuple[Markup, float, float]:
        view = self.view
        title = f"{view.title} ({view.unit})" if view.unit else view.title
        bar, used = colorbar.color_bar(self.limit, signed=view.signed, title=title)
        keys: list[tuple[Markup, str]] = []
        if bool(np.isnan(self.matrix).any()):
            frame = tag("rect", x=0, y=0, width=13, height=13, class_="frame", fill="none")
            keys.append((frame + tag("path", d=hatching(0, 0, 13), class_="hatch"), "not computed"))
        if bool(self.zero.any()):
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
