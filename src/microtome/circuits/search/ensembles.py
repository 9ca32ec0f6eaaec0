"""Ensembles: the mean of several methods' ranks, and which edges survive resampled examples.

A rank forgets a method's unit, so that methods can be averaged. Which edges are among the strongest
depends on the examples that happened to be drawn; stability selection (Meinshausen and Buehlmann,
2010) draws clusters with replacement and keeps what is chosen nearly every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.circuits.edges.scores import EdgeScores
from microtome.circuits.places import level_by_name
from microtome.circuits.results import Circuit
from microtome.circuits.search.set_scores import set_scores
from microtome.core.provenance import Provenance
from microtome.core.seeds import rng
from microtome.errors import ConfigError
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from microtome.behaviors.examples import Examples
    from microtome.behaviors.metrics import Metric
    from microtome.circuits.references import Ablation
    from microtome.tracing.model import Model

METHODS = ("eap-ig", "eap-ig-activations", "mask-ig")
"""Methods that are averaged by default."""

MEANING = "Mean over {methods} of the share of edges that score no more than this one."


def rank_ensemble(
    model: Model,
    examples: Examples,
    *,
    methods: Sequence[str] = METHODS,
    metric: str | Metric = "logit_difference",
    ablation: Ablation = "resample",
    reference: Examples | None = None,
) -> EdgeScores:
    """Score every edge by its mean rank among the magnitudes of several methods.

    Args:
        model: A transformer whose parts write to one residual stream.
        examples: Where to look.
        methods: Names of finders of edges.
        metric: A metric that reads the prompt's end.
        ablation: What an ablated edge carries.
        reference: Examples over which means are taken.

    Returns:
        Scores above 0 and up to 1, without a sign.

    Raises:
        ConfigError: If there are fewer than two methods, or one does not score edges.
    """
    from microtome.circuits.finding import find

    if len(set(methods)) < 2:
        raise ConfigError(f"methods={tuple(methods)}; expected at least two different ones.")
    every: list[EdgeScores] = []
    for method in methods:
        options = {"metric": metric, "ablation": ablation, "reference": reference}
        found: Any = find(model, examples, method=method, **options)
        every.append(found)
    return set_scores(
        model,
        every[0].graph,
        mean_ranks(np.stack([s.strength() for s in every])),
        n=len(examples),
        method=f"rank-ensemble of {', '.join(methods)}",
        metric=every[0].metric,
        ablation=ablation,
        meaning=MEANING.format(methods=", ".join(methods)),
        config={"methods": list(methods)},
    )


def mean_ranks(strengths: np.ndarray) -> np.ndarray:
    """Return the mean rank of every edge as a share of the number of edges; ties share a rank.

    Args:
        strengths: What each method ranks by ``[method, edge]``.

    Returns:
        ``[edge]``, 1 for what is strongest by every method.
    """
    from scipy.stats import rankdata

    ranks = rankdata(strengths, method="average", axis=1)
    return np.asarray(ranks.mean(0) / strengths.shape[1])


@dataclass(frozen=True, eq=False)
class Stable(Result):
    """How often each edge is among the strongest when clusters are drawn anew.

    Attributes:
        universe: Names of the edges.
        share: Share of the resamples in which an edge is chosen ``[edge]``.
        edges: How many edges are chosen in each resample.
        least: Share from which on an edge is kept.
        resamples: Number of resamples.
        clusters: Number of clusters.
        methods: Methods whose ranks are averaged.
        model: Fingerprint of the model.
        provenance: Model, seed, versions.
    """

    universe: tuple[str, ...]
    share: np.ndarray
    edges: int
    least: float
    resamples: int
    clusters: int
    methods: tuple[str, ...]
    model: str = ""
    provenance: Provenance | None = None

    def circuit(self) -> Circuit:
        """Return the circuit of the edges that are kept."""
        chosen = np.flatnonzero(self.share >= self.least)
        return Circuit(
            parts=tuple(self.universe[int(i)] for i in chosen),
            universe=self.universe,
            method=f"{' and '.join(self.methods)}, among the strongest {self.edges} in "
            f"{self.least:.0%} of {self.resamples} resamples",
            level=level_by_name(self.universe),
            model=self.model,
            provenance=self.provenance,
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each edge that was ever chosen, the most frequent first."""
        import pandas as pd

        frame = pd.DataFrame({"edge": self.universe, "share": self.share})
        frame["kept"] = frame["share"] >= self.least
        frame = frame[frame["share"] > 0].sort_values("share", ascending=False, kind="stable")
        return frame.reset_index(drop=True)


def stable_edges(
    scores: EdgeScores | Sequence[EdgeScores],
    *,
    edges: int,
    resamples: int = 200,
    least: float = 0.8,
    seed: int = 0,
) -> Stable:
    """Return how often each edge is among the strongest when clusters are drawn anew.

    Nothing is run again: scores hold their sum over every cluster. An edge that scores 0 by every
    method is never chosen.

    Args:
        scores: Scores of one method, or of several on the same examples, whose ranks are averaged.
        edges: How many edges are chosen in each resample.
        resamples: Number of resamples of the clusters, with replacement.
        least: Share of the resamples from which on an edge is kept.
        seed: For the resamples.

    Raises:
        ConfigError: If scores were not kept by cluster, are not of the same edges and clusters, or
            a number is out of range.
    """
    every = [scores] if isinstance(scores, EdgeScores) else list(scores)
    count = len(every[0].universe) if every else 0
    if not 0 < edges <= count or resamples < 1 or not 0 < least <= 1:
        raise ConfigError(
            f"edges={edges}, resamples={resamples}, least={least}; expected 1 to {count} edges, "
            "at least one resample and a share above 0 and up to 1."
        )
    sizes, sums = _by_cluster(every)
    groups = len(sizes)
    drawn = rng(seed, "stability selection").multinomial(
        groups, np.full(groups, 1 / groups), size=resamples
    )
    times = np.zeros(count)
    for counts in drawn:
        means = np.einsum("c,mce->me", counts, sums) / (counts @ sizes)
        order = np.argsort(-mean_ranks(np.abs(means)), kind="stable")
        chosen = order[:edges]
        # what scores nothing at all is not strong, however few edges are left to choose from
        times[chosen[(means[:, chosen] != 0).any(0)]] += 1
    return Stable(
        universe=every[0].universe,
        share=times / resamples,
        edges=edges,
        least=least,
        resamples=resamples,
        clusters=groups,
        methods=tuple(s.method for s in every),
        model=every[0].model,
        provenance=every[0].provenance,
    )


def _by_cluster(every: Sequence[EdgeScores]) -> tuple[np.ndarray, np.ndarray]:
    """Return sizes ``[cluster]`` and sums ``[method, cluster, edge]``."""
    first, sums = every[0], []
    for found in every:
        if found.cluster_sums is None or found.cluster_sizes is None or len(found.clusters) < 2:
            raise ConfigError(
                f"{found.method}: there are no scores by cluster (at least two clusters), so "
                "nothing can be drawn anew. Take a method that scores every example."
            )
        if found.clusters != first.clusters or found.universe != first.universe:
            raise ConfigError(
                f"{found.method} and {first.method} are not about the same edges and clusters."
            )
        sums.append(found.cluster_sums)
    sizes = first.cluster_sizes
    return np.zeros(0) if sizes is None else sizes, np.stack(sums)
