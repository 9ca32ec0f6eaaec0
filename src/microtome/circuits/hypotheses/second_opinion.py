"""Three hypothesis tests of a circuit by Shi et al. (2024, arXiv 2410.13032), a second opinion.

Each takes an idealized property of a circuit as its null hypothesis, so a small p value speaks
against the circuit:

* equivalence: the circuit does better than the model as often as worse, up to ``epsilon``;
* independence: what is left without the circuit does well or badly regardless of the model;
* minimality: knocking out a part of the circuit matters more than knocking out, from the circuit
  with a random addition, a part that was added, in at least ``quantile`` of the additions.

Items of one cluster are not independent, which the tests assume, so their unit here is the cluster:
each has one value, the mean over its items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.ablation import Ablation
from microtome.circuits.graph import EMBED, LOGITS, ComponentGraph, split_edge
from microtome.circuits.judging.levels import Runner, graph_at, runner
from microtome.circuits.results import Circuit
from microtome.core.provenance import Provenance, collect
from microtome.core.seeds import rng
from microtome.core.stats import permutation_p
from microtome.errors import ConfigError, ShapeError
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model

EPSILON = 0.1
"""By how much the chance of outdoing the model may differ from one half."""

QUANTILE = 0.9
"""Share of random additions whose knock-out a needed part outdoes."""

ADDITIONS = 100
"""Random additions of the test of minimality."""

LEVEL = 0.05
"""Below it a null hypothesis is rejected."""


@dataclass(frozen=True, eq=False)
class SecondOpinion(Result):
    """The outcome of the three tests; every null hypothesis is what one hopes for.

    Attributes:
        equivalence: P value of "equivalent to the model"; small speaks against the circuit.
        inequivalence: P value of the reverse, "not equivalent"; small speaks for the circuit.
        outdoes: Share of clusters, among those that differ, in which the circuit outdoes the model.
        independence: P value of "what is left is independent of the model".
        dependence: The Hilbert-Schmidt independence criterion behind it.
        minimality: P value of "needed" for each part of the circuit.
        quantiles: Share of random additions whose knock-out each part outdoes.
        needless: Parts whose need is rejected at 5 % after Bonferroni's correction.
        epsilon: Of the test of equivalence.
        quantile: Of the test of minimality.
        clusters: Clusters tested.
        ablation: What ablated parts gave.
        provenance: Model, seed, versions.
    """

    equivalence: float
    inequivalence: float
    outdoes: float
    independence: float
    dependence: float
    minimality: Mapping[str, float]
    quantiles: Mapping[str, float]
    needless: tuple[str, ...]
    epsilon: float
    quantile: float
    clusters: int
    ablation: str
    provenance: Provenance | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each test: null hypothesis, p value, whether it is rejected at 5 %."""
        import pandas as pd

        count = max(len(self.minimality), 1)
        least = min(1.0, count * min(self.minimality.values(), default=1.0))
        rows = [
            ("equivalent to the model", self.equivalence),
            ("not equivalent to the model", self.inequivalence),
            ("the rest is independent of the model", self.independence),
            ("every part is needed (Bonferroni)", least),
        ]
        return pd.DataFrame([{"null": name, "p": p, "rejected": p < LEVEL} for name, p in rows])


