"""Heat maps: layer by position, layer by head; row 0 at the bottom.

Example::

    HeatMap(values, row_labels=("0", "1"), col_labels=tokens, row_axis="layer", col_axis="position",
            title="effect of patching", unit="logits", zero=mask, highlight=((1, 3),), limit=None,
            signed=True)

NaN is hatched (not computed); cells that are zero by construction carry a dot; highlighted cells
are outlined; numbers stand inside when there are at most 12 x 12 cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microtome.errors import ShapeError
from microtome.views.glyphs import visible_label
from microtome.views.heatmap_drawing import HeatMapDrawing
from microtome.views.markup import Markup
from microtome.views.palette import symmetric_limit
from microtome.views.table import Cell, Table
from microtome.views.view import WIDE, Drawing

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
        return [visible_label(t) for t in row_labels], [visible_label(t) for t in col_labels]

    def draw(self, width: int) -> Markup:
        """Return the map as SVG; cells are square, 14 px or more, so it can be wider than asked."""
        rows, columns = self.matrix.shape
        many = rows * columns > MANY
        return HeatMapDrawing(self, WIDE if many else width, titled=not many).draw()

    def table(self) -> Table:
        """Return the matrix with its labels, the highest row first, as it is drawn."""
        row_labels, col_labels = self.labels()
        rows: list[list[Cell]] = [
            [row_labels[r], *map(float, self.matrix[r])] for r in reversed(range(len(row_labels)))
        ]
        unit = f", {self.unit}" if self.unit else ""
        return Table([f"{self.row_axis} \\ {self.col_axis}", *col_labels], rows, self.title + unit)
