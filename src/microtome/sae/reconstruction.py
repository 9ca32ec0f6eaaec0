"""How well a coder reconstructs, and with how many latents: FVU, L0 and their kin, in float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from microtome.errors import EmptyDataError, ShapeError
from microtome.sae.coder import SAE
from microtome.sae.latents import SparseLatents
from microtome.sae.unexplained import Unexplained
from microtome.store.results import Result


@dataclass(frozen=True, eq=False)
class Reconstruction(Result, schema="sae-reconstruction"):
    """Reconstruction and sparsity of a coder on given rows.

    Attributes:
        n_rows: Rows measured.
        fvu: Fraction of variance unexplained: sum of ``|x - x_hat|^2`` over the sum of
            ``|x - mean|^2``, the mean over all rows.
        l0: Mean number of latents of a row that are not 0.
        l1: Mean sum of their absolute values.
        cosine: Mean cosine of target and reconstruction.
        norm_ratio: Mean of ``|x_hat| / |x|`` over rows that are not zero.
        bias: Relative reconstruction bias ``E |x_hat|^2 / E <x, x_hat>``, 1 without shrinkage
            (Rajamanoharan et al., 2024, eq. 10).
        frequency: Share of the rows on which each latent is active ``[latent]``.
        fvu_by_target: FVU of each target site ``[target]``.
    """

    n_rows: int
    fvu: float
    l0: float
    l1: float
    cosine: float
    norm_ratio: float
    bias: float
    frequency: np.ndarray
    fvu_by_target: tuple[float, ...]

    @property
    def dead_share(self) -> float:
        """Share of the latents that were active on none of the ``n_rows`` rows."""
        return float((self.frequency == 0).mean())


_SUMS = ("l1", "cosine", "ratio", "nonzero", "size", "out", "inner")

_ROUNDING = 1e-26
"""Share of the mean square below which a variance is what rounding leaves of none."""


class ReconstructionTally:
    """Adds up what :class:`Reconstruction` states, batch after batch, in float64.

    Args:
        coder: Its widths and targets.
    """

    def __init__(self, coder: SAE) -> None:
        self._slices = coder.architecture.target_slices
        self._n = 0
        self._origin: Tensor | None = None
        self._shifted = torch.zeros(coder.d_out, dtype=torch.float64)
        self._targets = [Unexplained() for _ in self._slices]
        self._active = torch.zeros(coder.d_sae, dtype=torch.int64)
        self._sums = dict.fromkeys(_SUMS, 0.0)

    def add(self, targets: Tensor, outputs: Tensor, latents: Tensor | SparseLatents) -> None:
        """Count rows: targets and outputs ``[row, d_out]``, latents ``[row, latent]``.

        Raises:
            ShapeError: The rows do not match, or a value is not finite.
        """
        wide = (len(targets) if targets.dim() else 0, len(self._shifted))
        deep = (wide[0], len(self._active))
        shape: tuple[int, ...]
        if isinstance(latents, SparseLatents):
            shape = (latents.n_rows, latents.d_sae)
        else:
            shape = tuple(latents.shape)
        if targets.shape != wide or outputs.shape != wide or shape != deep:
            raise ShapeError(
                f"targets {tuple(targets.shape)}, reconstructions {tuple(outputs.shape)} and "
                f"latents {shape} do not match; expected the same rows, "
                f"{wide[1]}, {wide[1]} and {deep[1]} wide"
            )
        x, y = targets.detach().double().cpu(), outputs.detach().double().cpu()
        if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
            raise ShapeError("a target or a reconstruction is NaN or infinite; check the inputs")
        if not len(x):
            return
        if self._origin is None:
            self._origin = x.mean(0)  # close to the mean, so that the sums below do not cancel
        self._n += len(x)
        self._shifted += (x - self._origin).sum(0)
        for sums, part in zip(self._targets, self._slices, strict=True):
            sums.add(x[:, part], (x - y)[:, part], self._origin[part])
        if isinstance(latents, SparseLatents):
            values = latents.values.detach()
            self._active += torch.bincount(latents.indices.cpu(), minlength=latents.d_sae)
        else:
            values = latents.detach()
            self._active += (values != 0).sum(0).cpu()
        inner, norms, sizes = (x * y).sum(1), y.norm(dim=1), x.norm(dim=1)
        self._sums["l1"] += float(values.double().abs().sum())
        self._sums["cosine"] += float((inner / (norms * sizes).clamp_min(1e-30)).sum())
        there = sizes > 0  # a row of zeros has no ratio
        self._sums["ratio"] += float((norms[there] / sizes[there]).sum())
        self._sums["nonzero"] += float(there.sum())
        self._sums["size"] += float(sizes.square().sum())
        self._sums["out"] += float(norms.square().sum())
        self._sums["inner"] += float(inner.sum())

    def result(self) -> Reconstruction:
        """Return the figures of all rows so far.

        Raises:
            EmptyDataError: No row was added.
        """
        if not self._n:
            raise EmptyDataError("no rows to measure a reconstruction on; give at least one")
        n, sums = self._n, self._sums
        offset = self._shifted / n
        parts = [
            kept.about(offset[part]) for kept, part in zip(self._targets, self._slices, strict=True)
        ]
        least = _ROUNDING * sums["size"]
        parts = [p if p.variance > least else replace(p, variance=0.0) for p in parts]
        whole = Unexplained(n, sum(p.squared_error for p in parts), sum(p.variance for p in parts))
        return Reconstruction(
            n_rows=n,
            fvu=whole.fvu,
            l0=float(self._active.sum()) / n,
            l1=sums["l1"] / n,
            cosine=sums["cosine"] / n,
            norm_ratio=sums["ratio"] / sums["nonzero"] if sums["nonzero"] else float("nan"),
            bias=sums["out"] / sums["inner"] if sums["inner"] else float("nan"),
            frequency=(self._active.double() / n).numpy(),
            fvu_by_target=tuple(p.fvu for p in parts),
        )


@torch.no_grad()
def reconstruct(
    coder: SAE, batches: Iterable[tuple[Tensor, Tensor]] | Tensor, *, block: int = 4096
) -> Reconstruction:
    """Measure how well a coder reconstructs.

    Args:
        coder: The coder.
        batches: Inputs ``[..., d_in]`` with their targets ``[..., d_out]``, batch by batch; or one
            tensor that is both. They are computed with in the coder's own precision.
        block: Rows encoded at a time.

    Returns:
        Figures over all rows.

    Raises:
        EmptyDataError: There is no row.
        ShapeError: A width does not fit, or a value is not finite.
    """
    tally = ReconstructionTally(coder)
    pairs = [(batches, batches)] if isinstance(batches, Tensor) else batches
    for inputs, targets in pairs:
        if inputs.dim() < 2 or inputs.shape[:-1] != targets.shape[:-1]:
            raise ShapeError(
                f"inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)}; expected rows, "
                "as many of both"
            )
        rows = inputs.flatten(0, -2).split(block), targets.flatten(0, -2).split(block)
        for x, y in zip(*rows, strict=True):
            x = x.to(coder.weights["b_dec"])
            latents = coder.encode(x)
            outputs = coder.decode(latents)
            past = coder.bypass(x)
            tally.add(y, outputs if past is None else outputs + past, latents)
    return tally.result()
