"""Curves: a measure against size, its interval, the nulls as a gray band, the chosen size.

Example::

    Curve(series=(Series("circuit", x, y, low=low, high=high),), x_label="nodes in the circuit",
          y_label="faithfulness", null=NullBand(x, low, high, n=20, name="searched nulls"),
          chosen=14, target=(0.8, 1.2), log_x=True)

Series are told apart by color, dash and marker and are named at their ends, not in a legend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from microtome.errors import ConfigError, ShapeError
from microtome.views.curve_drawing import CurveDrawing
from microtome.views.markup import Markup
from microtome.views.table import Cell, Table
from microtome.views.view import NARROW, Drawing


def _floats(values: ArrayLike) -> tuple[float, ...]:
    return tuple(float(value) for value in np.asarray(values, dtype=np.float64).ravel())


@dataclass(frozen=True, eq=False)
class Series:
    """One line.

    Attributes:
        name: Written at the line's end.
        x: Positions.
        y: Values; NaN breaks the line.
        low: Lower ends of the interval, or None.
        high: Upper ends, or None.
        category: Which of the eight categories it is, or None for its place among the series.

    Raises:
        ShapeError: The arrays differ in length or are empty.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    category: int | None = None

    def __post_init__(self) -> None:
        """Check the lengths."""
        _check_lengths(f"series {self.name!r}", x=self.x, y=self.y, low=self.low, high=self.high)
        if (self.low is None) != (self.high is None):
            raise ShapeError(f"series {self.name!r} has one end of its interval; give low and high")

    @property
    def points(self) -> list[tuple[float, float]]:
        """The points as pairs."""
        return list(zip(_floats(self.x), _floats(self.y), strict=True))

    @property
    def ends(self) -> list[tuple[float, float]]:
        """The ends of the interval as pairs, NaN where there is none."""
        if self.low is None or self.high is None:
            return [(math.nan, math.nan)] * len(self.points)
        return list(zip(_floats(self.low), _floats(self.high), strict=True))


@dataclass(frozen=True, eq=False)
class NullBand:
    """What the same search finds where there is nothing: a band from low to high.

    Attributes:
        x: Positions.
        low: Lower edge of the band.
        high: Upper edge.
        n: How many nulls it sums up.
        name: What they are.

    Raises:
        ShapeError: The arrays differ in length or are empty.
    """

    x: ArrayLike
    low: ArrayLike
    high: ArrayLike
    n: int
    name: str = "nulls"

    def __post_init__(self) -> None:
        """Check the lengths."""
        _check_lengths(f"null band {self.name!r}", x=self.x, low=self.low, high=self.high)

    @property
    def edges(self) -> list[tuple[float, float, float]]:
        """The band as (x, low, high), without points that are not finite."""
        rows = zip(_floats(self.x), _floats(self.low), _floats(self.high), strict=True)
        return [row for row in rows if all(math.isfinite(value) for value in row)]


@dataclass(frozen=True, eq=False)
class Curve(Drawing):
    """Lines over a common axis.

    Attributes:
        series: The lines.
        x_label: What lies on the horizontal axis, with its unit.
        y_label: What lies on the vertical axis, with its unit.
        null: The nulls, or None.
        chosen: The size that was chosen, drawn as a thin vertical, or None.
        chosen_label: What stands at it; its value is added.
        target: The range that was asked for, or None.
        target_label: What the range is.
        log_x: Whether equal ratios of x are equal distances.
        y_range: Range of the vertical axis; from the data if None.

    Raises:
        ShapeError: There is no series.
        ConfigError: A logarithmic axis with values that are not positive, a chosen size that is not
            finite, or a target or range that does not ascend.
    """

    series: Sequence[Series]
    x_label: str
    y_label: str
    null: NullBand | None = None
    chosen: float | None = None
    chosen_label: str = "chosen"
    target: tuple[float, float] | None = None
    target_label: str = "asked for"
    log_x: bool = False
    y_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check that there is something to draw."""
        if not self.series:
            raise ShapeError("a curve needs at least one series, got none")
        if self.chosen is not None and not math.isfinite(self.chosen):
            raise ConfigError(f"chosen is {self.chosen}; give a finite size, or None")
        for name, pair in (("target", self.target), ("y_range", self.y_range)):
            if pair is not None and not -math.inf < pair[0] < pair[1] < math.inf:
                raise ConfigError(f"{name} is {pair}; give two finite values, the lower first")
        # Laid out once now, so that an axis that cannot be drawn is refused here and not later.
        CurveDrawing(self, NARROW)

    def draw(self, width: int) -> Markup:
        """Return the plot as SVG, at most 680 px wide."""
        return CurveDrawing(self, min(width, 680)).draw()

    def table(self) -> Table:
        """Return one row per point of each series and of the null band."""
        rows: list[list[Cell]] = []
        for line in self.series:
            for (x, y), (low, high) in zip(line.points, line.ends, strict=True):
                rows.append([line.name, _size(x), y, low, high])
        if self.null is not None:
            name = f"{self.null.name} (n = {self.null.n})"
            rows += [[name, _size(x), None, low, high] for x, low, high in self.null.edges]
        return Table(("series", self.x_label, self.y_label, "low", "high"), rows)


def _size(value: float) -> int | float:
    """A whole number as an exact count, anything else as it is."""
    return int(value) if value.is_integer() else value


def _check_lengths(name: str, **arrays: ArrayLike | None) -> None:
    lengths = {key: np.size(array) for key, array in arrays.items() if array is not None}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ShapeError(
            f"{name} has arrays of lengths {lengths}; give equal lengths of at least 1"
        )
