"""Scores summed over the examples of each cluster: what resampling and relabeling need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from microtome.errors import EmptyDataError, ShapeError


@dataclass(frozen=True, eq=False)
class ClusterSums:
    """Scores of parts, summed within clusters.

    Attributes:
        parts: Names of the parts.
        clusters: Names of the clusters, sorted.
        sums: ``[cluster, part]``.
        sizes: Examples of each cluster ``[cluster]``.
    """

    parts: tuple[str, ...]
    clusters: tuple[str, ...]
    sums: np.ndarray
    sizes: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Mean over the examples ``[part]``."""
        return np.asarray(self.sums.sum(0) / self.sizes.sum())

    def drawn(self, random: np.random.Generator) -> np.ndarray:
        """Return the mean ``[part]`` over clusters drawn with replacement."""
        count = len(self.clusters)
        times = np.bincount(random.integers(0, count, size=count), minlength=count)
        return np.asarray(times @ self.sums / (times @ self.sizes))


def cluster_sums(scores: Any, clusters: np.ndarray | None = None) -> ClusterSums:
    """Return scores of nodes or edges summed within clusters.

    Args:
        scores: Scores with values per example, ``names`` and ``values`` ``[example, part]``, or
            with sums per cluster: ``universe``, ``clusters``, ``cluster_sums``, ``cluster_sizes``.
        clusters: Cluster of each example, for scores per example.

    Raises:
        EmptyDataError: If scores of edges were computed without keeping clusters.
        ShapeError: If there is not one cluster label per example.
    """
    values = getattr(scores, "values", None)
    if isinstance(values, np.ndarray):
        labels = np.asarray(clusters)
        if labels.shape != values.shape[:1]:
            raise ShapeError(
                f"{values.shape[0]} examples with {labels.shape} cluster labels; expected one each."
            )
        names, codes = np.unique(labels, return_inverse=True)
        sums = np.zeros((len(names), values.shape[1]))
        np.add.at(sums, codes, values)
        sizes = np.bincount(codes).astype(float)
        return ClusterSums(tuple(scores.names), tuple(map(str, names)), sums, sizes)
    if getattr(scores, "cluster_sums", None) is None:
        raise EmptyDataError(
            f"the scores of {getattr(scores, 'method', 'this method')} were not kept by cluster, "
            "so they cannot be resampled; compute them on fewer examples or parts."
        )
    order = np.argsort(np.array(scores.clusters))
    return ClusterSums(
        tuple(scores.universe),
        tuple(scores.clusters[int(i)] for i in order),
        np.asarray(scores.cluster_sums, dtype=float)[order],
        np.asarray(scores.cluster_sizes, dtype=float)[order],
    )
