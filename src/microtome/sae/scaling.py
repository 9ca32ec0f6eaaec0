"""Scales of the sites: activations are trained on at one size and the coder is given them back.

Each site is multiplied by a constant such that its mean squared norm is its width, so that settings
mean the same everywhere and every target counts alike. At the end the constants go into the
weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microtome.errors import DataError
from microtome.sae.architecture import Architecture
from microtome.sae.folding import fold_scales

if TYPE_CHECKING:
    from microtome.sae.activations import Activations
    from microtome.sae.encoding import Weights

LARGEST = 1e38
"""Factors from here on, and below the inverse, are lost in float32."""


@dataclass(frozen=True)
class Scaling:
    """What the sites of a coder are multiplied by in training.

    Attributes:
        sources: Factor of each source site.
        targets: Factor of each target site.
    """

    sources: tuple[float, ...]
    targets: tuple[float, ...]

    @staticmethod
    def of(
        activations: Activations,
        make: Architecture,
        sources: Sequence[str],
        targets: Sequence[str],
    ) -> Scaling:
        """Return the factors for a coder on these sites.

        A coder that subtracts its decoder's bias from the input has the targets' factors for the
        sources; a tied one has one factor for all, or it could not take them back.

        Raises:
            DataError: The rows of a site are zero, or too small or large to be scaled in float32.
        """
        reads = [_factor(activations, site) for site in sources]
        writes = [_factor(activations, site) for site in targets]
        if make.center:
            reads = writes
        if make.encoder == "tied":
            shared = math.exp(sum(math.log(c) for c in writes) / len(writes))
            reads = writes = [shared] * len(writes)
        return Scaling(tuple(reads), tuple(writes))

    def inputs(
        self, batch: Mapping[str, Tensor], sources: Sequence[str], device: str = "cpu"
    ) -> Tensor:
        """Return the scaled inputs ``[row, d_in]`` of a batch."""
        return _joined(batch, sources, self.sources, device)

    def outputs(
        self, batch: Mapping[str, Tensor], targets: Sequence[str], device: str = "cpu"
    ) -> Tensor:
        """Return the scaled targets ``[row, d_out]`` of a batch."""
        return _joined(batch, targets, self.targets, device)

    def fold(self, make: Architecture, weights: Weights) -> None:
        """Make a coder of scaled values one of values as the sites have them, in place.

        Decoder rows keep their norm where there is one target; latents take its size then.
        """
        gain = math.exp(-sum(math.log(c) for c in self.targets) / len(self.targets))
        fold_scales(make, weights, self.sources, self.targets, gain=gain)


def _factor(activations: Activations, site: str) -> float:
    """Return a site's factor if float32 can take it."""
    factor = activations.scale(site)
    if not LARGEST**-1 < factor < LARGEST:
        raise DataError(
            f"activations of {site!r} would have to be multiplied by {factor:.3g}, which is beyond "
            "float32, to be of size 1; bring them nearer to it first"
        )
    return factor


def _joined(
    batch: Mapping[str, Tensor], sites: Sequence[str], factors: Sequence[float], device: str
) -> Tensor:
    parts = [batch[site].to(device) * factor for site, factor in zip(sites, factors, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
