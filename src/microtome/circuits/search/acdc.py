"""ACDC as a ranking: edges are removed greedily from the logits backward, and die at a threshold.

Conmy et al. (2023, arXiv 2304.14997) visit the targets in reverse order of computation and remove
an edge for good where that moves the metric by less than a threshold, all that was removed before
being gone already. Here a rising series of thresholds is run through, each going on from what the
last one left; the score of an edge is the threshold at which it dies. Changes are absolute, so that
parts that speak against the behavior are kept too.

The greedy decisions are not changed by how they are computed: one pass tries several edges of a
target, each with those before it gone that are expected to go, and what it finds counts up to the
first edge that goes the other way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from microtome.circuits.edges.ablation import EdgeAblator
from microtome.circuits.search.objectives import DIVERGENCE, objective
from microtome.circuits.search.set_scores import set_scores
from microtome.core.progress import Progress, quiet
from microtome.core.seeds import rng
from microtome.errors import ConfigError

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.behaviors.metrics import LastTokenMetric, Metric
    from microtome.circuits.edges.scores import EdgeScores
    from microtome.circuits.graph import ComponentGraph
    from microtome.circuits.references import Ablation
    from microtome.tracing.model import Model

Order = Literal["latest", "earliest", "random"]
"""Which of a target's sources is tried first."""

RANGE = 1e-3
"""Lowest threshold as a share of the highest, where they are not given."""

CHAIN = 64
"""Most edges that one pass tries one after the other."""

MEANING = (
    "The threshold at which the edge dies: how much the {metric} may move, at most, so that the "
    "edge is still kept when edges are removed greedily from the logits backward, {order} first."
)