def second_opinion(
    model: Model,
    examples: Examples,
    circuit: Circuit,
    *,
    ablation: Ablation = "resample",
    metric: str = "logit_difference",
    reference: Examples | None = None,
    epsilon: float = EPSILON,
    quantile: float = QUANTILE,
    additions: int = ADDITIONS,
    permutations: int = 1000,
    seed: int = 0,
) -> SecondOpinion:
    """Test equivalence, independence and minimality of a circuit of nodes or edges.

    Args:
        model: The model.
        examples: Where to test: a split that the circuit was not found on.
        circuit: The circuit.
        ablation: What ablated parts give.
        metric: A metric that reads the prompt's end.
        reference: Examples over which means are taken.
        epsilon: Of the test of equivalence, from 0 to one half.
        quantile: Of the test of minimality, between 0 and 1.
        additions: Random additions of the test of minimality.
        permutations: Permutations of the test of independence.
        seed: Which additions and permutations.

    Raises:
        ConfigError: If a setting is out of range.
    """
    if not 0 < epsilon < 0.5 or not 0 < quantile < 1 or additions < 1 or permutations < 1:
        raise ConfigError(
            f"epsilon={epsilon}, quantile={quantile}, additions={additions}, "
            f"permutations={permutations}; expected 0 < epsilon < 0.5, 0 < quantile < 1 and counts "
            "of at least 1."
        )
    ran = runner(
        model, examples, circuit.level, ablation=ablation, reference=reference,
        universe=circuit.universe,
    )  # fmt: skip
    everything = frozenset(ran.universe)
    found = ran.run([everything, circuit.kept, everything - circuit.kept], [metric])[metric]
    full, kept, rest = (by_cluster(row, examples.clusters) for row in found)
    same, differ, outdoes = equivalence(kept - full, epsilon)
    independent, criterion = independence(full, rest, permutations=permutations, seed=seed)
    graph = graph_at(model, circuit.level, examples=examples)
    effects, added = _knock_outs(ran, circuit, metric, additions, graph, seed)
    quantiles = {p: float(np.mean(e > added)) for p, e in effects.items()} if len(added) else {}
    needed = {p: minimality_p(e, added, quantile) for p, e in effects.items()}
    return SecondOpinion(
        equivalence=same,
        inequivalence=differ,
        outdoes=outdoes,
        independence=independent,
        dependence=criterion,
        minimality=needed,
        quantiles=quantiles,
        needless=tuple(p for p, value in needed.items() if value * len(needed) < LEVEL),
        epsilon=epsilon,
        quantile=quantile,
        clusters=len(full),
        ablation=ablation,
        provenance=collect(model, {"ablation": ablation, "metric": metric}, seed=seed),
    )


