"""Nulls that are searched as hard as the circuit: twins and permuted answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from microtome.behaviors.examples import Examples
from microtome.circuits.ablation import Ablation, Ablator
from microtome.circuits.evaluation import closeness, item_closeness
from microtome.circuits.finding import Method, find, top
from microtome.circuits.results import Circuit, Nulls, Stability
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.core.seeds import rng
from microtome.core.stats import cluster_ratio_bootstrap
from microtome.tracing.components import head_of, layer_of

if TYPE_CHECKING:
    from microtome.attribution import ComponentScores
    from microtome.tracing.model import Model

RANDOM = 40
"""Random subgraphs of the floor."""


def search_nulls(
    model: Model,
    train: Examples,
    validation: Examples,
    test: Examples,
    circuit: Circuit,
    sizes: Sequence[int],
    *,
    count: int,
    ablation: Ablation,
    metric: str,
    method: Method,
    seed: int,
    enough: float | None = None,
    progress: Progress = quiet,
) -> Nulls:
    """Run the same finder with the same budget where there is nothing to find.

    A twin is scored on its own behavior. A permutation of the answers is scored on test answers
    permuted likewise, as a share of the effect that the true answers have: the finder ranks by
    magnitude and may return the very same nodes, but for meaningless answers no effect as large
    may come out.

    Args:
        model: The model.
        train: Where circuits are found.
        validation: For the twins' curves.
        test: Where circuits are scored.
        circuit: The circuit under test, whose size the nulls' circuits have.
        sizes: Sizes of the twins' curves.
        count: Twins, and as many permutations of the answers.
        ablation: What ablated nodes give.
        metric: The metric.
        method: The finder.
        seed: Which nulls.
        enough: Stop at the first twin that reaches this closeness, since the rule is then decided.
        progress: Told after each null.
    """
    twins: list[float] = []
    curves: list[list[float]] = []
    permuted: list[float] = []
    overlaps: list[float] = []
    size = len(circuit.parts)
    rules = _Rules(ablation, metric, method, train)
    full, empty = rules.values(model, test, None, frozenset())
    for number in range(count):
        with model.twin(seed * 1000 + number + 1) as other:
            ranking = rules.ranking(other, train)
            twins.append(
                item_closeness(*rules.values(other, test, None, frozenset(), top(ranking, size)))
            )
            curves.append(
                _mean_curve(
                    rules.values(
                        other, validation, None, frozenset(), *(top(ranking, s) for s in sizes)
                    )
                )
            )
        progress.step(2 * number + 1, 2 * count, "nulls")
        if enough is not None and twins[-1] >= enough:
            break
        shuffled, asked = (permute(part, seed * 1000 + number) for part in (train, test))
        kept = top(rules.ranking(model, shuffled), size)
        some, none = rules.values(model, asked, kept, frozenset())
        share = cluster_ratio_bootstrap(some - none, full - empty, test.clusters, seed=seed)
        permuted.append(closeness(share))
        overlaps.append(len(kept & circuit.kept) / max(len(kept | circuit.kept), 1))
        progress.step(2 * number + 2, 2 * count, "nulls")
    return Nulls(
        twins=np.array(twins),
        permuted=np.array(permuted),
        random=np.zeros(0),
        twin_curves=np.array(curves),
        sizes=tuple(sizes),
        permuted_overlap=float(np.median(overlaps)) if overlaps else float("nan"),
        provenance=collect(model, {"nulls": count, "ablation": ablation}, seed=seed),
    )


@dataclass(frozen=True)
class _Rules:
    """How every null is searched and scored: exactly as the circuit under test was."""

    ablation: Ablation
    metric: str
    method: Method
    reference: Examples

    def ranking(self, model: Model, train: Examples) -> tuple[str, ...]:
        scores = find(model, train, method=self.method, metric=self.metric, ablation=self.ablation)
        return tuple(scores.ranking())

    def values(
        self, model: Model, examples: Examples, *circuits: frozenset[str] | None
    ) -> np.ndarray:
        """Return the metric ``[circuit, example]``; None stands for the whole model."""
        ablator = Ablator(model, examples, ablation=self.ablation, reference=self.reference)
        everything = frozenset(ablator.universe)
        kept = [everything if c is None else c for c in circuits]
        return ablator.run(kept, [self.metric])[self.metric]


def _mean_curve(values: np.ndarray) -> list[float]:
    """Return faithfulness of means, from rows of the whole model, of none of it, and circuits."""
    means = values.mean(1)
    span = means[0] - means[1]
    return [float((m - means[1]) / span) if span else float("nan") for m in means[2:]]


def permute(examples: Examples, seed: int) -> Examples:
    """Return examples whose answers and wrong answers are exchanged in half of each cluster."""
    random = rng(seed, "permuted answers")
    swap = np.zeros(len(examples), dtype=bool)
    for cluster in np.unique(examples.clusters):
        places = np.flatnonzero(examples.clusters == cluster)
        chosen = random.permutation(places)
        half = len(chosen) // 2 + (random.random() < 0.5) * (len(chosen) % 2)
        swap[chosen[: int(half)]] = True
    items = tuple(
        replace(e, answers=e.wrongs, wrongs=e.answers) if s else e
        for e, s in zip(examples, swap, strict=True)
    )
    return Examples(items, examples.drops, examples.behavior)


def inverted(examples: Examples) -> Examples:
    """Return examples with answers and wrong answers exchanged."""
    items = tuple(replace(e, answers=e.wrongs, wrongs=e.answers) for e in examples)
    return Examples(items, examples.drops, examples.behavior)


def random_floor(
    model: Model,
    test: Examples,
    circuit: Circuit,
    *,
    ablation: Ablation,
    metric: str,
    seed: int,
    reference: Examples | None = None,
) -> np.ndarray:
    """Return the guaranteed closeness of random subgraphs with as many parts in each layer.

    Draws that happen to be the circuit itself are left out.
    """
    random = rng(seed, "random subgraphs")
    drawn = [matched_nodes(circuit, random) for _ in range(RANDOM)]
    drawn = [nodes for nodes in drawn if nodes != circuit.kept]
    ablator = Ablator(model, test, ablation=ablation, reference=reference)
    found = ablator.run([frozenset(ablator.universe), frozenset(), *drawn], [metric])[metric]
    full, empty = found[0], found[1]
    return np.array(
        [
            closeness(cluster_ratio_bootstrap(row - empty, full - empty, test.clusters, seed=seed))
            for row in found[2:]
        ]
    )


def matched_nodes(circuit: Circuit, random: np.random.Generator) -> frozenset[str]:
    """Draw nodes with the circuit's number of heads in each layer, and of MLPs overall."""
    drawn: set[str] = set()
    for layer in {layer_of(n) for n in circuit.universe}:
        heads = [n for n in circuit.universe if layer_of(n) == layer and head_of(n) is not None]
        wanted = sum(n in circuit.kept for n in heads)
        drawn |= (
            {heads[int(i)] for i in random.choice(len(heads), size=wanted, replace=False)}
            if wanted
            else set()
        )
    mlps = [n for n in circuit.universe if head_of(n) is None]
    wanted = sum(n in circuit.kept for n in mlps)
    drawn |= (
        {mlps[int(i)] for i in random.choice(len(mlps), size=wanted, replace=False)}
        if wanted
        else set()
    )
    return frozenset(drawn)


