"""What is known of a site's rows without reading them again: mean, second moment, norms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from microtome.errors import DataError, FormatError

STEPS = 64
"""Steps of the norm's histogram within a factor of two: quantiles are good to half a percent."""

QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)
"""Quantiles of the norm that are listed."""

CHUNK = 8192
"""Rows turned into float64 at a time."""


@dataclass
class Moments:
    """Sums over the rows of one site, in float64, to which rows can be added.

    Attributes:
        total: Sum of the rows, ``[width]``.
        squares: Sum of their squares, ``[width]``.
        rows: How many rows.
        norms: How many rows have a norm of ``2 ** (key / STEPS)``, rounded down; None is the key of
            rows that are zero.
    """

    total: Tensor
    squares: Tensor
    rows: int = 0
    norms: dict[int | None, int] = field(default_factory=dict)

    @staticmethod
    def empty(width: int) -> Moments:
        """Return the moments of no rows."""
        return Moments(
            torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
        )

    @staticmethod
    def of(values: Tensor) -> Moments:
        """Return the moments of rows ``[rows, width]``."""
        found = Moments.empty(values.shape[1])
        found.add(values)
        return found

    @property
    def width(self) -> int:
        """Width of the rows."""
        return len(self.total)

    @property
    def mean(self) -> Tensor:
        """The mean row, ``[width]`` in float64."""
        return self.total / max(self.rows, 1)

    @property
    def second_moment(self) -> Tensor:
        """The mean of the squares, entry by entry, ``[width]`` in float64."""
        return self.squares / max(self.rows, 1)

    @property
    def scale(self) -> float:
        """The factor that makes the mean squared norm the width.

        Raises:
            DataError: If all rows are zero.
        """
        power = float(self.second_moment.sum())
        if power <= 0:
            raise DataError(
                f"All {self.rows} rows are zero, so they cannot be scaled; harvest another site."
            )
        return math.sqrt(self.width / power)

    def add(self, values: Tensor) -> None:
        """Add rows ``[rows, width]``."""
        for part in values.split(CHUNK):
            exact = part.detach().to("cpu", torch.float64, copy=True)
            self.total += exact.sum(0)
            exact.square_()
            self.squares += exact.sum(0)
            norms = exact.sum(1).sqrt()
            keys = torch.floor(torch.log2(norms[norms > 0]) * STEPS).to(torch.int64)
            for key, count in zip(*keys.unique(return_counts=True), strict=True):
                self._count(int(key), int(count))
            self._count(None, int((norms == 0).sum()))
        self.rows += len(values)

    def norm_quantile(self, share: float) -> float:
        """Return the norm that a share of the rows lies below, to half a percent."""
        wanted, seen = share * self.rows, 0
        keys = sorted(self.norms, key=lambda k: -math.inf if k is None else k)
        for key in keys:
            seen += self.norms[key]
            if seen >= wanted:
                return 0.0 if key is None else 2.0 ** ((key + 0.5) / STEPS)
        return math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the sums as plain values, from which they can be read back exactly."""
        counts = {str(k): n for k, n in self.norms.items()}
        return {
            "width": self.width,
            "rows": self.rows,
            "sum": self.total.tolist(),
            "sum_of_squares": self.squares.tolist(),
            "norm_histogram": dict(sorted(counts.items())),
        }

    @staticmethod
    def from_dict(values: Any, where: str) -> Moments:
        """Read what :meth:`to_dict` wrote.

        Raises:
            FormatError: If it is not that.
        """
        try:
            total = torch.tensor(values["sum"], dtype=torch.float64)
            squares = torch.tensor(values["sum_of_squares"], dtype=torch.float64)
            norms = {
                None if k == "None" else int(k): int(n) for k, n in values["norm_histogram"].items()
            }
            rows, width = int(values["rows"]), int(values["width"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(
                f"{where} holds damaged moments ({error!r}); harvest again into another folder."
            ) from error
        if total.shape != (width,) or squares.shape != (width,) or sum(norms.values()) != rows:
            raise FormatError(
                f"{where} holds moments that do not fit together (width {width}, {rows} rows); "
                "harvest again into another folder."
            )
        return Moments(total, squares, rows, norms)

    def _count(self, key: int | None, count: int) -> None:
        if count:
            self.norms[key] = self.norms.get(key, 0) + count
