"""Distributions: every point when there are fewer than 100, a density otherwise, with the baseline.

Example::

    Distribution(samples=(Sample("trained", values),), baseline=Sample("twin", others),
                 x_label="logit difference (logits)")
    Distribution(samples=(...), baseline=0.0, baseline_label="chance", x_label="...")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microtome.errors import ShapeError
from microtome.views import numbers
from microtome.views.curve_drawing import tick_labels
from microtome.views.glyphs import mono_width, shorten, text_width
from microtome.views.markup import Markup, coordinate, join, tag
from microtome.views.scales import Scale, span
from microtome.views.table import Cell, Table
from microtome.views.view import Drawing, svg

MANY = 100
"""From this many values on, a sample is drawn as a density."""
RADII, ROW, NARROW_HEAD = (3.5, 3.0, 2.5, 2.0, 1.5), 72, 22


@dataclass(frozen=True, eq=False)
class Sample:
    """Values of one kind.

    Attributes:
        name: What they are.
        values: The values; those that are not finite are left out and counted.
        category: Which of the eight categories it is, or None for its place.
    """

    name: str
    values: ArrayLike
    category: int | None = None

    @property
    def finite(self) -> NDArray[np.float64]:
        """The finite values, ascending."""
        flat = np.asarray(self.values, dtype=np.float64).ravel()
        return np.sort(flat[np.isfinite(flat)])

    @property
    def dropped(self) -> int:
        """How many values are not finite."""
        return int(np.size(self.values)) - len(self.finite)


@dataclass(frozen=True, eq=False)
class Distribution(Drawing):
    """Samples above a common axis, one row each, the baseline last and in gray.

    Attributes:
        samples: The samples, from top to bottom.
        baseline: What they are compared with: a sample, or one value drawn as a vertical.
        x_label: What is measured, with its unit.
        baseline_label: Name of a baseline that is one value.

    Raises:
        ShapeError: There is no sample, or one without a finite value.
    """

    samples: Sequence[Sample]
    baseline: Sample | float
    x_label: str
    baseline_label: str = "baseline"

    def __post_init__(self) -> None:
        """Check that every sample has something to draw."""
        if not self.samples:
            raise ShapeError("a distribution needs at least one sample, got none")
        if not isinstance(self.baseline, Sample) and not math.isfinite(self.baseline):
            raise ShapeError(f"the baseline is {self.baseline}; give a finite value or a sample")
        for sample in self.rows:
            if not len(sample.finite):
                raise ShapeError(
                    f"sample {sample.name!r} has {np.size(sample.values)} values, none of them "
                    "finite; leave it out or give finite values"
                )

    @property
    def rows(self) -> list[Sample]:
        """The samples and, if it is one, the baseline."""
        extra = [self.baseline] if isinstance(self.baseline, Sample) else []
        return [*self.samples, *extra]

    def draw(self, width: int) -> Markup:
        """Return the plot as SVG, at most 680 px wide."""
        return _Drawing(self, min(width, 680)).draw()

    def table(self) -> Table:
        """Return n, mean and quantiles of each sample."""
        columns = ("sample", "n", "not finite", "mean", "5 %", "25 %", "median", "75 %", "95 %")
        rows: list[list[Cell]] = []
        for sample in self.rows:
            quantiles = np.quantile(sample.finite, (0.05, 0.25, 0.5, 0.75, 0.95))
            head: list[Cell] = [sample.name, len(sample.finite), sample.dropped]
            rows.append([*head, float(sample.finite.mean()), *map(float, quantiles)])
        if not isinstance(self.baseline, Sample):
            empty: list[Cell] = [None] * 5
            rows.append([self.baseline_label, None, None, float(self.baseline), *empty])
        return Table(columns, rows, self.x_label)


class _Drawing:
    """The geometry of one distribution at one width."""

    def __init__(self, view: Distribution, width: int) -> None:
        self.view, self.width = view, width
        self.narrow = width < 480
        longest = max(text_width(sample.name, 12) for sample in view.rows)
        self.left = 8.0 if self.narrow else min(200.0, max(longest, 72.0)) + 16
        self.row = ROW + (NARROW_HEAD if self.narrow else 0)
        values = [float(v) for sample in view.rows for v in (sample.finite[0], sample.finite[-1])]
        if not isinstance(view.baseline, Sample):
            values.append(float(view.baseline))
        self.x = Scale(*span(values, margin=0.04), self.left, width - 12)
        self.top = 28.0 if not isinstance(view.baseline, Sample) else 8.0
        self.base = self.top + self.row * len(view.rows)

    def draw(self) -> Markup:
        """Return the whole drawing."""
        rows = join(self._row(index, sample) for index, sample in enumerate(self.view.rows))
        label = f"distribution of {self.view.x_label}"
        parts = (self._axis(), self._line(), rows)
        return svg(self.width, self.base + 48, label, *parts, class_="mt-distribution")

    def _axis(self) -> Markup:
        base = self.base
        parts = [
            tag(
                "path",
                d=f"M{coordinate(self.left)} {coordinate(base)}H{coordinate(self.x.end)}",
                class_="axis",
            )
        ]
        ticks, free = self.x.ticks(4 if self.narrow else 7), -math.inf
        for value, text in zip(ticks, tick_labels(ticks), strict=True):
            x, half = self.x(value), mono_width(text, 11) / 2
            if x - half >= free:
                free = x + half + 8
                parts.append(tag("path", d=f"M{coordinate(x)} {coordinate(base)}v5", class_="axis"))
                parts.append(
                    tag("text", text, x=x, y=base + 18, text_anchor="middle", class_="tick")
                )
        parts.append(
            tag(
                "text",
                self.view.x_label,
                x=self.x.end,
                y=base + 40,
                text_anchor="end",
                class_="label",
            )
        )
        return join(parts)

    def _line(self) -> Markup | None:
        if isinstance(self.view.baseline, Sample):
            return None
        x = self.x(float(self.view.baseline))
        text = f"{self.view.baseline_label}: {numbers.number(float(self.view.baseline))}"
        half = text_width(text, 12) / 2
        at = min(max(x, half), self.width - half)
        label = tag("text", text, x=at, y=14, text_anchor="middle", class_="label")
        path = f"M{coordinate(x)} {coordinate(self.top - 6)}V{coordinate(self.base)}"
        return tag("path", d=path, class_="target-line") + label

    def _row(self, index: int, sample: Sample) -> Markup:
        gray = isinstance(self.view.baseline, Sample) and index == len(self.view.rows) - 1
        place = index if sample.category is None else sample.category
        kind = "gray" if gray else f"c{place % 8}"
        floor = self.top + self.row * (index + 1) - 10
        values = sample.finite
        draw = self._density if len(values) >= MANY else self._points
        mean = self.x(float(values.mean()))
        tick = tag(
            "path",
            tag("title", f"mean {numbers.number(float(values.mean()))}"),
            d=f"M{coordinate(mean)} {coordinate(floor - ROW + 20)}V{coordinate(floor + 3)}",
            class_="chosen",
        )
        rule = tag(
            "path",
            d=f"M{coordinate(self.left)} {coordinate(floor + 10)}H{coordinate(self.x.end)}",
            class_="hair",
        )
        return tag("g", rule, draw(values, floor, kind), tick, self._name(sample, floor))

    def _name(self, sample: Sample, floor: float) -> Markup:
        count = f"n {numbers.count(len(sample.finite))}"
        mean = f"mean {numbers.number(float(sample.finite.mean()))}"
        if self.narrow:
            y = floor - ROW + 10
            name = shorten(sample.name, int((self.width - 150) / text_width("x", 12)))
            facts = tag(
                "text", f"{count} · {mean}", x=self.x.end, y=y, text_anchor="end", class_="num"
            )
            return tag("text", name, x=self.left, y=y, class_="strong") + facts
        name = shorten(sample.name, int((self.left - 16) / text_width("x", 12)))
        parts = (
            tag("text", name, x=0, y=floor - 30, class_="strong"),
            tag("text", count, x=0, y=floor - 14, class_="num"),
            tag("text", mean, x=0, y=floor, class_="num"),
        )
        return join(parts)

    def _points(self, values: NDArray[np.float64], floor: float, kind: str) -> Markup:
        places = [self.x(float(value)) for value in values]
        middle, room = floor - (ROW - 26) / 2, (ROW - 22) / 2
        for radius in RADII:
            shifts, fits = swarm(places, 2 * radius + 0.5, most=room - radius)
            if fits:
                break
        points = [
            tag(
                "circle",
                tag("title", numbers.number(float(value))),
                cx=place,
                cy=middle + shift,
                r=radius,
                class_=f"point {kind}",
            )
            for value, place, shift in zip(values, places, shifts, strict=True)
        ]
        return tag("g", join(points), data_grid=len(points))

    def _density(self, values: NDArray[np.float64], floor: float, kind: str) -> Markup:
        grid = np.linspace(self.x.low, self.x.high, 161)
        heights = density(values, grid)
        scale = (ROW - 26) / float(heights.max())
        seen = np.flatnonzero(heights > 0.004 * heights.max())
        shown = range(int(seen[0]), int(seen[-1]) + 1)
        outline = "L".join(
            f"{coordinate(self.x(float(grid[k])))} {coordinate(floor - scale * float(heights[k]))}"
            for k in shown
        )
        start, end = (coordinate(self.x(float(grid[k]))) for k in (shown[0], shown[-1]))
        path = f"M{start} {coordinate(floor)}L{outline}L{end} {coordinate(floor)}Z"
        return tag("path", d=path, class_=f"density {kind}")


def swarm(places: list[float], size: float, *, most: float) -> tuple[list[float], bool]:
    """Return how far to move ascending places sideways so that marks do not overlap.

    Args:
        places: Ascending places along the axis, in pixels.
        size: Least distance of two centers.
        most: Largest shift to either side; where that is not enough, marks overlap.

    Returns:
        One shift per place, and whether no marks overlap.
    """
    shifts: list[float] = []
    fits = True
    for index, place in enumerate(places):
        near = [(place - places[k], shifts[k]) for k in range(index) if place - places[k] < size]
        tangents = [math.sqrt(size**2 - gap**2) for gap, _ in near]
        choices = [0.0]
        for (_, shift), reach in zip(near, tangents, strict=True):
            choices += [shift + reach, shift - reach]
        free = [
            choice
            for choice in choices
            if abs(choice) <= most
            and all((choice - s) ** 2 + gap**2 >= size**2 - 1e-6 for gap, s in near)
        ]
        # The sign breaks ties, so that a swarm grows to both sides in turn.
        best = min(
            free, key=lambda c: (round(abs(c), 6), c > 0 if index % 2 else c < 0), default=0.0
        )
        shifts.append(best)
        fits = fits and bool(free)
    return shifts, fits


def density(values: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a Gaussian kernel density on a grid, with Silverman's bandwidth (Silverman, 1986).

    Args:
        values: Finite values [n].
        grid: Ascending places [m].

    Returns:
        Density at the places [m].
    """
    quartiles = np.quantile(values, (0.25, 0.75))
    spreads = (float(values.std()), float(quartiles[1] - quartiles[0]) / 1.34)
    scale = min((s for s in spreads if s > 0), default=0.0)
    width = max(0.9 * scale * len(values) ** -0.2, float(grid[1] - grid[0]))
    # One value at a time would be slow and all at once large: a histogram on the grid loses nothing
    # that a bandwidth of at least one grid step would show.
    step = float(grid[1] - grid[0])
    edges = np.append(grid - step / 2, grid[-1] + step / 2)
    counts, _ = np.histogram(values, bins=edges)
    kernel = np.exp(-0.5 * ((grid[:, None] - grid[None, :]) / width) ** 2)
    result: NDArray[np.float64] = kernel @ counts / (len(values) * width * math.sqrt(2 * math.pi))
    return result
