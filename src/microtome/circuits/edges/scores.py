"""Scores of edges: one number for every possible edge, with how sure it is and where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from microtome.circuits.graph import EMBED, LOGITS, ComponentGraph, split_edge
from microtome.core.provenance import Provenance
from microtome.core.stats import Interval, cluster_ratio_bootstrap
from microtome.errors import UnknownNameError, nearest
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from microtome.circuits.results import Circuit, Level

Coarse = Literal["edge", "node", "block", "layer"]
COARSE: tuple[Coarse, ...] = ("edge", "node", "block", "layer")

SATURATED = 0.05
"""Share of edges without a gradient from which on the note on saturation is given."""


@dataclass(frozen=True, eq=False)
class EdgeScores(Result, version=2):
    """A number for every possible edge: its mean over examples, and how much that varies.

    Positive scores support the behavior: the metric is lost when the edge is ablated.

    Attributes:
        universe: Names of the edges, in the order of ``ComponentGraph.edges``.
        mean: Mean score ``[edge]``.
        second_moment: Mean squared score ``[edge]``.
        n: Number of examples.
        method: How they were computed.
        metric: Name of the metric they are about.
        ablation: What an ablated edge carries.
        meaning: What a value says, in one sentence.
        group_size: Query heads for each key/value head, by block.
        clusters: Names of the examples' clusters, empty where they were too many to keep.
        cluster_sizes: Examples of each cluster ``[cluster]``.
        cluster_sums: Sum of the scores in each cluster ``[cluster, edge]``.
        saturated: Share of edges whose score is 0 in every example although what their source
            writes differs; None where the method uses no gradient.
        passes: Forward and backward passes in all, over batches.
        level: ``edge``, or ``role-edge``, ``position-edge`` or ``neuron-edge`` where edges are told
            apart.
        model: Fingerprint of the model.
        provenance: Model, seed, versions.
    """

    universe: tuple[str, ...]
    mean: np.ndarray
    second_moment: np.ndarray
    n: int
    method: str
    metric: str
    ablation: str
    meaning: str
    group_size: tuple[int, ...]
    clusters: tuple[str, ...] = ()
    cluster_sizes: np.ndarray | None = None
    cluster_sums: np.ndarray | None = None
    saturated: float | None = None
    passes: Mapping[str, int] | None = None
    level: Level = "edge"
    model: str = ""
    provenance: Provenance | None = None

    @cached_property
    def graph(self) -> ComponentGraph:
        """The component graph that the edges belong to."""
        ordered = self.level == "position-edge"
        return graph_of(self.universe, self.group_size, ordered=ordered)

    @property
    def note(self) -> str:
        """A warning where gradients vanish although activations moved, else an empty text."""
        if self.saturated is None or self.saturated < SATURATED:
            return ""
        return (
            f"{self.saturated:.0%} of the edges have a score of exactly 0 although what their "
            "source writes differs: the gradient is saturated there. Compare with mask-ig or "
            "exact-edges, which do not rest on the gradient at one point."
        )

    @property
    def standard_error(self) -> np.ndarray:
        """Standard error of the mean ``[edge]``, by cluster where clusters were kept."""
        if self.cluster_sums is None or self.cluster_sizes is None or len(self.clusters) < 2:
            variance = np.maximum(self.second_moment - self.mean**2, 0.0)
            return np.asarray(np.sqrt(variance / max(self.n - 1, 1)))
        count = len(self.clusters)
        off = self.cluster_sums - self.cluster_sizes[:, None] * self.mean
        return np.asarray(np.sqrt(count / (count - 1) * (off**2).sum(0)) / self.n)

    def interval(self, edge: str, *, seed: int = 0) -> Interval:
        """Return the mean score of an edge with its clustered 95 % bootstrap interval.

        Raises:
            UnknownNameError: If there is no such edge, or clusters were not kept.
        """
        number = int(self.graph.numbers([edge])[0])
        if self.cluster_sums is None or self.cluster_sizes is None:
            raise UnknownNameError(
                f"{edge}: the scores of {self.n} examples were not kept by cluster, so there is no "
                "bootstrap; use standard_error."
            )
        sums, sizes = self.cluster_sums[:, number], self.cluster_sizes
        return cluster_ratio_bootstrap(sums, sizes, np.array(self.clusters), seed=seed)

    def strength(self, *, signed: bool = False) -> np.ndarray:
        """Return what edges are ranked by ``[edge]``: magnitude, or (``signed``) the value."""
        return self.mean if signed else np.abs(self.mean)

    def ranking(self, *, signed: bool = False) -> tuple[str, ...]:
        """Return the edges, strongest first, by magnitude or (``signed``) by value."""
        order = np.argsort(-self.strength(signed=signed), kind="stable")
        return tuple(self.universe[int(i)] for i in order)

    def matrix(self) -> np.ndarray:
        """Return the mean scores ``[source, target]`` of ``graph``, NaN where there is no edge."""
        return self._matrix(self.mean)

    def _matrix(self, values: np.ndarray) -> np.ndarray:
        graph = self.graph
        found = np.full(graph.possible.shape, np.nan)
        found[graph.pairs[:, 0], graph.pairs[:, 1]] = values
        return found

    def node_scores(self) -> dict[str, float]:
        """Return for every source the sum over its outgoing edges.

        To first order that is the effect of ablating the node.
        """
        totals = np.nansum(self.matrix(), axis=1)
        return dict(zip(self.graph.sources, totals.tolist(), strict=True))

    def select(
        self,
        *,
        edges: int | None = None,
        threshold: float | None = None,
        connected: bool = False,
        signed: bool = False,
    ) -> Circuit:
        """Return a circuit of the strongest edges; see :mod:`microtome.circuits.edges.selection`.

        Args:
            edges: How many.
            threshold: Or: all from this strength on.
            connected: Grow outward from the logits, so that every edge leads there.
            signed: Rank by value, not by magnitude.

        Raises:
            ConfigError: If not exactly one of ``edges`` and ``threshold`` is given.
        """
        from microtome.circuits.edges.selection import select

        return select(self, edges=edges, threshold=threshold, connected=connected, signed=signed)

    def coarsened(self, level: Coarse, *, magnitudes: bool = False) -> CoarseScores:
        """Return scores summed over the edges between larger parts.

        Args:
            level: ``edge`` (all places and neurons together), ``node`` (q, k and v of a head too),
                ``block`` (the attention or the MLP of a block) or ``layer``.
            magnitudes: Add magnitudes, so that effects of opposite sign do not cancel; such sums
                are not those of the larger parts.

        Raises:
            UnknownNameError: If there is no such level.
        """
        scores = np.abs(self.mean) if magnitudes else self.mean
        if level not in COARSE:
            raise UnknownNameError(f"No level {level!r}{nearest(level, COARSE)}.")
        names = [split_edge(edge) for edge in self.universe]
        sources = tuple(dict.fromkeys(coarse(u, level) for u, _ in names))
        targets = tuple(dict.fromkeys(coarse(v, level) for v in self.graph.targets))
        row = {name: i for i, name in enumerate(sources)}
        column = {name: i for i, name in enumerate(targets)}
        places = np.array([(row[coarse(u, level)], column[coarse(v, level)]) for u, v in names])
        values, counts = (np.zeros((len(sources), len(targets))) for _ in range(2))
        np.add.at(values, (places[:, 0], places[:, 1]), scores)
        np.add.at(counts, (places[:, 0], places[:, 1]), 1)
        return CoarseScores(
            level=level,
            sources=sources,
            targets=targets,
            values=values,
            edges=counts.astype(int),
            method=f"{self.method}, magnitudes" if magnitudes else self.method,
            metric=self.metric,
            provenance=self.provenance,
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each edge: name, source, target, mean, standard error."""
        import pandas as pd

        ends = [split_edge(edge) for edge in self.universe]
        return pd.DataFrame(
            {
                "edge": self.universe,
                "source": [u for u, _ in ends],
                "target": [v for _, v in ends],
                "mean": self.mean,
                "standard_error": self.standard_error,
            }
        )


