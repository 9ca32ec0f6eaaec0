"""The result of a sweep: a labelled grid with per-example values and its certificate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.core.provenance import Provenance
from microtome.core.stats import Interval, cluster_ratio_bootstrap
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


@dataclass(frozen=True, eq=False)
class Sweep(Result):
    """The metric under each cell's intervention, for every example.

    Attributes:
        values: ``[example, layer, pos | role | head | neuron | latent]``; NaN where a cell does not
            exist.
        base: Metric of the run that was changed ``[example]``.
        source: Metric of the run that was patched in ``[example]``.
        clusters: Cluster of each example.
        site: The swept site.
        operation: ``patch``, ``zero`` or ``mean``.
        metric: Name of the metric.
        certificate: How the sweep was checked against the naive way: largest difference, tolerance,
            cells sampled, rules used and why others were not.
        provenance: Model, versions.
    """

    values: xr.DataArray
    base: np.ndarray
    source: np.ndarray
    clusters: tuple[str, ...]
    site: str
    operation: str
    metric: str
    certificate: Mapping[str, Any]
    provenance: Provenance | None = None

    @property
    def effect(self) -> xr.DataArray:
        """Share of the way from base to source, a ratio of means over the examples."""
        span = float((self.source - self.base).mean())
        means = self.values.mean("example")
        return (means - float(self.base.mean())) / span if span else means * np.nan

    def interval(self, *, seed: int = 0, **cell: Any) -> Interval:
        """Return the effect of one cell with its clustered 95 % interval.

        Args:
            seed: For the bootstrap.
            **cell: Coordinates of the cell, such as ``layer=2, head=3``.
        """
        moved = self.values.sel(cell).to_numpy() - self.base
        return cluster_ratio_bootstrap(
            moved, self.source - self.base, np.array(self.clusters), seed=seed
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each cell with its mean value and effect."""
        means = self.values.mean("example")
        frame = means.to_dataframe("value").reset_index()
        frame["effect"] = self.effect.to_dataframe("effect").reset_index()["effect"]
        return frame
