"""A pass of circuits whose edges are told apart by place: targets miss edges at some positions.

Shapes as in :mod:`microtome.circuits.edges.edge_pass`, and q places. Under zero ablation what a
target reads is added up from the edges it keeps there, never formed as a difference: so a place
that nothing reaches reads exactly nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from microtome.circuits.edges.edge_pass import EdgePass, Reads
from microtome.circuits.edges.starvation import biases

if TYPE_CHECKING:
    from microtome.circuits.edges.reading import Norm, Reading


class PlacedPass(EdgePass):
    """The state of one pass, shared by its interventions.

    Args:
        reading: The model.
        excluded: Whether each circuit leaves out an edge at a place ``[c, s, target, q]``.
        places: Number of every position's place ``[b, p]``.
        before: By how much the sources before ``start`` write something else than ablated
            ``[source, b, p, d]``.
        instead: What ablated parts give, by site; missing ones give nothing.
        start: First block of the pass.
        zero: Whether excluded edges carry nothing.
    """

    def __init__(
        self,
        reading: Reading,
        excluded: torch.Tensor,
        places: torch.Tensor,
        before: torch.Tensor,
        instead: Mapping[str, torch.Tensor],
        start: int,
        *,
        zero: bool = False,
    ) -> None:
        self._by_place = excluded.to(before.device)
        self._places = places.to(before.device)
        self._constant = biases(reading) if zero else None
        super().__init__(reading, excluded.any(3), before, instead, start)

    def _written_down(self, excluded: torch.Tensor) -> torch.Tensor:
        used = super()._written_down(excluded)
        return used if self._constant is None else torch.ones_like(used)

    def _reads(self, site: str, targets: range, seen: int, norm: Norm) -> Reads | None:
        """Return what targets read, in the circuits in which they miss an edge anywhere."""
        missing = self._by_place[:, :seen, targets.start : targets.stop]
        circuits, numbers = torch.nonzero(missing.any(3).any(1), as_tuple=True)
        if len(circuits) == 0:
            return None
        stream = self._streams[site]
        stream = stream.reshape(*self._rows, -1, stream.shape[-1])
        # [c, t, s, q], then at every position [c, t, s, b, p]
        chosen = missing if self._constant is None else ~missing
        weights = chosen.permute(0, 2, 1, 3)[..., self._places]
        written = self._summed(weights, circuits, numbers, seen, stream)
        if self._constant is None:
            values = stream[circuits] - written
        else:
            values = self._constant[site].to(stream) + written
        normed = norm(values.flatten(0, 1)).unflatten(0, values.shape[:2])
        return Reads(circuits, numbers, normed)

    def _summed(
        self,
        weights: torch.Tensor,
        circuits: torch.Tensor,
        numbers: torch.Tensor,
        seen: int,
        stream: torch.Tensor,
    ) -> torch.Tensor:
        """Return what some sources write, each at some positions ``[n, b, p, d]``."""
        early = [s for s in self._early if s < seen]
        late = [s for s in self._late if s < seen]
        found = stream.new_zeros(len(circuits), *stream.shape[1:])
        if early:
            each = weights[:, :, early][circuits, numbers].to(stream.dtype)
            found += torch.einsum("nsbp,sbpd->nbpd", each, self._before[early])
        if late:
            each = weights[:, :, late].to(stream.dtype)
            written = torch.einsum("ctsbp,csbpd->ctbpd", each, self._written[:, : len(late)])
            found += written[circuits, numbers]
        return found
