"""Adding up scores of edges over batches, so that the split into batches does not matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.edges.scores import EdgeScores
from microtome.circuits.graph import ComponentGraph
from microtome.core.provenance import collect
from microtome.errors import MetricError

if TYPE_CHECKING:
    from microtome.circuits.results import Level
    from microtome.tracing.model import Model

KEPT = 4_000_000
"""Numbers kept by cluster at most: clusters times edges."""


def require_finite(values: np.ndarray, graph: ComponentGraph, method: str, metric: str) -> None:
    """Refuse scores ``[edge]`` that cannot be ranked.

    Raises:
        MetricError: If one is NaN or infinite.
    """
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise MetricError(
            f"{method}: {len(wrong)} of {len(values)} edges score NaN or infinity, the first "
            f"{graph.edges[int(wrong[0])]}: {metric} or its gradient is not finite on these "
            "examples. Take another metric, or float32 where the model runs in float16."
        )


class Tally:
    """Sums of per-example scores, over all examples and over each cluster.

    Args:
        graph: The component graph.
        clusters: Cluster of every example that will be added.
    """

    def __init__(self, graph: ComponentGraph, clusters: Sequence[str]) -> None:
        names = tuple(dict.fromkeys(str(c) for c in clusters))
        self._graph = graph
        self._names = names if len(names) * graph.n_edges <= KEPT else ()
        self._number = {name: i for i, name in enumerate(self._names)}
        self._sum, self._squares = np.zeros(graph.n_edges), np.zeros(graph.n_edges)
        self._by_cluster = np.zeros((len(self._names), graph.n_edges))
        self._sizes = np.zeros(len(self._names))
        self._moved = np.zeros(graph.n_edges, dtype=bool)
        self._scored = np.zeros(graph.n_edges, dtype=bool)
        self._n = 0

    def add(
        self, values: np.ndarray, clusters: Sequence[str], moved: np.ndarray | None = None
    ) -> None:
        """Add a batch.

        Args:
            values: Scores ``[example, edge]``.
            clusters: Cluster of each example.
            moved: Whether what a source writes differs in any example ``[source]``, or at which
                places ``[source, place]``.
        """
        wide = values.astype(np.float64)
        self._sum += wide.sum(0)
        self._squares += (wide**2).sum(0)
        self._n += len(wide)
        self._scored |= (wide != 0).any(0)
        if moved is not None:
            self._moved |= self._on_edges(moved)
        for row, cluster in zip(wide, clusters, strict=True):
            if self._names:
                self._by_cluster[self._number[str(cluster)]] += row
                self._sizes[self._number[str(cluster)]] += 1

    def _on_edges(self, moved: np.ndarray) -> np.ndarray:
        sources, targets = self._graph.pairs.T
        if moved.ndim == 1:
            return np.asarray(moved[sources])
        place = self._graph.place_numbers[targets]
        anywhere = np.asarray(moved.any(axis=1))
        return np.asarray(np.where(place < 0, anywhere[sources], moved[sources, place]))

    def scores(
        self,
        model: Model,
        *,
        method: str,
        metric: str,
        ablation: str,
        meaning: str,
        config: Mapping[str, object] | None = None,
        gradient: bool = True,
        passes: Mapping[str, int] | None = None,
        level: Level = "edge",
    ) -> EdgeScores:
        """Return the scores of everything that was added.

        Args:
            model: The model.
            method: How they were computed.
            metric: Name of the metric.
            ablation: What an ablated edge carries.
            meaning: What a value says.
            config: Settings of the method for the provenance.
            gradient: Whether the method rests on gradients, which may be saturated.
            passes: Forward and backward passes made.
            level: By what the edges are told apart.

        Raises:
            MetricError: If a score is NaN or infinite.
        """
        mean = self._sum / max(1, self._n)
        require_finite(mean, self._graph, method, metric)
        silent = self._moved & ~self._scored
        saturated = float(silent.sum() / max(1, self._moved.sum())) if gradient else None
        settings = {"method": method, "metric": metric, "ablation": ablation, **(config or {})}
        provenance = collect(model, settings)
        return EdgeScores(
            universe=self._graph.edges,
            mean=mean,
            second_moment=self._squares / max(1, self._n),
            n=self._n,
            method=method,
            metric=metric,
            ablation=ablation,
            meaning=meaning,
            group_size=self._graph.group_size,
            clusters=self._names,
            cluster_sizes=self._sizes if self._names else None,
            cluster_sums=self._by_cluster if self._names else None,
            saturated=saturated,
            passes=passes,
            level=level,
            model=provenance.fingerprint,
            provenance=provenance,
        )
