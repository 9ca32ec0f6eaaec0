"""Scores of edges that belong to a set of examples as a whole, not to each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.edges.scores import EdgeScores
from microtome.circuits.edges.tally import require_finite
from microtome.core.provenance import collect

if TYPE_CHECKING:
    from microtome.circuits.graph import ComponentGraph
    from microtome.tracing.model import Model


def set_scores(
    model: Model,
    graph: ComponentGraph,
    values: np.ndarray,
    *,
    n: int,
    method: str,
    metric: str,
    ablation: str,
    meaning: str,
    seed: int | None = None,
    config: Mapping[str, object] | None = None,
    passes: Mapping[str, int] | None = None,
) -> EdgeScores:
    """Return scores without a spread over examples: second moments and errors are NaN.

    Args:
        model: The model.
        graph: Its component graph.
        values: The scores ``[edge]``.
        n: Number of examples.
        method: How they were computed.
        metric: Name of the metric.
        ablation: What an ablated edge carries.
        meaning: What a value says.
        seed: Seed of what was drawn, None where nothing was.
        config: Settings for the provenance.
        passes: Forward and backward passes made.

    Raises:
        MetricError: If a score is NaN or infinite.
    """
    require_finite(values, graph, method, metric)
    settings = {"method": method, "metric": metric, "ablation": ablation, **(config or {})}
    provenance = collect(model, settings, seed=seed)
    return EdgeScores(
        universe=graph.edges,
        mean=np.asarray(values, dtype=np.float64),
        second_moment=np.full(graph.n_edges, np.nan),
        n=n,
        method=method,
        metric=metric,
        ablation=ablation,
        meaning=meaning,
        group_size=graph.group_size,
        passes=passes,
        model=provenance.fingerprint,
        provenance=provenance,
    )
