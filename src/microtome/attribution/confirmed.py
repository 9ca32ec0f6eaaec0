"""Units that were ranked by an estimate and then patched one by one: what both have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from microtome.core.stats import Interval, cluster_ratio_bootstrap
from microtome.store.results import Result


class Confirmed(Result):
    """What units with the largest attribution do when each of them alone is patched.

    Attributes:
        estimated: Estimated mean change of the metric, first order ``[unit]``.
        values: The metric with the unit patched, exact ``[example, unit]``.
        base: Metric of the run that was changed ``[example]``.
        source: Metric of the run that was patched in ``[example]``.
        clusters: Cluster of each example.
    """

    estimated: np.ndarray
    values: np.ndarray
    base: np.ndarray
    source: np.ndarray
    clusters: tuple[str, ...]

    @property
    def agreement(self) -> float:
        """Pearson correlation of the estimates with the exact mean changes."""
        exact = (self.values - self.base[:, None]).mean(0)
        if len(exact) < 2 or not exact.std() or not self.estimated.std():
            return float("nan")
        return float(np.corrcoef(self.estimated, exact)[0, 1])

    def interval(self, number: int, *, seed: int = 0) -> Interval:
        """Return the exact effect of one of them, as a share of the way, with its interval."""
        return cluster_ratio_bootstrap(
            self.values[:, number] - self.base,
            self.source - self.base,
            np.array(self.clusters),
            seed=seed,
        )

    def effects(self) -> dict[str, Any]:
        """Return estimated and exact effects as shares of the way, with intervals, by column."""
        span = float((self.source - self.base).mean()) or float("nan")
        found = [self.interval(n) for n in range(len(self.estimated))]
        return {
            "estimated": self.estimated / span,
            "effect": [i.value for i in found],
            "low": [i.low for i in found],
            "high": [i.high for i in found],
        }
