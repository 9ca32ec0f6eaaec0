"""The geometry of a curve: axes, bands, lines, and labels that do not run into one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from microtome.views import numbers
from microtome.views.glyphs import mono_width, shorten, text_width
from microtome.views.markup import Markup, coordinate, join, tag
from microtome.views.scales import Scale, span
from microtome.views.view import svg

if TYPE_CHECKING:
    from microtome.views.curve import Curve, Series

DASHES = (None, "6 3", "2 3", "8 3 2 3", "1 2", "10 4", "4 2", "12 3 3 3")
LABEL_GAP = 16


class CurveDrawing:
    """One curve figure at one width."""

    def __init__(self, view: Curve, width: int) -> None:
        """Lay out the plot area for a width in pixels."""
        self.view = view
        self.width = width
        self.narrow = width < 480
        self.height = 300 if self.narrow else 380
        names = [line.name for line in view.series]
        if view.null is not None:
            names.append(self._null_name())
        # In a narrow column names stand beneath the plot: beside it they would leave it no room.
        self.labels_below = self.narrow
        side = min(200.0, max(text_width(name, 12) for name in names) + 16)
        self.right = 12.0 if self.labels_below else side
        x_range, y_range = self._ranges()
        ticks = Scale(*y_range, 0, 1).ticks(5)
        self.left = max(mono_width(text, 11) for text in tick_labels(ticks)) + 12
        self.top, self.bottom = 44.0, 48.0
        self.x = Scale(*x_range, self.left, width - self.right, view.log_x)
        self.y = Scale(*y_range, self.height - self.bottom, self.top)

    def _null_name(self) -> str:
        null = self.view.null
        return "" if null is None else f"{null.name}, n = {numbers.count(null.n)}"

    def _ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        view = self.view
        xs = [x for line in view.series for x, _ in line.points]
        ys = [y for line in view.series for _, y in line.points]
        ys += [end for line in view.series for pair in line.ends for end in pair]
        if view.null is not None:
            xs += [x for x, _, _ in view.null.edges]
            ys += [end for _, low, high in view.null.edges for end in (low, high)]
        if view.chosen is not None:
            xs.append(view.chosen)
        if view.target is not None:
            ys += list(view.target)
        x_range = span(xs, margin=0.02, log=view.log_x)
        return x_range, view.y_range or span(ys, margin=0.06)

    def draw(self) -> Markup:
        """Return the whole drawing."""
        labels, extra = self._labels()
        lines = [self._series(index, line) for index, line in enumerate(self.view.series)]
        parts = (self._target(), self._null(), self._axes(), self._chosen(), join(lines), labels)
        label = f"{self.view.y_label} against {self.view.x_label}"
        return svg(self.width, self.height + extra, label, *parts, class_="mt-curve")

    def _target(self) -> Markup | None:
        if self.view.target is None:
            return None
        low, high = self.view.target
        top, bottom = self.y(high), self.y(low)
        box = tag(
            "rect",
            x=self.left,
            y=top,
            width=self.x.end - self.left,
            height=bottom - top,
            class_="target",
        )
        lines = "".join(
            f"M{coordinate(self.left)} {coordinate(at)}H{coordinate(self.x.end)}"
            for at in (top, bottom)
        )
        text = f"{self.view.target_label}: [{low:g}, {high:g}]".replace("-", numbers.MINUS)
        label = tag("text", text, x=self.left + 6, y=top + 15, class_="label halo")
        return box + tag("path", d=lines, class_="target-line") + label

    def _null(self) -> Markup | None:
        if self.view.null is None or not self.view.null.edges:
            return None
        edges = self.view.null.edges
        upper = [f"{coordinate(self.x(x))} {coordinate(self.y(high))}" for x, _, high in edges]
        lower = [f"{coordinate(self.x(x))} {coordinate(self.y(low))}" for x, low, _ in edges]
        path = "M" + "L".join(upper + lower[::-1]) + "Z"
        return tag("path", tag("title", self._null_name()), d=path, class_="null")

    def _axes(self) -> Markup:
        parts = [
            tag("text", self.view.y_label, x=0, y=12, class_="label"),
            tag(
                "text",
                self.view.x_label,
                x=self.x.end,
                y=self.height - 8,
                text_anchor="end",
                class_="label",
            ),
        ]
        ticks = self.y.ticks(5)
        for value, text in zip(ticks, tick_labels(ticks), strict=True):
            y = self.y(value)
            parts.append(
                tag("text", text, x=self.left - 8, y=y + 4, text_anchor="end", class_="tick")
            )
            line = f"M{coordinate(self.left)} {coordinate(y)}H{coordinate(self.x.end)}"
            parts.append(tag("path", d=line, class_="hair"))
        base = self.height - self.bottom
        parts.append(
            tag(
                "path",
                d=f"M{coordinate(self.left)} {coordinate(base)}H{coordinate(self.x.end)}",
                class_="axis",
            )
        )
        return join(parts) + self._x_ticks(base)

    def _x_ticks(self, base: float) -> Markup:
        values = self.x.ticks(4 if self.narrow else 7)
        parts, free = [], -math.inf
        for value, text in zip(values, tick_labels(values, log=self.view.log_x), strict=True):
            x, half = self.x(value), mono_width(text, 11) / 2
            if x - half < free:
                continue
            free = x + half + 8
            parts.append(tag("path", d=f"M{coordinate(x)} {coordinate(base)}v5", class_="axis"))
            parts.append(tag("text", text, x=x, y=base + 18, text_anchor="middle", class_="tick"))
        return join(parts)

    def _chosen(self) -> Markup | None:
        return None if self.view.chosen is None else self.vertical(self.view.chosen)

    def vertical(self, chosen: float) -> Markup:
        """Return the thin line at a chosen size, with its label."""
        x = self.x(chosen)
        value = numbers.count(int(chosen)) if float(chosen).is_integer() else numbers.number(chosen)
        text = f"{self.view.chosen_label}: {value}"
        half = text_width(text, 12) / 2
        at = min(max(x, half), self.width - half)
        line = (
            f"M{coordinate(x)} {coordinate(self.top - 8)}V{coordinate(self.height - self.bottom)}"
        )
        label = tag("text", text, x=at, y=self.top - 14, text_anchor="middle", class_="strong")
        return tag("path", d=line, class_="chosen") + label

    def _series(self, index: int, line: Series) -> Markup:
        kind = f"c{(index if line.category is None else line.category) % 8}"
        parts = []
        for run in _runs([(x, *pair) for (x, _), pair in zip(line.points, line.ends, strict=True)]):
            upper = [f"{coordinate(self.x(x))} {coordinate(self.y(high))}" for x, _, high in run]
            lower = [f"{coordinate(self.x(x))} {coordinate(self.y(low))}" for x, low, _ in run]
            path = "M" + "L".join(upper + lower[::-1]) + "Z"
            parts.append(tag("path", d=path, class_=f"interval {kind}"))
        runs = _runs(line.points)
        for points in runs:
            path = "M" + "L".join(
                f"{coordinate(self.x(x))} {coordinate(self.y(y))}" for x, y in points
            )
            parts.append(
                tag(
                    "path",
                    d=path,
                    class_=f"series {kind}",
                    stroke_dasharray=DASHES[index % len(DASHES)],
                )
            )
        parts += [self._marker(index, kind, line, place) for place in range(len(line.points))]
        return tag("g", join(parts), data_grid=len(line.points))

    def _marker(self, index: int, kind: str, line: Series, place: int) -> Markup:
        (x, y), (low, high) = line.points[place], line.ends[place]
        if not (math.isfinite(x) and math.isfinite(y)):
            return Markup("")
        text = f"{line.name} · {self.view.x_label} {_plain(x)} · {numbers.interval(y, low, high)}"
        at_x, at_y = self.x(x), self.y(y)
        radius = 3.0 if len(line.points) <= 40 else 2.0
        title, look = tag("title", text), f"marker {kind}"
        if index % 3 == 1:
            return tag(
                "rect",
                title,
                x=at_x - radius,
                y=at_y - radius,
                width=2 * radius,
                height=2 * radius,
                class_=look,
            )
        if index % 3 == 2:
            side = radius * 1.4
            top = f"M{coordinate(at_x)} {coordinate(at_y - side)}"
            path = f"{top}l{side} {side}l-{side} {side}l-{side}-{side}Z"
            return tag("path", title, d=path, class_=look)
        return tag("circle", title, cx=at_x, cy=at_y, r=radius, class_=look)

    def _ends(self) -> list[tuple[str, float, float, str]]:
        """Name, x, y and class of each label's anchor, from top to bottom."""
        ends = []
        for index, line in enumerate(self.view.series):
            finite = [(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
            x, y = max(finite, default=(self.x.high, self.y.low))
            kind = f"c{(index if line.category is None else line.category) % 8}"
            ends.append((line.name, self.x(x), self.y(y), kind))
        if self.view.null is not None and self.view.null.edges:
            x, low, high = max(self.view.null.edges)
            ends.append((self._null_name(), self.x(x), self.y((low + high) / 2), "gray"))
        return sorted(ends, key=lambda end: (end[2], end[0]))

    def _labels(self) -> tuple[Markup, float]:
        ends = self._ends()
        if self.labels_below:
            return self._keys(ends), LABEL_GAP * 1.25 * len(ends)
        heights = spread([y for _, _, y, _ in ends], LABEL_GAP, self.top, self.height - self.bottom)
        parts = []
        for (name, x, y, kind), at in zip(ends, heights, strict=True):
            start = self.x.end + 12
            if abs(at - y) > 3 or x < self.x.end - 12:
                line = (
                    f"M{coordinate(x + 5)} {coordinate(y)}L{coordinate(start - 3)} {coordinate(at)}"
                )
                parts.append(tag("path", d=line, class_="leader"))
            text = shorten(name, int((self.right - 12) / text_width("x", 12)))
            parts.append(tag("text", text, x=start, y=at + 4, class_=f"strong {kind}"))
        return join(parts), 0.0

    def _keys(self, ends: list[tuple[str, float, float, str]]) -> Markup:
        order = {line.name: index for index, line in enumerate(self.view.series)}
        parts = []
        for row, (name, _, _, kind) in enumerate(ends):
            y = self.height + 8 + row * LABEL_GAP * 1.25
            sample = f"M2 {coordinate(y)}h26"
            if kind == "gray":
                mark = tag("rect", x=2, y=y - 5, width=26, height=10, class_="null")
            else:
                dash = DASHES[order.get(name, 0) % len(DASHES)]
                mark = tag("path", d=sample, class_=f"series {kind}", stroke_dasharray=dash)
            text = shorten(name, int((self.width - 40) / text_width("x", 12)))
            parts.append(mark + tag("text", text, x=36, y=y + 4, class_="strong"))
        return join(parts)


def spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Return places at least ``gap`` apart, near ascending wanted ones, inside low to high.

    Places are pushed down where they crowd, then the whole is pushed up from the lower bound.
    """
    placed: list[float] = []
    for value in wanted:
        floor = placed[-1] + gap if placed else low
        placed.append(max(value, floor))
    limit = high
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


def tick_labels(values: list[float], *, log: bool = False) -> list[str]:
    """Return ticks written to the same number of decimals, or each by itself on a log scale."""
    if log or len(values) < 2:
        return [_plain(value) for value in values]
    step = min(b - a for a, b in zip(values, values[1:], strict=False))
    largest = max(abs(value) for value in values)
    if largest >= 1e6 or step < 1e-4:
        return [numbers.number(value) for value in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [numbers.fixed(value, decimals) for value in values]


def _plain(value: float) -> str:
    if float(value).is_integer() and abs(value) < 1e6:
        return numbers.count(int(value))
    return numbers.number(value)


def _runs(rows: Sequence[tuple[float, ...]]) -> list[list[tuple[float, ...]]]:
    """Return the longest runs of rows in which every number is finite."""
    runs: list[list[tuple[float, ...]]] = [[]]
    for row in rows:
        if all(math.isfinite(value) for value in row):
            runs[-1].append(row)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
