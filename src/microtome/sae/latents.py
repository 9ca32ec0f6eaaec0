"""The active latents of many rows, as compressed sparse rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import ShapeError


@dataclass(frozen=True, eq=False)
class SparseLatents:
    """Which latents are active in which row, and how strongly.

    Attributes:
        offsets: Where the entries of each row begin, and the total ``[row + 1]``, int64.
        indices: Numbers of the active latents ``[entry]``, int64, growing within a row.
        values: Their activations ``[entry]``, none of them 0.
        d_sae: Number of latents.
    """

    offsets: Tensor
    indices: Tensor
    values: Tensor
    d_sae: int

    @staticmethod
    def of(dense: Tensor) -> SparseLatents:
        """Return the entries of dense latents ``[row, d_sae]`` that are not 0.

        Raises:
            ShapeError: ``dense`` is not a matrix.
        """
        if dense.dim() != 2:
            raise ShapeError(f"latents of shape {tuple(dense.shape)}; expected row, latent")
        rows, indices = dense.nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=dense.shape[0])
        offsets = torch.zeros(dense.shape[0] + 1, dtype=torch.int64, device=dense.device)
        torch.cumsum(counts, 0, out=offsets[1:])
        return SparseLatents(offsets, indices, dense[rows, indices], dense.shape[1])

    @staticmethod
    def join(parts: Sequence[SparseLatents]) -> SparseLatents:
        """Return the rows of several, one after the other.

        Raises:
            ShapeError: There is none, or they differ in the number of latents.
        """
        if not parts or any(part.d_sae != parts[0].d_sae for part in parts):
            widths = [part.d_sae for part in parts]
            raise ShapeError(f"latents of widths {widths}; expected one width, at least one part")
        counts = torch.cat([part.offsets.diff() for part in parts])
        return SparseLatents(
            torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            torch.cat([part.indices for part in parts]),
            torch.cat([part.values for part in parts]),
            parts[0].d_sae,
        )

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.offsets.shape[0] - 1

    @property
    def rows(self) -> Tensor:
        """The row of each entry ``[entry]``, int64."""
        counts = self.offsets.diff()
        return torch.arange(self.n_rows, device=counts.device).repeat_interleave(counts)

    def dense(self) -> Tensor:
        """Return the latents with their zeros ``[row, d_sae]``."""
        full = self.values.new_zeros(self.n_rows, self.d_sae)
        full[self.rows, self.indices] = self.values
        return full
