"""What patching two parts at once gives, and how far it is from the sum of each alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.core.provenance import Provenance
from microtome.core.stats import Interval, cluster_ratio_bootstrap
from microtome.errors import UnknownNameError, nearest
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class PairEffects(Result):
    """The metric when two parts are patched at once, for every example.

    Attributes:
        values: Metric ``[example, part, part]``, symmetric; on the diagonal one part alone.
        parts: Names of the parts, ``a0.h3`` or ``m2``.
        base: Metric of the run that was changed ``[example]``.
        source: Metric of the run that was patched in ``[example]``.
        clusters: Cluster of each example.
        metric: Name of the metric.
        certificate: Largest difference from the naive way over a sample of runs, and its tolerance.
        provenance: Model, versions.
    """

    values: np.ndarray
    parts: tuple[str, ...]
    base: np.ndarray
    source: np.ndarray
    clusters: tuple[str, ...]
    metric: str
    certificate: Mapping[str, Any]
    provenance: Provenance | None = None

    @property
    def interaction(self) -> np.ndarray:
        """What two parts move beyond the sum of each, in shares of the way ``[part, part]``."""
        return np.asarray(self._beyond().mean(0) / self._span())

    def interval(self, one: str, other: str, *, seed: int = 0) -> Interval:
        """Return the interaction of two parts with its clustered 95 % interval.

        Raises:
            UnknownNameError: If a part was not among those that were patched.
        """
        for name in (one, other):
            if name not in self.parts:
                raise UnknownNameError(f"No part {name!r}{nearest(name, self.parts)}.")
        beyond = self._beyond()[:, self.parts.index(one), self.parts.index(other)]
        return cluster_ratio_bootstrap(
            beyond, self.source - self.base, np.array(self.clusters), seed=seed
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each pair: effect of each alone, of both, and the interaction."""
        import pandas as pd

        effect = (self.values.mean(0) - self.base.mean()) / self._span()
        beyond = self.interaction
        rows = [
            {
                "one": self.parts[a],
                "other": self.parts[b],
                "effect_one": effect[a, a],
                "effect_other": effect[b, b],
                "effect_both": effect[a, b],
                "interaction": beyond[a, b],
            }
            for a, b in itertools.combinations(range(len(self.parts)), 2)
        ]
        return pd.DataFrame(rows)

    def _beyond(self) -> np.ndarray:
        moved = self.values - self.base[:, None, None]
        alone = np.diagonal(moved, axis1=1, axis2=2)
        beyond = moved - alone[:, :, None] - alone[:, None, :]
        own = np.arange(len(self.parts))
        beyond[:, own, own] = 0.0
        return np.asarray(beyond)

    def _span(self) -> float:
        return float((self.source - self.base).mean()) or float("nan")
