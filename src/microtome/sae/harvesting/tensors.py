"""Activations that are in memory already, with the interface of a store."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from microtome.core.hashing import sha256_arrays
from microtome.errors import EmptyDataError, ShapeError
from microtome.sae.harvesting.moments import CHUNK, Moments
from microtome.sae.harvesting.streaming import Streamed

NAME = "activations"
"""The site's name where a tensor is given without one."""


class TensorActivations(Streamed):
    """Rows of one or several sites in memory.

    Args:
        values: ``[rows, width]``, or site to such a tensor with the same rows; floating point, of
            any type, on any device. They are not copied.

    Raises:
        ShapeError: If a tensor has another shape or type, or holds NaN or infinities.
        EmptyDataError: If there are no rows.
    """

    def __init__(self, values: Tensor | Mapping[str, Tensor]) -> None:
        tensors = {NAME: values} if isinstance(values, Tensor) else dict(values)
        for site, tensor in tensors.items():
            _check(site, tensor)
        sizes = {site: len(tensor) for site, tensor in tensors.items()}
        if not any(sizes.values()):
            raise EmptyDataError("There are no rows of activations; give at least one.")
        if len(set(sizes.values())) > 1:
            raise ShapeError(
                f"The sites have different numbers of rows: {sizes}; rows of several sites "
                "belong together and must be equally many."
            )
        self._tensors = {site: tensor.detach() for site, tensor in tensors.items()}
        self._known: dict[str, Moments] = {}
        super().__init__(
            [next(iter(sizes.values()))], {s: t.shape[1] for s, t in self._tensors.items()}
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the sites' names and values."""
        return sha256_arrays(self._tensors)

    def _sums(self, site: str) -> Moments:
        if site not in self._known:
            self._known[site] = Moments.of(self._tensors[site])
        return self._known[site]

    def _values(self, shard: int, site: str) -> Tensor:
        return self._tensors[site]


def _check(site: str, tensor: Tensor) -> None:
    plain = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.itemsize > 1
    if not plain or tensor.ndim != 2:
        what = (
            f"{tensor.dtype} {tuple(tensor.shape)}"
            if isinstance(tensor, Tensor)
            else type(tensor).__name__
        )
        raise ShapeError(
            f"Activations of {site!r} are {what}; expected a floating-point tensor [rows, width] "
            "of 16 bits or more."
        )
    for first in range(0, len(tensor), CHUNK):
        bad = (~torch.isfinite(tensor[first : first + CHUNK]).all(1)).nonzero()[:, 0]
        if len(bad):
            raise ShapeError(
                f"Activations of {site!r} hold NaN or infinities, first in row "
                f"{first + int(bad[0])}; leave those rows out."
            )