@dataclass(frozen=True, eq=False)
class CoarseScores(Result):
    """Edge scores summed over the edges between larger parts.

    Attributes:
        level: ``edge``, ``node``, ``block`` or ``layer``.
        sources: Names of the writing parts.
        targets: Names of the reading parts.
        values: Sum of the edges' mean scores ``[source, target]``.
        edges: How many edges each sum is over ``[source, target]``.
        method: How the edges' scores were computed.
        metric: Name of the metric.
        provenance: Model, seed, versions.
    """

    level: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    values: np.ndarray
    edges: np.ndarray
    method: str
    metric: str
    provenance: Provenance | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each pair of parts with an edge between them."""
        import pandas as pd

        rows = [
            {"source": u, "target": v, "score": self.values[i, j], "edges": self.edges[i, j]}
            for i, u in enumerate(self.sources)
            for j, v in enumerate(self.targets)
            if self.edges[i, j]
        ]
        return pd.DataFrame(rows)


def coarse(part: str, level: Coarse) -> str:
    """Return the larger part that a source or target belongs to.

    Args:
        part: ``embed``, ``logits``, ``a0.h1``, ``a0.h1<q>``, ``m0``, ``m0@subject``,
            ``m0.n17``.
        level: ``edge`` (without place and neuron), ``node``, ``block`` or ``layer``.
    """
    if part in (EMBED, LOGITS):
        return part
    port = part.split("@")[0]
    # neurons belong to their MLP
    port = port.split(".")[0] if port[0] == "m" else port
    node = port.split("<")[0]
    block = node.split(".")[0]
    names = {"edge": port, "node": node, "block": block, "layer": f"blocks.{block[1:]}"}
    return names[level]


def graph_of(
    universe: tuple[str, ...], group_size: tuple[int, ...], *, ordered: bool = False
) -> ComponentGraph:
    """Return the component graph that has exactly these edges, sources outermost.

    Args:
        universe: Names of all possible edges.
        group_size: Query heads for each key/value head, by block.
        ordered: Whether places by which edges are told apart are positions, first to last.
    """
    ends = [split_edge(edge) for edge in universe]
    sources = tuple(dict.fromkeys(u for u, _ in ends))
    targets = tuple(dict.fromkeys(v for u, v in ends if u == EMBED))
    row = {name: i for i, name in enumerate(sources)}
    column = {name: i for i, name in enumerate(targets)}
    seen = np.zeros(len(targets), dtype=int)
    for u, v in ends:
        seen[column[v]] = max(seen[column[v]], row[u] + 1)
    # a target sees the sources before it, so an order of both is the number of sources it sees
    places = tuple(dict.fromkeys(v.partition("@")[2] for v in targets if "@" in v))
    return ComponentGraph(
        sources, targets, np.arange(len(sources)), seen, group_size, places, ordered
    )
