"""What circuit methods give: circuits, evaluations, curves and verdicts, each a frozen result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from microtome.circuits.judging.areas import Areas
from microtome.core.provenance import Provenance
from microtome.core.stats import Interval
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from microtome.circuits.parts import Scores
    from microtome.views import CircuitDiagram

Level = Literal[
    "node", "neuron", "latent", "edge", "role-edge", "position-edge", "neuron-edge", "latent-edge"
]
"""What the parts of a circuit are: heads and MLPs, heads and neurons, latents and errors of codecs,
edges, edges at the positions of one role, edges at one position, edges that leave single neurons
(scored, but not run), edges between latents and errors of codecs."""


@dataclass(frozen=True, eq=False)
class Circuit(Result, version=2):
    """A set of parts of a model: of its heads, MLPs and neurons, or of the edges between them.

    Attributes:
        parts: The parts that belong to it, in the order of the universe.
        universe: All parts of the model.
        method: How it was found.
        level: ``node`` (parts are ``a0.h1`` and ``m2``), ``neuron`` (``a0.h1`` and ``m2.n17``),
            ``latent`` (``blocks.3.resid_post/NAME[latent=17]`` and
            ``blocks.3.resid_post/NAME.error``), ``edge`` (``a0.h1->m2``, ``a0.h1->a1.h0<q>``),
            ``role-edge`` (``a0.h1->m2@subject``), ``position-edge`` (``a0.h1->m2@3``) or
            ``latent-edge`` (``blocks.0.mlp.out/NAME[latent=17]->blocks.3.resid_post/NAME.error``).
        model: Fingerprint of the model.
        provenance: Model, seed, versions.
    """

    parts: tuple[str, ...]
    universe: tuple[str, ...]
    method: str
    level: Level = "node"
    model: str = ""
    provenance: Provenance | None = None

    @property
    def kept(self) -> frozenset[str]:
        """The parts as a set."""
        return frozenset(self.parts)

    @property
    def rest(self) -> frozenset[str]:
        """The parts outside."""
        return frozenset(self.universe) - self.kept

    @property
    def of_edges(self) -> bool:
        """Whether its parts are edges, told apart by place or not."""
        return self.level.endswith("edge")

    @property
    def share(self) -> float:
        """Share of all parts that it keeps."""
        return len(self.parts) / len(self.universe)

    def __len__(self) -> int:
        """Return the number of parts."""
        return len(self.parts)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each part of the model with whether it is kept."""
        import pandas as pd

        kept = self.kept
        return pd.DataFrame({self.level: self.universe, "kept": [n in kept for n in self.universe]})

    def diagram(
        self,
        scores: Scores | None = None,
        *,
        classes: Mapping[str, str] | None = None,
        max_edges: int = 200,
        by_place: bool = False,
    ) -> CircuitDiagram:
        """Return the circuit as a layered diagram; see :func:`microtome.circuits.diagram`.

        Args:
            scores: Scores of its parts, ``EdgeScores`` or a mapping by name: width and sign.
            classes: Named class of nodes; the diagram's ``collapsed()`` joins those of one class.
            max_edges: How many edges are drawn, the strongest.
            by_place: Whether edges told apart by role or position are drawn apart.

        Raises:
            ConfigError: If more nodes would be drawn than can be told apart.
        """
        from microtome.circuits.drawing.diagrams import diagram

        return diagram(self, scores, classes=classes, max_edges=max_edges, by_place=by_place)


