"""Evaluating circuits of nodes or edges: faithfulness, complement, curves and minimality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.ablation import Ablation
from microtome.circuits.finding import top
from microtome.circuits.graph import ComponentGraph, split_edge
from microtome.circuits.judging.areas import ENOUGH, areas, nominal_sizes, sizes_of
from microtome.circuits.judging.levels import (
    Runner,
    check_parts,
    graph_at,
    runner,
    universe_of,
)
from microtome.circuits.results import Circuit, Evaluation, FaithfulnessCurve, Level
from microtome.core.provenance import collect
from microtome.core.stats import Interval, cluster_bootstrap, cluster_ratio_bootstrap
from microtome.errors import ConfigError

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

    ``m(N)`` is the unchanged model and ``m(0)`` the model with every part ablated.

    Args:
        model: The model.
        examples: Where to score it: a split that the circuit was not found on.
        circuit: The circuit, of nodes or of edges.
        ablation: What ablated parts give.
        metric: A metric that reads the prompt's end.
        reference: Examples over which means are taken.
        seed: For the bootstrap.
    """
    ran = runner(
        model, examples, circuit.level, ablation=ablation, reference=reference,
        universe=circuit.universe,
    )  # fmt: skip
    return evaluated(ran, model, examples, circuit, ablation=ablation, metric=metric, seed=seed)


def evaluated(
    ran: Runner,
    model: Model,
    examples: Examples,
    circuit: Circuit,
    *,
    ablation: Ablation,
    metric: str,
    seed: int,
) -> Evaluation:
    """Score a circuit as :func:`evaluate` does, by what runs circuits on the examples already."""
    everything = frozenset(ran.universe)
    found = ran.run(
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
    level: Level = "node",
    ablation: Ablation = "resample",
    metric: str = "logit_difference",
    split: str = "validation",
    reference: Examples | None = None,
    seed: int = 0,
) -> FaithfulnessCurve:
    """Return the faithfulness of the first ``k`` parts of a ranking, for several ``k``.

    Edges that lie on no path from the embedding to the logits are dropped before a circuit is run
    and counted. Where MIB's sizes are among those asked for, the curve has its areas.

    Args:
        model: The model.
        examples: Where to score: a split that the ranking was not found on.
        ranking: Parts, strongest first; parts that it leaves out follow in the model's order.
        sizes: Numbers of parts, ascending.
        level: Whether the parts are nodes or edges.
        ablation: What ablated parts give.
        metric: A metric that reads the prompt's end.
        split: Name of the split, for the result.
        reference: Examples over which means are taken.
        seed: For the bootstrap.

    Raises:
        UnknownNameError: If a part does not exist.
        ConfigError: If sizes are negative or not ascending.
    """
    if any(s < 0 for s in sizes) or any(a > b for a, b in pairwise(sizes)):
        raise ConfigError(f"sizes={tuple(sizes)}; expected ascending numbers of parts from 0 on.")
    ran = runner(model, examples, level, ablation=ablation, reference=reference, universe=ranking)
    order = complete(ranking, ran.universe)
    graph = graph_at(model, level, examples=examples)
    circuits = [connected(top(order, s), graph) for s in sizes]
    everything, total = frozenset(ran.universe), len(ran.universe)
    found = ran.run([everything, frozenset(), *circuits], [metric])[metric]
    full, empty, rows = found[0], found[1], found[2:]
    clusters = examples.clusters
    intervals = [
        cluster_ratio_bootstrap(row - empty, full - empty, clusters, seed=seed) for row in rows
    ]
    kept = [len(c) for c in circuits]
    measured = None
    if set(nominal_sizes(total)) <= set(sizes):
        sure = next((k for k, f in zip(kept, intervals, strict=True) if f.low >= ENOUGH), total)
        measured = areas(
            sizes, kept, total, rows, full, empty, clusters, sure_size=sure, seed=seed
        )  # fmt: skip
    return FaithfulnessCurve(
        sizes=tuple(sizes),
        faithfulness=tuple(intervals),
        ablation=ablation,
        split=split,
        kept=tuple(kept),
        total=total,
        areas=measured,
        provenance=collect(
            model, {"ablation": ablation, "metric": metric, "level": level}, seed=seed
        ),
    )