def by_cluster(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Return the mean of each cluster, in the order of their names."""
    _, codes = np.unique(clusters, return_inverse=True)
    return np.bincount(codes, weights=values) / np.bincount(codes)


def equivalence(differences: np.ndarray, epsilon: float) -> tuple[float, float, float]:
    """Test whether positive and negative differences are equally likely, up to ``epsilon``.

    With T = ``|share of positive ones - 1/2|``, the p value of ``|P - 1/2|`` <= epsilon is the
    chance that a binomial share with P = 1/2 + epsilon is at least T away from one half, the
    largest under the null hypothesis. Differences of zero take no side and are left out.

    Args:
        differences: Metric of the circuit minus that of the model, one per independent unit.
        epsilon: From 0 to one half.

    Returns:
        P value of "equivalent", p value of "not equivalent" (the chance of a share so near one half
        with P = 1/2 + epsilon), and the share of positive differences. Without any difference these
        are 1, 0 and one half.
    """
    from scipy.stats import binom

    sides = differences[differences != 0]
    n, ups = len(sides), int((sides > 0).sum())
    if n == 0:
        return 1.0, 0.0, 0.5
    counts = np.arange(n + 1)
    mass = binom.pmf(counts, n, 0.5 + epsilon)
    # in whole numbers, so that rounding cannot move a count across the border
    far = np.abs(2 * counts - n) >= abs(2 * ups - n)
    near = np.abs(2 * counts - n) <= abs(2 * ups - n)
    return min(1.0, float(mass[far].sum())), min(1.0, float(mass[near].sum())), ups / n


def independence(
    first: np.ndarray, second: np.ndarray, *, permutations: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Test two variables for independence by a permutation test of the HSIC.

    The Hilbert-Schmidt independence criterion with Gaussian kernels, each as wide as the median
    distance of its variable (Gretton et al. 2007).

    Args:
        first: One number per independent unit.
        second: Likewise.
        permutations: How many.
        seed: Which.

    Returns:
        The p value of "independent" and the criterion. A variable that does not vary is independent
        of every other.

    Raises:
        ShapeError: If the lengths differ.
    """
    if first.shape != second.shape:
        raise ShapeError(f"variables of lengths {len(first)} and {len(second)}; expected one.")
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 1.0, 0.0
    a, b = _centered(first), _centered(second)
    scale = (len(first) - 1) ** 2
    random = rng(seed, "independence")
    null = []
    for _ in range(permutations):
        order = random.permutation(len(second))
        null.append(float((a * b[order][:, order]).sum()) / scale)
    observed = float((a * b).sum()) / scale
    return permutation_p(observed, null), observed


def _centered(values: np.ndarray) -> np.ndarray:
    """Return the doubly centered Gaussian kernel matrix."""
    distance = np.abs(values[:, None] - values[None, :])
    width = float(np.median(distance[distance > 0]))
    kernel = np.exp(-(distance**2) / (2 * width**2))
    rows = kernel.mean(0)
    return np.asarray(kernel - rows[:, None] - rows[None, :] + rows.mean())


def minimality_p(effect: float, added: np.ndarray, quantile: float) -> float:
    """Return the p value of "knocking this out outdoes at least ``quantile`` of random additions".

    Args:
        effect: Mean ``|change of the metric|`` when the part is knocked out of the circuit.
        added: The same for added parts, knocked out of the circuit with the addition.
        quantile: Between 0 and 1.
    """
    from scipy.stats import binom

    if not len(added):
        return 1.0
    return float(binom.cdf(int((effect > added).sum()), len(added), quantile))


def _knock_outs(
    ran: Runner,
    circuit: Circuit,
    metric: str,
    additions: int,
    graph: ComponentGraph | None,
    seed: int,
) -> tuple[dict[str, float], np.ndarray]:
    """Return the effect of knocking out each part, and of knocking out random additions."""
    random = rng(seed, "additions")
    drawn = [_addition(circuit, graph, random) for _ in range(additions)]
    pairs = [pair for pair in drawn if pair is not None]
    circuits = [circuit.kept, *(circuit.kept - {p} for p in circuit.parts)]
    for inflated, part in pairs:
        circuits += [inflated, inflated - {part}]
    found = ran.run(circuits, [metric])[metric]
    own = np.abs(found[1 : 1 + len(circuit.parts)] - found[0]).mean(1)
    rest = found[1 + len(circuit.parts) :]
    added = np.abs(rest[0::2] - rest[1::2]).mean(1)
    return dict(zip(circuit.parts, own.tolist(), strict=True)), added


def _addition(
    circuit: Circuit, graph: ComponentGraph | None, random: np.random.Generator
) -> tuple[frozenset[str], str] | None:
    """Return the circuit with a random addition and one of the added parts.

    The addition is a node, or the edges of a random path from the embedding to the logits; None
    where nothing is left to add.
    """
    if graph is None:
        outside = sorted(circuit.rest)
        new = frozenset(outside[int(random.integers(len(outside)))] for _ in outside[:1])
    else:
        new = random_path(graph, random) - circuit.kept
    if not new:
        return None
    parts = sorted(new)
    return circuit.kept | new, parts[int(random.integers(len(parts)))]


def random_path(graph: ComponentGraph, random: np.random.Generator) -> frozenset[str]:
    """Return the edges of a random walk from the embedding to the logits.

    Where edges are told apart by place, the walk goes on where it arrived: at the place of a query
    or an MLP, anywhere behind a key or value.
    """
    leaving: dict[str, list[str]] = {}
    for edge in graph.edges:
        leaving.setdefault(split_edge(edge)[0], []).append(edge)
    everywhere = frozenset(range(max(1, len(graph.places))))
    last = max(everywhere)
    while True:
        path, here, places = set(), EMBED, everywhere
        while here != LOGITS:
            options = [e for e in leaving[here] if _goes_on(e, graph, places, last)]
            if not options:
                break
            edge = options[int(random.integers(len(options)))]
            path.add(edge)
            target = split_edge(edge)[1]
            places = _behind(target, graph, everywhere)
            readers = graph.readers(target)
            here = readers[int(random.integers(len(readers)))]
        else:
            return frozenset(path)


def _goes_on(edge: str, graph: ComponentGraph, places: frozenset[int], last: int) -> bool:
    """Return whether an edge leaves one of some places; the logits read at the last position."""
    place = edge.partition("@")[2]
    if not place:
        return last in places or not graph.ordered
    return graph.place_number[place] in places


def _behind(target: str, graph: ComponentGraph, everywhere: frozenset[int]) -> frozenset[int]:
    """Return at which places a head or an MLP writes what a target of it reads."""
    place = target.partition("@")[2]
    if not place:
        return everywhere
    number = graph.place_number[place]
    if "<k>" in target or "<v>" in target:
        return frozenset(p for p in everywhere if p >= number or not graph.ordered)
    return frozenset({number})
