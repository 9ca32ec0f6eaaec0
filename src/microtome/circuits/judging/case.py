"""One case to be judged: model, splits and settings, and what every verdict on it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.ablation import Ablation
from microtome.circuits.judging.cutting import smallest_faithful
from microtome.circuits.judging.evaluation import (
    complete,
    evaluate,
    item_closeness,
    minimality,
    takeovers,
)
from microtome.circuits.judging.levels import (
    Ranked,
    Search,
    graph_at,
    level_of,
    runner,
    universe_of,
)
from microtome.circuits.judging.nulls import RANDOM, of_size, random_floor, search_nulls
from microtome.circuits.judging.permuting import inverted
from microtome.circuits.results import Circuit, Evaluation, Nulls, Stability, Verdict
from microtome.circuits.verdict import NULLS, Evidence, decide
from microtome.core.progress import Progress, quiet
from microtome.core.stats import Interval, cluster_bootstrap

if TYPE_CHECKING:
    from microtome.behaviors.check import Check
    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model


RANDOM_CIRCUITS = 100
"""Random circuits of the same make that a circuit is shown beside."""


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        model: The model.
        train: Examples on which a finder searches, and the reference of ablation by means.
        validation: Examples on which a ranking is cut.
        test: Examples on which everything is measured.
        metric: A metric that reads the prompt's end.
        ablation: What ablated parts give.
        faithfulness: 0.9 asks for a faithfulness from 0.9 to 1.1 on validation.
        nulls: Twins, and permutations of the answers.
        seed: For everything that is drawn.
        progress: Told of the steps.
    """

    model: Model
    train: Examples
    validation: Examples
    test: Examples
    metric: str
    ablation: Ablation
    faithfulness: float = 0.9
    nulls: int = NULLS
    seed: int = 0
    progress: Progress = quiet

    def ordered(self, found: Ranked | Sequence[str]) -> tuple[str, ...]:
        """Return all parts of the level in a ranking's order, those it leaves out at the end."""
        ranking = found.ranking() if hasattr(found, "ranking") else tuple(found)
        universe = universe_of(
            self.model, level_of(found), examples=self.train, universe=ranking
        )  # fmt: skip
        return complete(ranking, universe)

    def smallest(self, found: Ranked | Sequence[str]) -> Circuit:
        """Return the smallest circuit along a ranking that is faithful on validation."""
        return smallest_faithful(
            self.model, self.validation, self.ordered(found), level=level_of(found),
            faithfulness=self.faithfulness, ablation=self.ablation, metric=self.metric,
            reference=self.train, method=str(getattr(found, "method", "a ranking")),
            seed=self.seed,
        )  # fmt: skip

    def evaluation(self, circuit: Circuit, kind: Ablation | None = None) -> Evaluation:
        """Return the circuit on test, under another kind of ablation where one is given."""
        return evaluate(
            self.model, self.test, circuit, ablation=kind or self.ablation, metric=self.metric,
            reference=self.train, seed=self.seed,
        )  # fmt: skip

    def minimality(self, circuit: Circuit) -> dict[str, float]:
        """Return what each part of the circuit carries beside the others, on test."""
        return minimality(
            self.model, self.test, circuit, ablation=self.ablation, metric=self.metric,
            reference=self.train,
        )  # fmt: skip

    def takeovers(self, circuit: Circuit) -> dict[str, tuple[float, float]]:
        """Return what each part outside carries with the circuit and without it, on test."""
        return takeovers(
            self.model, self.test, circuit, ablation=self.ablation, metric=self.metric,
            reference=self.train,
        )  # fmt: skip

    def floor(self, circuit: Circuit, count: int = RANDOM) -> np.ndarray:
        """Return the closeness of random circuits of the same make, on test."""
        return random_floor(
            self.model, self.test, circuit, ablation=self.ablation, metric=self.metric,
            seed=self.seed, reference=self.train, count=count,
        )  # fmt: skip

    def searched_nulls(
        self,
        circuit: Circuit,
        finder: Search,
        *,
        beat: Evaluation | None = None,
        sizes: Sequence[int] = (),
        floor: np.ndarray,
    ) -> Nulls:
        """Return what the same finder gives where there is nothing to find.

        Args:
            circuit: The circuit.
            finder: The finder.
            beat: The circuit's evaluation: the search ends with a twin that comes as close.
            sizes: Sizes at which the twins' curves are measured.
            floor: Closeness of random circuits, to stand beside.
        """
        enough = None if beat is None else item_closeness(beat.full, beat.empty, beat.circuit)
        found = search_nulls(
            self.model, self.train, self.validation, self.test, circuit, sizes,
            count=self.nulls, ablation=self.ablation, metric=self.metric, method=finder,
            seed=self.seed, enough=enough, progress=self.progress,
        )  # fmt: skip
        return replace(found, random=floor)

    def inverted_accuracy(self, circuit: Circuit, finder: Search) -> Interval:
        """Return the best accuracy, on inverted answers, of circuits the finder gives for them.

        By magnitude it returns the same parts for exchanged answers, so it also ranks by value.
        The rest gives its mean, not the corrupt run, which gives the inverted answer by itself.
        """
        asked = inverted(self.test)
        scores = finder(self.model, inverted(self.train))
        kind: Ablation = "mean" if self.ablation == "resample" else self.ablation
        ran = runner(
            self.model, asked, circuit.level, ablation=kind, reference=self.train,
            universe=circuit.universe,
        )  # fmt: skip
        size = len(circuit.parts)
        graph = graph_at(self.model, circuit.level, examples=self.train)
        found = [of_size(scores.ranking(signed=signed), size, graph) for signed in (False, True)]
        values = ran.run(found, ["accuracy"])["accuracy"]
        intervals = [cluster_bootstrap(row, asked.clusters, seed=self.seed) for row in values]
        return max(intervals, key=lambda interval: interval.low)

    def verdict(
        self,
        circuit: Circuit,
        evaluation: Evaluation,
        *,
        nulls: Nulls | None,
        inverted_accuracy: Interval | None,
        gate: Check | None,
        takeovers: Mapping[str, tuple[float, float]],
        stability: Stability,
    ) -> Verdict:
        """Return the verdict by the fixed rules."""
        return decide(
            Evidence(
                circuit=circuit,
                evaluation=evaluation,
                nulls=nulls,
                inverted_accuracy=inverted_accuracy,
                gate=gate,
                takeovers=takeovers,
                stability=stability,
                templates=len({e.template for e in self.test}),
                train_templates=len({e.template for e in self.train}),
            )
        )
