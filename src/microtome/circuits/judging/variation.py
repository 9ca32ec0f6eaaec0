"""How a circuit varies: over bootstrap resamples of the clusters, and over elimination orders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.circuits.judging.cluster_sums import cluster_sums
from microtome.circuits.judging.levels import Runner
from microtome.circuits.results import Circuit, Level, Stability
from microtome.core.seeds import rng

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.core.provenance import Provenance

CORE, ALTERNATIVE = 0.9, 0.1
"""Shares from which a part belongs to the core, and to the alternatives."""

ORDERS = 10
"""Elimination orders."""

STEPS = 64
"""Steps of an elimination at most."""

EDGE_ITEMS = 48
"""Train items at most on which edges are eliminated; nodes and neurons are on all."""


def stability(
    scores: Any,
    clusters: np.ndarray,
    circuit: Circuit,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> Stability:
    """Return how the circuit varies over bootstrap resamples of the train clusters.

    Args:
        scores: Scores of nodes or edges on the train split, see
            :func:`microtome.circuits.judging.cluster_sums.cluster_sums`.
        clusters: Cluster of each train example, for scores per example.
        circuit: The circuit whose size is kept.
        resamples: How many.
        seed: Which resamples.
    """
    random = rng(seed, "stability")
    sums = cluster_sums(scores, clusters)
    size = len(circuit.parts)
    chosen = []
    for _ in range(resamples):
        order = np.argsort(-np.abs(sums.drawn(random)), kind="stable")[:size]
        chosen.append(frozenset(sums.parts[int(i)] for i in order))
    share = shares(chosen, sums.parts)
    return Stability(
        share=share,
        core=tuple(n for n in sums.parts if share[n] >= CORE),
        alternatives=tuple(n for n in sums.parts if ALTERNATIVE <= share[n] < CORE),
        median_jaccard=float(np.median([jaccard(c, circuit.kept) for c in chosen])),
        resamples=resamples,
        provenance=_provenance(scores),
    )


def with_orders(
    found: Stability,
    ran: Runner,
    circuit: Circuit,
    start: Sequence[str],
    *,
    least: float,
    metric: str = "logit_difference",
    orders: int = ORDERS,
    seed: int = 0,
) -> Stability:
    """Return a stability with what remains of a circuit over random orders of elimination.

    Args:
        found: The stability over resamples.
        ran: Runs circuits on train.
        circuit: The circuit under test.
        start: Parts to begin with: the circuit, and others that might stand in for some of it.
        least: Faithfulness that must be left: a part is dropped if ``|1 - f|`` stays within
            1 - least.
        metric: A metric that reads the prompt's end.
        orders: How many.
        seed: Which orders.
    """
    left = eliminate(ran, start, least=least, metric=metric, orders=orders, seed=seed)
    share = shares(left, tuple(p for p in circuit.universe if p in set(start)))
    return replace(
        found,
        orders=orders,
        order_share=share,
        order_core=tuple(p for p, s in share.items() if s >= CORE),
        order_alternatives=tuple(p for p, s in share.items() if ALTERNATIVE <= s < CORE),
        order_jaccard=float(np.median([jaccard(c, circuit.kept) for c in left])),
    )


def order_items(train: Examples, level: Level, *, seed: int = 0) -> Examples:
    """Return the train items on which parts are eliminated: of many, some at random for edges.

    Args:
        train: All of them.
        level: What the parts are.
        seed: Which.
    """
    if not level.endswith("edge") or len(train) <= EDGE_ITEMS:
        return train
    drawn = rng(seed, "elimination items").choice(len(train), size=EDGE_ITEMS, replace=False)
    return train.take(sorted(drawn.tolist()))


def eliminate(
    ran: Runner,
    start: Sequence[str],
    *,
    least: float,
    metric: str = "logit_difference",
    orders: int = ORDERS,
    seed: int = 0,
) -> list[frozenset[str]]:
    """Drop parts one by one in random orders as long as enough faithfulness is left.

    Args:
        ran: Runs circuits.
        start: Parts to begin with.
        least: Faithfulness that must be left, see :func:`with_orders`.
        metric: A metric that reads the prompt's end.
        orders: How many orders; all are tried in the same pass.
        seed: Which orders.

    Large sets lose several parts at a time, so that there are no more than 64 steps.

    Returns:
        What is left, one set per order.
    """
    random = rng(seed, "elimination orders")
    steps = min(len(start), STEPS)
    turns = [
        [frozenset(start[int(i)] for i in group) for group in np.array_split(order, max(steps, 1))]
        for order in (random.permutation(len(start)) for _ in range(orders))
    ]
    left = [frozenset(start)] * orders
    ends = ran.run([frozenset(ran.universe), frozenset()], [metric])[metric].mean(1)
    span = float(ends[0] - ends[1])
    for step in range(steps):
        tried = [kept - turn[step] for kept, turn in zip(left, turns, strict=True)]
        means = ran.run(tried, [metric])[metric].mean(1)
        # comparing products needs no division by an effect that may be zero
        enough = np.abs(means - ends[0]) <= (1 - least) * abs(span)
        left = [new if ok else old for new, old, ok in zip(tried, left, enough, strict=True)]
    return left


def shares(circuits: Sequence[frozenset[str]], parts: Sequence[str]) -> dict[str, float]:
    """Return in what share of circuits each part is."""
    counts = Counter(p for c in circuits for p in c)
    return {p: counts[p] / len(circuits) for p in parts}


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Return the overlap of two sets of parts, 1 where both are empty."""
    return len(a & b) / len(a | b) if a | b else 1.0


def _provenance(scores: Any) -> Provenance | None:
    found: Provenance | None = getattr(scores, "provenance", None)
    return found
