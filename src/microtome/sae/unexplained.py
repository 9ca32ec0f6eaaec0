"""The fraction of variance unexplained, in one place: what training, finishing and evaluation sum.

FVU is the squared error of all rows over their squared distance from the mean of all rows. Other
packages average it over rows or batches, or take the variance about zero; those figures differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Unexplained:
    """Squared errors of rows and their squared distances from a point, summed in float64.

    Attributes:
        rows: Rows added.
        squared_error: Of all rows.
        variance: Squared distance of the targets from the point, of all rows.
    """

    rows: int = 0
    squared_error: float = 0.0
    variance: float = 0.0

    @torch.no_grad()
    def add(self, targets: Tensor, errors: Tensor, mean: Tensor) -> None:
        """Add a batch.

        Args:
            targets: ``[row, d_out]``.
            errors: ``[row, d_out]``.
            mean: The mean target ``[d_out]``, or another point near it; see :meth:`about`.
        """
        self.rows += len(targets)
        self.squared_error += _squares(errors)
        self.variance += _squares(targets - mean)

    @property
    def fvu(self) -> float:
        """Fraction of the variance unexplained; not a number without variance."""
        return self.squared_error / self.variance if self.variance else math.nan

    def about(self, offset: Tensor) -> Unexplained:
        """Return the sums about another point.

        Args:
            offset: The mean of the rows less the point that they were added about ``[d_out]``.
        """
        variance = self.variance - self.rows * _squares(offset[None])
        return Unexplained(self.rows, self.squared_error, max(variance, 0.0))


def _squares(rows: Tensor) -> float:
    """Return the sum of squares: over each row as it is, over the rows in double precision."""
    return float(torch.linalg.vecdot(rows, rows).sum(dtype=torch.float64))
