"""Absolute positions of a batch's rows, and where they lie in the tensors of one call.

Position ``p`` of a row is its ``p``-th own token: padding does not count. A call covers columns
``offset`` to ``offset + width`` of the padded sequence (``offset`` > 0 while generating with a
cache).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from microtome.errors import SelectorError
from microtome.tracing.indices import Index, Span

NONE = -1
"""Entry of a position table that selects nothing."""


@dataclass(frozen=True, eq=False)
class Positions:
    """Where each row's tokens lie in the tensors of one call.

    Attributes:
        batch: Number of rows.
        width: Columns that this call computes.
        offset: Columns before them, held in a cache.
        pads: Padding columns on the left of each row.
        lengths: Tokens of each row's prompt; negative positions count from there.
        totals: Tokens of each row so far (prompt and what was generated).
        uniform: Whether all rows have the same padding and lengths.
    """

    batch: int
    width: int
    offset: int
    pads: tuple[int, ...]
    lengths: tuple[int, ...]
    totals: tuple[int, ...]

    @property
    def uniform(self) -> bool:
        """Whether all rows have the same padding and lengths."""
        return (
            len(set(self.pads)) == 1 and len(set(self.lengths)) == 1 and len(set(self.totals)) == 1
        )

    def absolute(
        self, index: Index | None, table: Sequence[Sequence[int]] | None
    ) -> list[tuple[int, ...]]:
        """Return the absolute positions that a selector means in each row.

        Raises:
            SelectorError: If a position lies outside a row's prompt.
        """
        if table is not None:
            if len(table) != self.batch:
                raise SelectorError(
                    f"The table of positions has {len(table)} rows but the batch has {self.batch}."
                )
            return [tuple(row) for row in table]
        if index is None:
            return [tuple(range(total)) for total in self.totals]
        return [self._row(index, row) for row in range(self.batch)]

    def _row(self, index: Index, row: int) -> tuple[int, ...]:
        length, total = self.lengths[row], self.totals[row]
        if isinstance(index, Span):
            start = _from_end(index.start, length, 0)
            stop = _from_end(index.stop, length, total)
            return tuple(range(max(start, 0), min(stop, total)))
        for p in index:
            if p < -length:
                raise SelectorError(f"pos={p} is out of range: row {row} has {length} tokens.")
            if p >= total and self.offset == 0 and p >= length and self.totals == self.lengths:
                raise SelectorError(
                    f"pos={p} is out of range: row {row} has {length} tokens (0 to {length - 1})."
                )
        return tuple(p + length if p < 0 else p for p in index if p < total)

    def columns(
        self, index: Index | None, table: Sequence[Sequence[int]] | None
    ) -> torch.Tensor | None:
        """Return the columns of this call that a selector means.

        Returns:
            None for "all of them", a ``[k]`` tensor where they are the same in all rows, else a
            ``[batch, k]`` tensor with -1 where a row has fewer.
        """
        if index is None and table is None:
            return None
        rows = []
        for row, wanted in enumerate(self.absolute(index, table)):
            local = (p + self.pads[row] - self.offset for p in wanted if p != NONE)
            rows.append([c for c in local if 0 <= c < self.width])
        if all(r == rows[0] for r in rows):
            return torch.tensor(rows[0], dtype=torch.long)
        longest = max(len(r) for r in rows)
        padded = [r + [NONE] * (longest - len(r)) for r in rows]
        return torch.tensor(padded, dtype=torch.long).reshape(self.batch, longest)

    def keys(self, width: int) -> Positions:
        """Return the positions seen from a key or value tensor of ``width`` columns.

        While generating with a cache it covers all earlier columns that the cache still holds.
        """
        total = self.offset + self.width
        if width == self.width:
            return self
        return Positions(self.batch, width, total - width, self.pads, self.lengths, self.totals)


def _from_end(bound: int | None, length: int, default: int) -> int:
    if bound is None:
        return default
    return bound + length if bound < 0 else bound


def of_batch(lengths: Sequence[int], width: int) -> Positions:
    """Return the positions of a right-padded batch without a cache."""
    rows = tuple(int(n) for n in lengths)
    return Positions(len(rows), width, 0, (0,) * len(rows), rows, rows)
