"""Evaluating circuits: faithfulness, complement, curves and minimality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.ablation import Ablation, Ablator
from microtome.circuits.finding import top
from microtome.circuits.results import Circuit, Evaluation, FaithfulnessCurve
from microtome.core.provenance import collect
from microtome.core.stats import Interval, cluster_bootstrap, cluster_ratio_bootstrap

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model


def evaluate(
    model: Model,
    examples: Examples,
    circuit: Circuit,
    *,
    ablation: Ablation = "resample",
    metric: str = "logit_difference",
    reference: Examples | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score a circuit with everything else ablated, and everything else with the circuit ablated.

    ``m(N)`` is the unchanged model and ``m(0)`` the model with every head and MLP ablated.

    Args:
        model: The model.
        examples: Where to score it: a split that the circuit was not found on.
        circuit: The circuit.
        ablation: What ablated nodes give.
        metric: A metric that reads the prompt's end.
        reference: Examples over which means are taken.
        seed: For the bootstrap.
    """
    ablator = Ablator(model, examples, ablation=ablation, reference=reference)
    everything = frozenset(ablator.universe)
    found = ablator.run(
        [everything, frozenset(), circuit.kept, everything - circuit.kept], [metric, "accuracy"]
    )
    full, empty, kept, without = found[metric]
    clusters = examples.clusters
    return Evaluation(
        ablation=ablation,
        faithfulness=cluster_ratio_bootstrap(kept - empty, full - empty, clusters, seed=seed),
        complement=cluster_ratio_bootstrap(without - empty, full - empty, clusters, seed=seed),
        moved=cluster_ratio_bootstrap(full - without, full - empty, clusters, seed=seed),
        accuracy=cluster_bootstrap(found["accuracy"][2], clusters, seed=seed),
        accuracy_without=cluster_bootstrap(found["accuracy"][3], clusters, seed=seed),
        full=full,
        empty=empty,
        circuit=kept,
        without=without,
        clusters=tuple(clusters.tolist()),
        provenance=collect(model, {"ablation": ablation, "metric": metric}, seed=seed),
    )


def curve(
    model: Model,
    examples: Examples,
    ranking: Sequence[str],
    sizes: Sequence[int],
    *,
    ablation: Ablation = "resample",
    metric: str = "logit_difference",
    split: str = "validation",
    reference: Examples | None = None,
    seed: int = 0,
) -> FaithfulnessCurve:
    """Return the faithfulness of the first ``k`` nodes of a ranking, for several ``k``."""
    ablator = Ablator(model, examples, ablation=ablation, reference=reference)
    circuits = [frozenset(ablator.universe), frozenset(), *(top(ranking, s) for s in sizes)]
    full, empty, *rows = ablator.run(circuits, [metric])[metric]
    intervals = [
        cluster_ratio_bootstrap(row - empty, full - empty, examples.clusters, seed=seed)
        for row in rows
    ]
    return FaithfulnessCurve(
        sizes=tuple(sizes),
        faithfulness=tuple(intervals),
        ablation=ablation,
        split=split,
        provenance=collect(model, {"ablation": ablation, "metric": metric}, seed=seed),
    )


def minimality(
    model: Model,
    examples: Examples,
    circuit: Circuit,
    *,
    ablation: Ablation = "resample",
    metric: str = "logit_difference",
    reference: Examples | None = None,
) -> dict[str, float]:
    """Return how much faithfulness is lost when each node alone is dropped from the circuit."""
    ablator = Ablator(model, examples, ablation=ablation, reference=reference)
    dropped = [circuit.kept - {node} for node in circuit.parts]
    found = ablator.run(
        [frozenset(ablator.universe), frozenset(), circuit.kept, *dropped], [metric]
    )[metric]
    means = found.mean(1)
    span = means[0] - means[1]
    return {node: float((means[2] - means[3 + i]) / span) for i, node in enumerate(circuit.parts)}


def takeovers(
    model: Model,
    examples: Examples,
    circuit: Circuit,
    *,
    ablation: Ablation = "resample",
    metric: str = "logit_difference",
    reference: Examples | None = None,
) -> dict[str, tuple[float, float]]:
    """Return what each node outside carries, with the circuit present and with it ablated.

    Returns:
        Node to (share of the metric lost when it alone is ablated, share lost when it is ablated
        besides the circuit).
    """
    ablator = Ablator(model, examples, ablation=ablation, reference=reference)
    everything = frozenset(ablator.universe)
    outside = [n for n in ablator.universe if n in circuit.rest]
    alone = [everything - {n} for n in outside]
    besides = [everything - circuit.kept - {n} for n in outside]
    base = [everything, frozenset(), everything - circuit.kept]
    means = ablator.run([*base, *alone, *besides], [metric])[metric].mean(1)
    span = means[0] - means[1]
    count = len(outside)
    lost = (means[0] - means[3 : 3 + count]) / span
    more = (means[2] - means[3 + count :]) / span
    return {n: (float(a), float(b)) for n, a, b in zip(outside, lost, more, strict=True)}


def item_closeness(full: np.ndarray, empty: np.ndarray, kept: np.ndarray) -> float:
    """Return how close a circuit stays to the model item by item.

    ``1 - mean |m(N) - m(C)| / mean |m(N) - m(0)|``: 1 for the whole model, 0 with everything
    ablated. Unlike faithfulness it is defined where effects of both signs cancel, as in a twin.

    Args:
        full: m(N) of every item.
        empty: m(0).
        kept: m(C).
    """
    span = float(np.abs(full - empty).mean())
    return 1.0 - float(np.abs(full - kept).mean()) / span if span > 0 else 0.0


def closeness(interval: Interval) -> float:
    """Return the guaranteed closeness of a faithfulness to 1: the worst value in its interval.

    ``1 - max(|1 - low|, |1 - high|)``: 1 is best; a wide interval guarantees little. A circuit that
    exceeds the model is no better than one that falls short by as much.
    """
    if not np.isfinite(interval.low) or not np.isfinite(interval.high):
        return float("-inf")
    return 1.0 - max(abs(1.0 - interval.low), abs(1.0 - interval.high))