def acdc(
    model: Model,
    examples: Examples,
    *,
    metric: str | Metric = DIVERGENCE,
    thresholds: int | Sequence[float] = 8,
    order: Order = "latest",
    ablation: Ablation = "resample",
    reference: Examples | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> EdgeScores:
    """Score every edge by the threshold at which a greedy search removes it.

    Of two arms that stand in for one another the first that is visited dies at the lowest
    threshold, and the other one then carries everything; so one of them is lost, and which one
    depends on ``order``.

    Args:
        model: A transformer whose parts write to one residual stream.
        examples: Where to look; all of them are used for every decision.
        metric: ``kl_to_unchanged``, or a metric that reads the prompt's end.
        thresholds: The thresholds, or how many: then from a thousandth of the largest change (of
            one edge, or of all at once) up to it, in equal ratios.
        order: Whether a target's ``latest`` or ``earliest`` source is tried first, or ``random``.
        ablation: What a removed edge carries.
        reference: Examples over which means are taken.
        seed: For a random order.
        progress: Told after each target of each threshold.

    Returns:
        Scores of the examples as a whole. Within the last step up the change that the removal made
        is what counts, so that edges that die at one threshold are told apart. Edges that outlive
        all thresholds score the change that removing them would make, at least the last threshold.

    Raises:
        ConfigError: If the thresholds are not positive and rising, or the order is unknown.
    """
    if order not in get_args(Order):
        raise ConfigError(f"order={order!r}; expected one of {', '.join(get_args(Order))}.")
    ablator = EdgeAblator(model, examples, ablation=ablation, reference=reference)
    chosen = objective(model, examples, metric, "ACDC")
    search = _Search(ablator, chosen, _visits(ablator.graph, order, seed))
    levels = _levels(search, thresholds)
    values = search.run(levels, progress)
    return set_scores(
        model,
        ablator.graph,
        values,
        n=len(examples),
        method=f"acdc, from the logits backward, {order} source first",
        metric=chosen.name,
        ablation=ablation,
        meaning=MEANING.format(metric=chosen.name, order=order),
        seed=seed if order == "random" else None,
        config={"thresholds": list(levels), "order": order},
        passes={"circuits": search.circuits},
    )


def _levels(search: _Search, thresholds: int | Sequence[float]) -> tuple[float, ...]:
    """Return the thresholds that were given, or so many of them."""
    if isinstance(thresholds, Sequence | np.ndarray):
        return _checked(thresholds)
    return search.levels(int(thresholds))


def _checked(thresholds: Sequence[float]) -> tuple[float, ...]:
    levels = tuple(float(t) for t in thresholds)
    rising = all(a < b for a, b in zip(levels, levels[1:], strict=False))
    if not levels or levels[0] <= 0 or not rising or not np.isfinite(levels).all():
        raise ConfigError(f"thresholds={levels}; expected positive, rising numbers.")
    return levels


def _visits(graph: ComponentGraph, order: Order, seed: int) -> list[np.ndarray]:
    """Return the edges of each target in the order of the search, the last target first."""
    random = rng(seed, "acdc")
    found = []
    for target in reversed(range(len(graph.targets))):
        edges = np.flatnonzero(graph.pairs[:, 1] == target)
        if order == "latest":
            edges = edges[::-1]
        found.append(random.permutation(edges) if order == "random" else edges)
    return found


@dataclass(eq=False)
class _Search:
    """The state of the search: what has been removed, and what each edge scores.

    The change that an edge made when it was last tried says which way it is expected to go.
    """

    ablator: EdgeAblator
    metric: LastTokenMetric
    visits: list[np.ndarray]
    circuits: int = 0

    def __post_init__(self) -> None:
        count = self.ablator.graph.n_edges
        self.gone = np.zeros(count, dtype=bool)
        self.scores = np.zeros(count)
        every = np.arange(count)
        found = self._measured([every[:0], every, *every[:, None]])
        self.value = found[0]
        self.total = abs(float(found[1] - found[0]))
        self.changes = np.abs(found[2:] - found[0])

    def levels(self, count: int) -> tuple[float, ...]:
        """Return thresholds in equal ratios up to the largest change.

        Raises:
            ConfigError: If there is to be none.
        """
        if count < 1:
            raise ConfigError(f"thresholds={count}; expected at least 1.")
        highest = max(self.total, float(self.changes.max()))
        if highest <= 0:
            return (1.0,)
        return tuple(np.geomspace(highest * RANGE, highest, count).tolist())

    def run(self, levels: Sequence[float], progress: Progress) -> np.ndarray:
        """Return the score of every edge."""
        total, done = len(levels) * len(self.visits), 0
        below = 0.0
        for level in levels:
            for edges in self.visits:
                self._visit(edges, below, level)
                done += 1
                progress.step(done, total, "acdc")
            below = level
        return self.scores

    def _visit(self, edges: np.ndarray, below: float, level: float) -> None:
        left = edges[~self.gone[edges]]
        while len(left):
            left = left[self._decided(left[:CHAIN], below, level) :]

    def _decided(self, chain: np.ndarray, below: float, level: float) -> int:
        """Try some edges one after the other; return how many decisions are made."""
        expected = self.changes[chain] < level
        removed = np.flatnonzero(self.gone)
        cuts = [
            np.concatenate([removed, chain[:n][expected[:n]], chain[n : n + 1]])
            for n in range(len(chain))
        ]
        base = self.value
        for number, (edge, value) in enumerate(zip(chain, self._measured(cuts), strict=True)):
            self.changes[edge] = abs(value - base)
            dies = bool(self.changes[edge] < level)
            if dies:
                self.gone[edge] = True
                self.scores[edge] = np.clip(self.changes[edge], below, level)
                self.value = base = value
            else:
                self.scores[edge] = self.changes[edge]
            if dies != expected[number]:
                # the circuits behind this one were formed as if it had gone the other way
                return number + 1
        return len(chain)

    def _measured(self, cuts: list[np.ndarray]) -> np.ndarray:
        """Return the mean metric of each circuit."""
        self.circuits += len(cuts)
        found = self.ablator.run_cuts(cuts, [self.metric])[self.metric.name]
        return np.asarray(found.mean(1))