def faithfulness_curve(
    model: Model,
    examples: Examples,
    ranking: Sequence[str],
    *,
    level: Level = "node",
    ablation: Ablation = "resample",
    metric: str = "logit_difference",
    split: str = "test",
    reference: Examples | None = None,
    seed: int = 0,
) -> FaithfulnessCurve:
    """Return the curve at MIB's ten fractions and at log-spaced sizes, with its areas.

    Args:
        model: The model.
        examples: Where to score: a split that the ranking was not found on.
        ranking: Parts, strongest first; by magnitude for CMD, by value for CPR.
        level: Whether the parts are nodes or edges.
        ablation: What ablated parts give.
        metric: A metric that reads the prompt's end.
        split: Name of the split, for the result.
        reference: Examples over which means are taken.
        seed: For the bootstrap.

    Raises:
        UnknownNameError: If a part does not exist.
    """
    total = len(universe_of(model, level, examples=examples, universe=ranking))
    return curve(
        model, examples, ranking, sizes_of(total), level=level, ablation=ablation, metric=metric,
        split=split, reference=reference, seed=seed,
    )  # fmt: skip


def complete(ranking: Sequence[str], universe: Sequence[str]) -> tuple[str, ...]:
    """Return a ranking of all parts: the given one, then what it leaves out.

    Raises:
        UnknownNameError: If a part does not exist.
    """
    ranked = tuple(dict.fromkeys(check_parts(ranking, universe)))
    known = set(ranked)
    return (*ranked, *(p for p in universe if p not in known))


def connected(parts: frozenset[str], graph: ComponentGraph | None) -> frozenset[str]:
    """Return the edges that lie on a path from the embedding to the logits.

    Args:
        parts: Edges, or nodes.
        graph: The graph of the edges; None for nodes, which are returned as they are.
    """
    if graph is None or not parts:
        return parts
    return frozenset(graph.named(graph.connected(graph.mask(parts))))


def minimality(
    model: Model,
    examples: Examples,
    circuit: Circuit,
    *,
    ablation: Ablation = "resample",
    metric: str = "logit_difference",
    reference: Examples | None = None,
) -> dict[str, float]:
    """Return how much faithfulness is lost when each part alone is dropped from the circuit."""
    ran = runner(
        model, examples, circuit.level, ablation=ablation, reference=reference,
        universe=circuit.universe,
    )  # fmt: skip
    dropped = [circuit.kept - {part} for part in circuit.parts]
    found = ran.run([frozenset(ran.universe), frozenset(), circuit.kept, *dropped], [metric])[
        metric
    ]
    means = found.mean(1)
    # NaN where nothing is lost with everything ablated: then there are no shares of it
    span = (means[0] - means[1]) or np.nan
    return {part: float((means[2] - means[3 + i]) / span) for i, part in enumerate(circuit.parts)}


def takeovers(
    model: Model,
    examples: Examples,
    circuit: Circuit,
    *,
    ablation: Ablation = "resample",
    metric: str = "logit_difference",
    reference: Examples | None = None,
) -> dict[str, tuple[float, float]]:
    """Return what each part outside carries, with the circuit present and with it ablated.

    Nodes are ablated one at a time. Of edges, all that leave one source and lie outside the circuit
    are ablated together, and the source is named; likewise the neurons of one MLP.

    Returns:
        Part to (share of the metric lost when it alone is ablated, share lost when it is ablated
        besides the circuit).
    """
    ran = runner(
        model, examples, circuit.level, ablation=ablation, reference=reference,
        universe=circuit.universe,
    )  # fmt: skip
    everything = frozenset(ran.universe)
    outside = knocked_out(circuit)
    alone = [everything - parts for parts in outside.values()]
    besides = [everything - circuit.kept - parts for parts in outside.values()]
    base = [everything, frozenset(), everything - circuit.kept]
    means = ran.run([*base, *alone, *besides], [metric])[metric].mean(1)
    # NaN where nothing is lost with everything ablated: then there are no shares of it
    span = (means[0] - means[1]) or np.nan
    count = len(outside)
    lost = (means[0] - means[3 : 3 + count]) / span
    more = (means[2] - means[3 + count :]) / span
    return {n: (float(a), float(b)) for n, a, b in zip(outside, lost, more, strict=True)}


def knocked_out(circuit: Circuit) -> Mapping[str, frozenset[str]]:
    """Return what is ablated together outside a circuit, by name.

    A node; the neurons of an MLP; the edges that leave a source.
    """
    outside = [p for p in circuit.universe if p in circuit.rest]
    if circuit.level == "node":
        return {p: frozenset({p}) for p in outside}
    groups: dict[str, set[str]] = {}
    for name in outside:
        # neurons go by their MLP, which is what stands before the dot
        owner = split_edge(name)[0] if circuit.of_edges else name.partition(".n")[0]
        groups.setdefault(owner, set()).add(name)
    return {source: frozenset(edges) for source, edges in groups.items()}


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