def stability(
    scores: ComponentScores,
    clusters: np.ndarray,
    circuit: Circuit,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> Stability:
    """Return how the circuit varies over bootstrap resamples of the train clusters.

    Args:
        scores: Per-example scores on the train split.
        clusters: Cluster of each train example.
        circuit: The circuit whose size is kept.
        resamples: How many.
        seed: Which resamples.
    """
    random = rng(seed, "stability")
    names = np.unique(clusters)
    members = {c: np.flatnonzero(clusters == c) for c in names}
    size = len(circuit.parts)
    counts = dict.fromkeys(scores.names, 0)
    overlaps = []
    for _ in range(resamples):
        drawn = random.choice(names, size=len(names), replace=True)
        rows = np.concatenate([members[c] for c in drawn])
        strength = np.abs(scores.values[rows].mean(0))
        chosen = {scores.names[int(i)] for i in np.argsort(-strength, kind="stable")[:size]}
        for node in chosen:
            counts[node] += 1
        overlaps.append(len(chosen & circuit.kept) / max(len(chosen | circuit.kept), 1))
    share = {n: c / resamples for n, c in counts.items()}
    return Stability(
        share=share,
        core=tuple(n for n in scores.names if share[n] >= 0.9),
        alternatives=tuple(n for n in scores.names if 0.1 <= share[n] < 0.9),
        median_jaccard=float(np.median(overlaps)),
        resamples=resamples,
        provenance=scores.provenance,
    )
