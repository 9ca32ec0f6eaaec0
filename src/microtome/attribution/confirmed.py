"""Units that were ranked by an estimate and then patched one by one: what both have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.behaviors.behavior import Behavior
from microtome.core.provenance import Provenance
from microtome.core.stats import Interval, cluster_ratio_bootstrap
from microtome.errors import EmptyDataError
from microtome.store.results import Result

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.sweeps.results import Sweep
    from microtome.tracing.model import Model


@dataclass(frozen=True, eq=False, kw_only=True)
class Confirmed(Result):
    """What units with the largest attribution do when each of them alone is patched.

    Attributes:
        estimated: Estimated mean change of the metric, first order ``[unit]``.
        values: The metric with the unit patched, exact ``[example, unit]``.
        base: Metric of the run that was changed ``[example]``.
        source: Metric of the run that was patched in ``[example]``.
        clusters: Cluster of each example.
        considered: How many units were ranked.
        metric: Name of the metric.
        method: How they were ranked.
        certificate: How the exact values were checked against the naive way.
        provenance: Model, versions.
    """

    estimated: np.ndarray
    values: np.ndarray
    base: np.ndarray
    source: np.ndarray
    clusters: tuple[str, ...]
    considered: int
    metric: str
    method: str
    certificate: Mapping[str, Any]
    provenance: Provenance | None = None

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


def prepared(model: Model, behavior: Behavior | Examples) -> Examples:
    """Return a behavior's examples, or those that were given.

    Raises:
        EmptyDataError: If there are none.
    """
    examples = behavior.prepare(model) if isinstance(behavior, Behavior) else behavior
    if len(examples) == 0:
        raise EmptyDataError("There are no examples.")
    return examples


def by_block(units: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    """Return the numbers of units given as (block, number), by block and in order."""
    return {layer: sorted(n for there, n in units if there == layer) for layer, _ in units}


def confirmed(
    exact: Sweep, units: Sequence[tuple[int, int]], estimated: np.ndarray, *, axis: str, steps: int
) -> dict[str, Any]:
    """Return what a sweep over some units says of each, by field of :class:`Confirmed`.

    Args:
        exact: The sweep over them.
        units: Block and number of each, strongest estimate first.
        estimated: The estimates ``[unit]``.
        axis: The sweep's axis of the numbers, ``neuron`` or ``latent``.
        steps: Steps of integrated gradients behind the estimates, 1 for plain gradients.
    """
    columns = [exact.values.sel({"layer": b, axis: n}).to_numpy() for b, n in units]
    return {
        "estimated": estimated,
        "values": np.stack(columns, axis=1),
        "base": exact.base,
        "source": exact.source,
        "clusters": exact.clusters,
        "metric": exact.metric,
        "method": "attribution patching" if steps == 1 else f"integrated gradients, {steps} steps",
        "certificate": exact.certificate,
    }
