"""The circuit that differs between two conditions of one behavior.

Each part's support is compared between the conditions, and so are the circuits found in each. The
null exchanges the labels of the conditions: within a cluster (template and words) that both have,
and between clusters that only one has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.ablation import Ablation
from microtome.circuits.judging.cluster_sums import ClusterSums, cluster_sums
from microtome.circuits.judging.cutting import smallest_faithful
from microtome.circuits.judging.evaluation import complete, evaluate
from microtome.circuits.judging.levels import Search, level_of, search_by_name, universe_of
from microtome.circuits.judging.variation import jaccard
from microtome.circuits.results import Circuit
from microtome.core.provenance import Provenance, collect
from microtome.core.seeds import rng
from microtome.core.stats import Interval, benjamini_hochberg
from microtome.errors import ConfigError
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from microtome.behaviors.behavior import Behavior
    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model

MOST = 100
"""Parts that are tested at most: the strongest over both conditions taken together."""

DRAWS = 4000
"""Exchanges of the labels."""

RATE = 0.05
"""False discovery rate."""


@dataclass(frozen=True, eq=False)
class Versus(Result):
    """What differs between two conditions A and B.

    Attributes:
        a: Name of condition A.
        b: Name of condition B.
        parts: Parts that were tested, strongest over both conditions first.
        support_a: Mean support of each in A, in the metric's unit ``[part]``.
        support_b: Likewise in B.
        difference: Support in A minus support in B, with cluster-bootstrap intervals.
        p: Two-sided permutation p value of each difference ``[part]``.
        differs: Whether each difference stands at a false discovery rate of 5 % ``[part]``.
        circuit_a: The smallest faithful circuit found in A.
        circuit_b: The smallest faithful circuit found in B.
        overlap: Jaccard overlap of the two.
        null_overlap: Overlap of the strongest parts, as many as each circuit has, when the labels
            are exchanged ``[draw]``.
        overlap_p: Share of exchanges with as little overlap, the observation counted.
        across: Faithfulness on test of each circuit in each condition, as ``"A in B"``.
        paired: Clusters that both conditions have.
        clusters: Clusters in all.
        metric: Name of the metric.
        provenance: Model, seed, versions.
    """

    a: str
    b: str
    parts: tuple[str, ...]
    support_a: np.ndarray
    support_b: np.ndarray
    difference: tuple[Interval, ...]
    p: np.ndarray
    differs: np.ndarray
    circuit_a: Circuit
    circuit_b: Circuit
    overlap: float
    null_overlap: np.ndarray
    overlap_p: float
    across: Mapping[str, Interval]
    paired: int
    clusters: int
    metric: str
    provenance: Provenance | None = None

    @property
    def shared(self) -> tuple[str, ...]:
        """Parts of both circuits."""
        return tuple(p for p in self.circuit_a.parts if p in self.circuit_b.kept)

    @property
    def only_a(self) -> tuple[str, ...]:
        """Parts of A's circuit alone."""
        return tuple(p for p in self.circuit_a.parts if p not in self.circuit_b.kept)

    @property
    def only_b(self) -> tuple[str, ...]:
        """Parts of B's circuit alone."""
        return tuple(p for p in self.circuit_b.parts if p not in self.circuit_a.kept)

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        more = [p for p, d in zip(self.parts, self.difference, strict=True) if d.value > 0]
        found = [p for p, d in zip(self.parts, self.differs, strict=True) if d]
        up, down = ([p for p in found if (p in more) is side] for side in (True, False))
        if not found:
            return (
                f"No part carries more in {self.a} than in {self.b} or less, at a false discovery "
                f"rate of 5 % over {len(self.parts)} parts and {self.clusters} clusters."
            )
        return (
            f"{len(up)} parts carry more in {self.a} ({', '.join(up[:4]) or 'none'}) and "
            f"{len(down)} in {self.b} ({', '.join(down[:4]) or 'none'}), of {len(self.parts)} "
            f"tested at a false discovery rate of 5 %; the circuits overlap by {self.overlap:.0%} "
            f"(p {self.overlap_p:.2g})."
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each part, the largest difference first."""
        import pandas as pd

        a, b = self.circuit_a.kept, self.circuit_b.kept
        rows = [
            {
                "part": part,
                "support_a": float(self.support_a[i]),
                "support_b": float(self.support_b[i]),
                "difference": d.value,
                "low": d.low,
                "high": d.high,
                "p": float(self.p[i]),
                "differs": bool(self.differs[i]),
                "circuit": {(1, 1): "both", (1, 0): "A", (0, 1): "B", (0, 0): ""}[
                    int(part in a), int(part in b)
                ],
            }
            for i, (part, d) in enumerate(zip(self.parts, self.difference, strict=True))
        ]
        return pd.DataFrame(rows).sort_values("difference", key=abs, ascending=False)


def versus(
    model: Model,
    behavior_a: Behavior,
    behavior_b: Behavior,
    *,
    finder: Search | str = "attribution",
    faithfulness: float = 0.9,
    ablation: Ablation = "resample",
    metric: str | None = None,
    draws: int = DRAWS,
    most: int = MOST,
    seed: int = 0,
) -> Versus:
    """Return what differs between two conditions of one behavior, as a difference of circuits.

    Args:
        model: The model.
        behavior_a: The behavior in condition A.
        behavior_b: The behavior in condition B; items made from the same template and words should
            have the same cluster, so that they are compared as a pair.
        finder: Scores nodes or edges on train: a name of ``FINDERS``, or a function.
        faithfulness: Each circuit is the smallest that is as near 1 as asked on validation.
        ablation: What ablated parts give.
        metric: A metric that reads the prompt's end; A's own by default.
        draws: Exchanges of the labels, and bootstrap resamples.
        most: Parts tested at most, chosen by their support over both conditions together, so that
            the choice knows no labels.
        seed: For everything that is drawn.

    Raises:
        ConfigError: If a setting is out of range, or a metric differs between the conditions.
        EmptyDataError: If a split holds no examples.
    """
    _check_settings(draws, most, faithfulness)
    name = metric or behavior_a.metric
    if metric is None and behavior_b.metric != name:
        raise ConfigError(
            f"{behavior_a.name} is scored by {name} and {behavior_b.name} by {behavior_b.metric}; "
            "give metric=... to compare them in one unit."
        )
    search = search_by_name(finder, name, ablation) if isinstance(finder, str) else finder
    prepared = [b.prepare(model) for b in (behavior_a, behavior_b)]
    trains = [e.split("train") for e in prepared]
    scores = [search(model, train) for train in trains]
    level = level_of(scores[0])
    circuits = [
        smallest_faithful(
            model, e.split("validation"),
            complete(s.ranking(), universe_of(model, level, examples=train)), level=level,
            faithfulness=faithfulness, ablation=ablation, metric=name, reference=train,
            method=str(getattr(s, "method", "a ranking")), seed=seed,
        )
        for e, s, train in zip(prepared, scores, trains, strict=True)
    ]  # fmt: skip
    a, b = (cluster_sums(s, t.clusters) for s, t in zip(scores, trains, strict=True))
    _check_draws(draws, min(most, len(a.parts)))
    table = Labeled.of(a, b)
    chosen = np.argsort(-np.abs(table.pooled()), kind="stable")[:most]
    means_a, means_b = (m[0] for m in table.means(table.as_labeled()[None]))
    null_overlap, p, overlap_p = _null(table, circuits, chosen, (means_a, means_b), draws, seed)
    return Versus(
        a=behavior_a.name,
        b=behavior_b.name,
        parts=tuple(a.parts[int(i)] for i in chosen),
        support_a=means_a[chosen],
        support_b=means_b[chosen],
        difference=_intervals(table, chosen, draws, seed),
        p=p,
        differs=benjamini_hochberg(p, RATE),
        circuit_a=circuits[0],
        circuit_b=circuits[1],
        overlap=jaccard(circuits[0].kept, circuits[1].kept),
        null_overlap=null_overlap,
        overlap_p=overlap_p,
        across=_across(model, prepared, circuits, ablation, name, seed),
        paired=int(table.paired.sum()),
        clusters=len(table.paired),
        metric=name,
        provenance=collect(model, {"metric": name, "level": level, "draws": draws}, seed=seed),
    )


def _check_settings(draws: int, most: int, faithfulness: float) -> None:
    """Refuse settings out of range."""
    if draws < 1 or most < 1 or not 0 < faithfulness < 1:
        raise ConfigError(
            f"draws={draws}, most={most}, faithfulness={faithfulness}; expected at least 1, at "
            "least 1, and a share between 0 and 1."
        )


def _check_draws(draws: int, parts: int) -> None:
    """Refuse so few draws that nothing could be found among so many parts."""
    if (draws + 1) * RATE < parts:
        raise ConfigError(
            f"draws={draws} give p values from 1/{draws + 1}, with which no single part of "
            f"{parts} can be told apart at a false discovery rate of {RATE:.0%}; "
            f"take more draws, {int(parts / RATE)} or more, or fewer parts."
        )


def _across(
    model: Model,
    prepared: Sequence[Examples],
    circuits: Sequence[Circuit],
    ablation: Ablation,
    metric: str,
    seed: int,
) -> dict[str, Interval]:
    """Return the faithfulness of each circuit on the test split of each condition."""
    return {
        f"{x} in {y}": evaluate(
            model, prepared[j].split("test"), circuits[i], ablation=ablation, metric=metric,
            reference=prepared[j].split("train"), seed=seed,
        ).faithfulness
        for i, x in enumerate("AB")
        for j, y in enumerate("AB")
    }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Labeled:
    """Scores by cluster under two labels.

    Attributes:
        parts: Names of the parts.
        sums: ``[2, cluster, part]``; zero where a condition lacks the cluster.
        sizes: Examples ``[2, cluster]``.
        paired: Whether both conditions have a cluster ``[cluster]``.
    """

    parts: tuple[str, ...]
    sums: np.ndarray
    sizes: np.ndarray
    paired: np.ndarray

    @staticmethod
    def of(a: ClusterSums, b: ClusterSums) -> Labeled:
        """Return the scores of two conditions over the clusters of either."""
        names = sorted({*a.clusters, *b.clusters})
        number = {n: i for i, n in enumerate(names)}
        sums, sizes = np.zeros((2, len(names), len(a.parts))), np.zeros((2, len(names)))
        for side, one in enumerate((a, b)):
            rows = [number[c] for c in one.clusters]
            sums[side, rows], sizes[side, rows] = one.sums, one.sizes
        return Labeled(a.parts, sums, sizes, np.asarray((sizes > 0).all(0)))

    def pooled(self) -> np.ndarray:
        """Mean support over both conditions, whatever the labels ``[part]``."""
        return np.asarray(self.sums.sum((0, 1)) / self.sizes.sum())

    def as_labeled(self) -> np.ndarray:
        """Return which side stands as A in each cluster, 0 or 1, as it is ``[cluster]``."""
        return np.zeros(self.sizes.shape[1], dtype=int)

    def exchanged(self, random: np.random.Generator) -> np.ndarray:
        """Return which side stands as A when the labels are exchanged at random ``[cluster]``.

        A cluster that both have keeps or swaps its labels; the others share out theirs anew.
        """
        sides = random.integers(0, 2, len(self.paired))
        single = np.flatnonzero(~self.paired)
        own = np.where(self.sizes[0, single] > 0, 0, 1)
        # side 0 where the new label is the old one
        sides[single] = (random.permutation(own) != own).astype(int)
        return np.asarray(sides)

    def means(
        self, sides: np.ndarray, times: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean support in A and in B ``[draw, part]``.

        Args:
            sides: Which side stands as A ``[draw, cluster]``.
            times: How often each cluster counts ``[draw, cluster]``, once by default.
        """
        weight = np.ones(sides.shape) if times is None else times
        first, second = weight * (sides == 0), weight * (sides == 1)
        found = []
        for x, y in ((first, second), (second, first)):
            totals = x @ self.sums[0] + y @ self.sums[1]
            sizes = (x @ self.sizes[0] + y @ self.sizes[1])[:, None]
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append(np.where(sizes > 0, totals / sizes, np.nan))
        return found[0], found[1]


def _null(
    table: Labeled,
    circuits: Sequence[Circuit],
    chosen: np.ndarray,
    observed: tuple[np.ndarray, np.ndarray],
    draws: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return overlaps under exchanged labels, p values of the parts, and that of the overlap."""
    random = rng(seed, "exchanged labels")
    sizes = [len(c.parts) for c in circuits]
    own = np.abs(observed[0] - observed[1])[chosen]
    beyond = np.zeros(len(chosen))
    overlaps = []
    for _ in range(draws):
        a, b = (m[0] for m in table.means(table.exchanged(random)[None]))
        # rounding must not tell equal differences apart
        beyond += np.abs(a - b)[chosen] >= own * (1 - 1e-9)
        overlaps.append(_overlap((a, b), sizes))
    null = np.array(overlaps)
    as_little = int((null <= _overlap(observed, sizes)).sum())
    return null, (1 + beyond) / (1 + draws), (1 + as_little) / (1 + draws)


def _overlap(means: Sequence[np.ndarray], sizes: Sequence[int]) -> float:
    """Return the Jaccard overlap of the strongest parts of two conditions."""
    tops = [
        frozenset(np.argsort(-np.abs(m), kind="stable")[:n].tolist())
        for m, n in zip(means, sizes, strict=True)
    ]
    return len(tops[0] & tops[1]) / max(len(tops[0] | tops[1]), 1)


def _intervals(table: Labeled, chosen: np.ndarray, draws: int, seed: int) -> tuple[Interval, ...]:
    """Return the differences with percentile intervals over resampled clusters."""
    count = len(table.paired)
    labeled = table.as_labeled()[None]
    a, b = table.means(labeled)
    values = (a - b)[0, chosen]
    low, high = np.full(len(chosen), -np.inf), np.full(len(chosen), np.inf)
    if count > 1:
        random = rng(seed, "cluster bootstrap")
        drawn = random.integers(0, count, size=(draws, count))
        times = np.zeros((draws, count))
        np.add.at(times, (np.arange(draws)[:, None], drawn), 1.0)
        narrow = Labeled(table.parts, table.sums[:, :, chosen], table.sizes, table.paired)
        x, y = narrow.means(np.repeat(labeled, draws, axis=0), times)
        low, high = np.nanquantile(x - y, [0.025, 0.975], axis=0)
    n = int(table.sizes.sum())
    return tuple(
        Interval(
            float(v), float(lo), float(hi), n=n, clusters=count,
            method=f"cluster bootstrap ({draws} draws)",
        )
        for v, lo, hi in zip(values, low, high, strict=True)
    )  # fmt: skip
