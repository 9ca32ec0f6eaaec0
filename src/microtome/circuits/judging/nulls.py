"""Nulls that are searched as hard as the circuit: twins and permuted answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from microtome.behaviors.examples import Examples
from microtome.circuits.ablation import Ablation
from microtome.circuits.finding import top
from microtome.circuits.judging.evaluation import closeness, item_closeness
from microtome.circuits.judging.levels import Search, runner, search_by_name
from microtome.circuits.judging.matching import matched
from microtome.circuits.results import Circuit, Level, Nulls
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.core.seeds import rng
from microtome.core.stats import cluster_ratio_bootstrap

if TYPE_CHECKING:
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
    permutations are as large as it is, and often larger.

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
        method: The finder: its name, or a function from model and examples to scores.
        seed: Which nulls.
        enough: Stop at the first twin that reaches this closeness, since the rule is then decided.
        progress: Told after each null.

    Raises:
        ConfigError: If the finder is of another level than the circuit.
    """
    twins: list[float] = []
    curves: list[list[float]] = []
    permuted: list[float] = []
    overlaps: list[float] = []
    size = len(circuit.parts)
    rules = _Rules(ablation, metric, method, train, circuit.level)
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
        permuted.append(_share((some - none).mean(), (full - empty).mean()))
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
    method: str | Search
    reference: Examples
    level: Level

    def __post_init__(self) -> None:
        if not callable(self.method):
            search_by_name(self.method, self.metric, self.ablation, level=self.level)

    def ranking(self, model: Model, train: Examples) -> tuple[str, ...]:
        if callable(self.method):
            return self.method(model, train).ranking()
        search = search_by_name(self.method, self.metric, self.ablation, level=self.level)
        return search(model, train).ranking()

    def values(
        self, model: Model, examples: Examples, *circuits: frozenset[str] | None
    ) -> np.ndarray:
        """Return the metric ``[circuit, example]``; None stands for the whole model."""
        ran = runner(model, examples, self.level, ablation=self.ablation, reference=self.reference)
        everything = frozenset(ran.universe)
        kept = [everything if c is None else c for c in circuits]
        return ran.run(kept, [self.metric])[self.metric]


def _share(effect: float, of: float) -> float:
    """Return how large an effect is beside another, whatever their signs."""
    return float(abs(effect / of)) if of else float("inf")


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
    count: int = RANDOM,
) -> np.ndarray:
    """Return the guaranteed closeness of random subgraphs of the circuit's make.

    Nodes have as many heads in each layer and as many MLPs; edges as many from each kind of source
    to each kind of target, layer by layer. Draws that happen to be the circuit are left out.
    """
    random = rng(seed, "random subgraphs")
    drawn = [matched(circuit, random) for _ in range(count)]
    drawn = [parts for parts in drawn if parts != circuit.kept]
    ran = runner(model, test, circuit.level, ablation=ablation, reference=reference)
    found = ran.run([frozenset(ran.universe), frozenset(), *drawn], [metric])[metric]
    full, empty = found[0], found[1]
    return np.array(
        [
            closeness(cluster_ratio_bootstrap(row - empty, full - empty, test.clusters, seed=seed))
            for row in found[2:]
        ]
    )