@dataclass(frozen=True, eq=False)
class FaithfulnessCurve(Result, version=2):
    """Faithfulness of circuits of growing size along one ranking.

    Attributes:
        sizes: Numbers of parts asked for.
        faithfulness: Intervals at each size.
        ablation: What ablated parts gave.
        split: On which split.
        kept: Numbers of parts actually kept at each size, without edges on no path from the
            embedding to the logits.
        total: Parts of the model.
        areas: CPR, CMD and their kin; None for a curve without MIB's sizes.
        provenance: Model, seed, versions.
    """

    sizes: tuple[int, ...]
    faithfulness: tuple[Interval, ...]
    ablation: str
    split: str
    kept: tuple[int, ...] = ()
    total: int = 0
    areas: Areas | None = None
    provenance: Provenance | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each size: size, kept, share, faithfulness, low, high."""
        import pandas as pd

        kept = self.kept or self.sizes
        total = self.total or max(self.sizes, default=0) or 1
        rows = [
            {
                "size": s,
                "kept": k,
                "share": k / total,
                "faithfulness": f.value,
                "low": f.low,
                "high": f.high,
            }
            for s, k, f in zip(self.sizes, kept, self.faithfulness, strict=True)
        ]
        return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class Evaluation(Result):
    """How a circuit behaves when everything else is ablated, on one set of examples.

    Attributes:
        ablation: What ablated nodes gave.
        faithfulness: ``(m(C) - m(0)) / (m(N) - m(0))``, a ratio of means.
        complement: The same with only the circuit ablated.
        moved: Share of the way to m(0) that ablating only the circuit moves the metric.
        accuracy: Accuracy with only the circuit kept.
        accuracy_without: Accuracy with only the circuit ablated.
        full: m(N) per example.
        empty: m(0) per example.
        circuit: m(C) per example.
        without: m(N without C) per example.
        clusters: Cluster of each example.
        provenance: Model, seed, versions.
    """

    ablation: str
    faithfulness: Interval
    complement: Interval
    moved: Interval
    accuracy: Interval
    accuracy_without: Interval
    full: np.ndarray
    empty: np.ndarray
    circuit: np.ndarray
    without: np.ndarray
    clusters: tuple[str, ...]
    provenance: Provenance | None = None


@dataclass(frozen=True, eq=False)
class Stability(Result, version=2):
    """How a circuit varies over bootstrap resamples of the train clusters and elimination orders.

    Attributes:
        share: Share of resamples in which each part is chosen, by part.
        core: Parts chosen in at least 90 %.
        alternatives: Parts chosen in 10 to 90 %.
        median_jaccard: Median overlap of the resamples' circuits with the circuit.
        resamples: How many.
        orders: Elimination orders, 0 where none were tried.
        order_share: Share of orders that leave each part they began with.
        order_core: Parts left by at least 90 % of the orders.
        order_alternatives: Parts left by 10 to 90 % of them.
        order_jaccard: Median overlap of what the orders leave with the circuit.
        order_items: Train items on which the orders were tried.
        order_items_of: Train items that there are.
        provenance: Model, seed, versions.
    """

    share: Mapping[str, float]
    core: tuple[str, ...]
    alternatives: tuple[str, ...]
    median_jaccard: float
    resamples: int
    orders: int = 0
    order_share: Mapping[str, float] = field(default_factory=dict)
    order_core: tuple[str, ...] = ()
    order_alternatives: tuple[str, ...] = ()
    order_jaccard: float = float("nan")
    order_items: int = 0
    order_items_of: int = 0
    provenance: Provenance | None = None


@dataclass(frozen=True, eq=False)
class Nulls(Result):
    """How circuits of equal size do that were searched for where there is nothing to find.

    Attributes:
        twins: Closeness, item by item, of the circuit found in each twin to that twin.
        permuted: Size of the effect of the circuits found for permuted answers, on test answers
            permuted likewise, as a share of the effect of the true answers.
        random: That of random subgraphs matched by layer and type, on the true answers: a floor.
        twin_curves: Faithfulness of each twin's circuits on validation ``[twin, size]``.
        sizes: Sizes of the curves.
        permuted_overlap: Median Jaccard of the circuits found for permuted answers with the
            circuit.
        provenance: Model, seed, versions.
    """

    twins: np.ndarray
    permuted: np.ndarray
    random: np.ndarray
    twin_curves: np.ndarray
    sizes: tuple[int, ...]
    permuted_overlap: float = float("nan")
    provenance: Provenance | None = None


@dataclass(frozen=True)
class Rule:
    """One rule of the verdict with its numbers.

    Attributes:
        name: Its name.
        demand: What it demands, in words.
        value: What was found, in words.
        baseline: What it is compared with, in words.
        outcome: ``pass``, ``fail`` or ``unsure``.
    """

    name: str
    demand: str
    value: str
    baseline: str
    outcome: str


@dataclass(frozen=True, eq=False)
class Verdict(Result):
    """The verdict on a circuit by fixed rules.

    Attributes:
        grade: ``sufficient and necessary``, ``sufficient, redundant``, ``sufficient only`` or
            ``not established``.
        rules: Name, demand, value, baseline and outcome of every rule, in order.
        backups: Nodes that take over when the circuit is ablated.
        sentence: The verdict in one or two sentences.
        provenance: Model, seed, versions.
    """

    grade: str
    rules: tuple[Mapping[str, str], ...]
    backups: tuple[str, ...]
    sentence: str
    provenance: Provenance | None = None

    @property
    def established(self) -> bool:
        """Whether any grade above "not established" was reached."""
        return self.grade != "not established"

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each rule."""
        import pandas as pd

        return pd.DataFrame(list(self.rules))
