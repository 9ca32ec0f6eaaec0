"""Nulls that are searched as hard as the circuit: twins and permuted answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.ablation import Ablation
from microtome.circuits.finding import top
from microtome.circuits.graph import ComponentGraph
from microtome.circuits.judging.evaluation import closeness, connected, item_closeness
from microtome.circuits.judging.levels import (
    NamedSearch,
    Runner,
    Search,
    graph_at,
    runner,
    search_by_name,
)
from microtome.circuits.judging.matching import matched
from microtome.circuits.judging.permuting import permuted_scores, permuted_values
from microtome.circuits.judging.variation import jaccard
from microtome.circuits.results import Circuit, Nulls
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.core.seeds import rng
from microtome.core.stats import cluster_ratio_bootstrap

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
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
    method: str | Search,
    seed: int,
    enough: float | None = None,
    progress: Progress = quiet,
) -> Nulls:
    """Run the same finder with the same budget where there is nothing to find.

    A twin is scored on its own behavior. A permutation of the answers is scored on test answers
    permuted likewise, as a share of the effect that the true answers have: the finder ranks by
    magnitude and may return the very same nodes, but for meaningless answers no effect as large
    may come out, of either sign. Where the effect of the true answers is itself chance, effects of
    permutations are as large as it is, and often larger. Where the finder's scores are linear in
    the metric, one search serves all permutations, see
    :mod:`microtome.circuits.judging.permuting`.

    Args:
        model: The model.
        train: Where circuits are found.
        validation: For the twins' curves.
        test: Where circuits are scored.
        circuit: The circuit under test, whose size the nulls' circuits have.
        sizes: Sizes of the twins' curves; edges that lead nowhere are left out, as everywhere.
        count: Twins, and as many permutations of the answers.
        ablation: What ablated nodes give.
        metric: The metric.
        method: The finder: its name, or a function from model and examples to scores.
        seed: Which nulls.
        enough: Stop at the first twin that reaches this closeness, since the rule is then decided.
        progress: Told after each null.

    Raises:
        ConfigError: If the finder is of another level than the circuit.
    """
    search = method
    if isinstance(search, str):
        search = search_by_name(search, metric, ablation, level=circuit.level)
    if isinstance(search, NamedSearch):
        search = search.among(circuit.universe)
    graph = graph_at(model, circuit.level, examples=train)
    rules = _Rules(ablation, metric, search, train, circuit, graph, seed)
    twins, curves = _twins(
        model, rules, validation, test, circuit, sizes, count=count, enough=enough,
        progress=progress,
    )  # fmt: skip
    stopped = enough is not None and len(twins) > 0 and twins[-1] >= enough
    permuted, overlaps = _permutations(
        model, rules, test, circuit, count=len(twins) - stopped, progress=progress
    )
    return Nulls(
        twins=np.array(twins),
        permuted=np.array(permuted),
        random=np.zeros(0),
        twin_curves=np.array(curves),
        sizes=tuple(sizes),
        permuted_overlap=float(np.median(overlaps)) if overlaps else float("nan"),
        provenance=collect(model, {"nulls": count, "ablation": ablation}, seed=seed),
    )


def _twins(
    model: Model,
    rules: _Rules,
    validation: Examples,
    test: Examples,
    circuit: Circuit,
    sizes: Sequence[int],
    *,
    count: int,
    enough: float | None,
    progress: Progress,
) -> tuple[list[float], list[list[float]]]:
    """Return the closeness of every twin's circuit on test, and its curve on validation."""
    found: list[float] = []
    curves: list[list[float]] = []
    for number in range(count):
        with model.twin(rules.seed * 1000 + number + 1) as other:
            ranking = rules.search(other, rules.train).ranking()
            kept = rules.equal(ranking, len(circuit.parts))
            found.append(item_closeness(*rules.values(other, test, None, frozenset(), kept)))
            nested = (rules.first(ranking, s) for s in sizes)
            curves.append(_mean_curve(rules.values(other, validation, None, frozenset(), *nested)))
        progress.step(number + 1, 2 * count, "nulls")
        if enough is not None and found[-1] >= enough:
            break
    return found, curves


