"""Histograms: how many of something lie in each bin, with a baseline as a line.

Example::

    Histogram(edges=[0, 1, 2, 3], counts=[4, 9, 1], x_label="activation", what="tokens")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from microtome.errors import ShapeError
from microtome.views import numbers
from microtome.views.curve_drawing import tick_labels
from microtome.views.glyphs import mono_width
from microtome.views.markup import Markup, coordinate, join, tag
from microtome.views.scales import Scale, span
from microtome.views.table import Table
from microtome.views.view import Drawing, svg

HEIGHT, TOP, FOOT = 132, 20, 44


@dataclass(frozen=True, eq=False)
class Histogram(Drawing):
    """Bars above an axis, and the counts of a baseline as a line of steps.

    Attributes:
        edges: Edges of the bins, growing, one more than there are counts.
        counts: Number in each bin, 0 or more.
        x_label: What is measured, with its unit.
        what: What is counted, such as "latents".
        baseline: Counts of what it is compared with, scaled to the same total, or None.
        baseline_label: Its name.
        category: Which of the eight categories the bars are.

    Raises:
        ShapeError: Edges and counts do not fit, or a count is negative or not finite.
    """

    edges: Sequence[float]
    counts: Sequence[float]
    x_label: str
    what: str = ""
    baseline: Sequence[float] | None = None
    baseline_label: str = "baseline"
    category: int = 0

    def __post_init__(self) -> None:
        """Check that edges and counts fit."""
        edges = np.asarray(self.edges, dtype=np.float64)
        rows = [np.asarray(self.counts, dtype=np.float64)]
        if self.baseline is not None:
            rows.append(np.asarray(self.baseline, dtype=np.float64))
        for counts in rows:
            if not len(counts) or len(edges) != len(counts) + 1:
                raise ShapeError(
                    f"a histogram has {len(edges)} edges and {len(counts)} counts; give one edge "
                    "more than counts, at least two"
                )
            if not bool(np.isfinite(counts).all()) or bool((counts < 0).any()):
                raise ShapeError("a count of a histogram is negative or not finite")
        if not bool(np.isfinite(edges).all()) or bool((np.diff(edges) <= 0).any()):
            raise ShapeError("the edges of a histogram must be finite and grow")

    def draw(self, width: int) -> Markup:
        """Return the plot as SVG, at most 680 px wide."""
        width = min(width, 680)
        x = Scale(float(self.edges[0]), float(self.edges[-1]), 8, width - 12)
        scaled = self._scaled()
        top = max(1.0, *map(float, self.counts), *(scaled if scaled is not None else [0.0]))
        y = Scale(0.0, top, HEIGHT - FOOT, TOP)
        label = f"histogram of {self.x_label}"
        parts = (self._bars(x, y), self._steps(x, y, scaled), self._axis(x, width, top))
        return svg(width, HEIGHT, label, *parts, class_="mt-histogram")

    def table(self) -> Table:
        """Return one row for each bin."""
        columns = ["from", "to", self.what or "number"]
        rows: list[list[float | None]] = [
            [float(a), float(b), float(n)]
            for a, b, n in zip(self.edges[:-1], self.edges[1:], self.counts, strict=True)
        ]
        if self.baseline is not None:
            columns.append(self.baseline_label)
            for row, n in zip(rows, self.baseline, strict=True):
                row.append(float(n))
        return Table(columns, rows, self.x_label)

    def _scaled(self) -> list[float] | None:
        if self.baseline is None:
            return None
        total = float(sum(self.baseline))
        share = float(sum(self.counts)) / total if total else 0.0
        return [float(n) * share for n in self.baseline]

    def _bars(self, x: Scale, y: Scale) -> Markup:
        bars = []
        for a, b, n in zip(self.edges[:-1], self.edges[1:], self.counts, strict=True):
            if not n:
                continue
            left, right = x(float(a)), x(float(b))
            words = f"{numbers.number(float(a))} to {numbers.number(float(b))}: {n:g} {self.what}"
            bars.append(
                tag(
                    "rect",
                    tag("title", words.strip()),
                    x=left + 0.5,
                    y=y(float(n)),
                    width=max(0.5, right - left - 1),
                    height=y(0.0) - y(float(n)),
                    class_=f"density c{self.category}",
                )
            )
        return tag("g", join(bars), data_grid=len(bars))

    def _steps(self, x: Scale, y: Scale, scaled: list[float] | None) -> Markup | None:
        if scaled is None:
            return None
        path = f"M{coordinate(x(float(self.edges[0])))} {coordinate(y(0.0))}"
        for b, n in zip(self.edges[1:], scaled, strict=True):
            path += f"V{coordinate(y(n))}H{coordinate(x(float(b)))}"
        line = tag("path", d=path + f"V{coordinate(y(0.0))}", class_="target-line")
        return line + tag(
            "text",
            f"dotted: {self.baseline_label}",
            x=x.end,
            y=12,
            text_anchor="end",
            class_="label",
        )

    def _axis(self, x: Scale, width: int, top: float) -> Markup:
        base = HEIGHT - FOOT
        parts = [
            tag("path", d=f"M{coordinate(x.start)} {base}H{coordinate(x.end)}", class_="axis"),
            tag("text", f"at most {top:,.0f} {self.what}".strip(), x=x.start, y=12, class_="label"),
        ]
        ticks, free = x.ticks(4 if width < 480 else 8), -math.inf
        for value, text in zip(ticks, tick_labels(ticks), strict=True):
            at, half = x(value), mono_width(text, 11) / 2
            if at - half >= free:
                free = at + half + 8
                parts.append(tag("path", d=f"M{coordinate(at)} {base}v5", class_="axis"))
                parts.append(
                    tag("text", text, x=at, y=base + 18, text_anchor="middle", class_="tick")
                )
        words = {"x": x.end, "y": base + 38, "text_anchor": "end", "class_": "label"}
        parts.append(tag("text", self.x_label, **words))
        return join(parts)


def binned(values: Sequence[float], bins: int = 40) -> tuple[list[float], list[int]]:
    """Return edges and counts of equal bins over the range of the finite values."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    flat = flat[np.isfinite(flat)]
    low, high = span([float(flat.min()), float(flat.max())] if len(flat) else [], margin=0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(flat, bins=bins, range=(low, high))
    return edges.tolist(), counts.tolist()