def _permutations(
    model: Model, rules: _Rules, test: Examples, circuit: Circuit, *, count: int, progress: Progress
) -> tuple[list[float], list[float]]:
    """Return the sizes of the effects of circuits for permuted answers, and their overlaps."""
    seeds = [rules.seed * 1000 + number for number in range(count)]
    rankings = []
    for number, scores in enumerate(permuted_scores(model, rules.train, rules.search, seeds)):
        rankings.append(scores.ranking())
        progress.step(count + number + 1, 2 * count, "nulls")
    circuits = [rules.equal(ranking, len(circuit.parts)) for ranking in rankings]
    full, empty = rules.values(model, test, None, frozenset())
    run_on = partial(rules.runner, model)
    effects = [
        _share((some - none).mean(), (full - empty).mean())
        for some, none in permuted_values(run_on, test, rules.metric, circuits, seeds)
    ]
    return effects, [jaccard(kept, circuit.kept) for kept in circuits]


@dataclass(frozen=True)
class _Rules:
    """How every null is searched and scored: exactly as the circuit under test was.

    Twins have the graph of their model.
    """

    ablation: Ablation
    metric: str
    search: Search
    train: Examples
    circuit: Circuit
    graph: ComponentGraph | None
    seed: int

    def first(self, ranking: Sequence[str], size: int) -> frozenset[str]:
        """Return the first parts of a ranking, edges that lead nowhere left out."""
        return connected(top(ranking, size), self.graph)

    def equal(self, ranking: Sequence[str], size: int) -> frozenset[str]:
        """Return the first circuit along a ranking that has a size once it is connected."""
        return of_size(ranking, size, self.graph)

    def runner(self, model: Model, examples: Examples) -> Runner:
        return runner(
            model, examples, self.circuit.level, ablation=self.ablation, reference=self.train,
            universe=self.circuit.universe,
        )  # fmt: skip

    def values(
        self, model: Model, examples: Examples, *circuits: frozenset[str] | None
    ) -> np.ndarray:
        """Return the metric ``[circuit, example]``; None stands for the whole model."""
        ran = self.runner(model, examples)
        everything = frozenset(ran.universe)
        kept = [everything if c is None else c for c in circuits]
        return ran.run(kept, [self.metric])[self.metric]


def of_size(ranking: Sequence[str], size: int, graph: ComponentGraph | None) -> frozenset[str]:
    """Return the first parts of a ranking of which so many are left once they are connected.

    Args:
        ranking: Parts, strongest first.
        size: Parts wanted; one part more may connect several at once.
        graph: The graph of edges; None for nodes, all of which count.
    """
    if graph is None or size == 0:
        return top(ranking, size)
    few, many = min(size, len(ranking)), len(ranking)
    while few < many:
        middle = (few + many) // 2
        if len(connected(top(ranking, middle), graph)) >= size:
            many = middle
        else:
            few = middle + 1
    return connected(top(ranking, few), graph)


def _share(effect: float, of: float) -> float:
    """Return how large an effect is beside another, whatever their signs."""
    return float(abs(effect / of)) if of else float("inf")


def _mean_curve(values: np.ndarray) -> list[float]:
    """Return faithfulness of means, from rows of the whole model, of none of it, and circuits."""
    means = values.mean(1)
    span = means[0] - means[1]
    return [float((m - means[1]) / span) if span else float("nan") for m in means[2:]]


def random_floor(
    model: Model,
    test: Examples,
    circuit: Circuit,
    *,
    ablation: Ablation,
    metric: str,
    seed: int,
    reference: Examples | None = None,
    count: int = RANDOM,
) -> np.ndarray:
    """Return the guaranteed closeness of random subgraphs of the circuit's make.

    Nodes have as many heads in each layer and as many MLPs; edges as many from each kind of source
    to each kind of target, layer by layer. Draws that happen to be the circuit are left out.
    """
    random = rng(seed, "random subgraphs")
    drawn = [matched(circuit, random) for _ in range(count)]
    drawn = [parts for parts in drawn if parts != circuit.kept]
    ran = runner(
        model, test, circuit.level, ablation=ablation, reference=reference,
        universe=circuit.universe,
    )  # fmt: skip
    found = ran.run([frozenset(ran.universe), frozenset(), *drawn], [metric])[metric]
    full, empty = found[0], found[1]
    return np.array(
        [
            closeness(cluster_ratio_bootstrap(row - empty, full - empty, test.clusters, seed=seed))
            for row in found[2:]
        ]
    )
