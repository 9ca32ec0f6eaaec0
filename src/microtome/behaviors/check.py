"""The gate: does the model do this at all, beyond chance, simple baselines and noise?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microtome.behaviors.baselines import bag_of_words_accuracy, ngram_accuracy
from microtome.behaviors.evaluate import evaluate
from microtome.core.provenance import Provenance, collect
from microtome.core.stats import Interval, cluster_bootstrap, cluster_standard_error
from microtome.store.results import Result

if TYPE_CHECKING:
    from microtome.behaviors.behavior import Behavior
    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model

SEPARATION = 3.0
"""Clustered standard errors by which the metric on clean and corrupt prompts must differ."""


@dataclass(frozen=True, eq=False)
class Check(Result):
    """The gate's outcome on the test split.

    Attributes:
        behavior: Name of the behavior.
        accuracy: Share of items whose answer beats the wrong answer.
        chance: Accuracy of guessing.
        baselines: Accuracy of the n-gram and of the bag of words.
        twin: Accuracy of the shuffled twin.
        full: Metric on the clean prompts.
        empty: Metric on the corrupt prompts, as if everything were ablated.
        separation: ``|full - empty|`` in clustered standard errors of the paired difference.
        passed: Whether all conditions hold.
        reasons: Why not, one sentence each.
        drops: Reason to number of dropped items.
        n: Test items.
        clusters: Their clusters.
        metric: Name of the metric of ``full`` and ``empty``.
        provenance: Model, seed, versions.
    """

    behavior: str
    accuracy: Interval
    chance: float
    baselines: Mapping[str, Interval]
    twin: Interval
    full: Interval
    empty: Interval
    separation: float
    passed: bool
    reasons: tuple[str, ...]
    drops: Mapping[str, int]
    n: int
    clusters: int
    metric: str
    provenance: Provenance | None = None

    @property
    def best_baseline(self) -> tuple[str, Interval]:
        """Name and accuracy of the best baseline."""
        name = max(self.baselines, key=lambda key: self.baselines[key].value)
        return name, self.baselines[name]

    def sentence(self) -> str:
        """Return the outcome in one plain sentence."""
        shown = f"accuracy {self.accuracy} on {self.n} held-out items in {self.clusters} clusters"
        if self.passed:
            name, best = self.best_baseline
            return (
                f"The model shows {self.behavior}: {shown}, against {best.value:.3g} for the "
                f"{name} baseline."
            )
        return (
            f"There is nothing to explain in {self.behavior}: {shown}; "
            + "; ".join(self.reasons)
            + "."
        )


def check(
    model: Model, behavior: Behavior, *, seed: int = 0, examples: Examples | None = None
) -> Check:
    """Apply the gate of the fixed rules to a model and a behavior.

    On the test split, the lower bound of accuracy has to be above chance and above the best
    baseline fitted on the train split, and the metric on clean and corrupt prompts has to differ by
    more than three clustered standard errors.

    Args:
        model: The model.
        behavior: The behavior.
        seed: For the bootstrap, the baselines and the twin.
        examples: The behavior prepared for the model, if that is done already.

    Raises:
        EmptyDataError: If a split is empty for this tokenizer.
    """
    prepared = behavior.prepare(model) if examples is None else examples
    train, test = prepared.split("train"), prepared.split("test")
    right = evaluate(model, test, metric="accuracy")
    with model.twin(seed) as twin:
        shuffled = evaluate(twin, test, metric="accuracy")
    full = evaluate(model, test, metric=behavior.metric)
    empty = evaluate(model, test, metric=behavior.metric, side="corrupt")
    clusters = test.clusters
    separation = _separation(full.values - empty.values, clusters)
    baselines = {
        "n-gram": cluster_bootstrap(ngram_accuracy(train, test), clusters, seed=seed),
        "bag-of-words": cluster_bootstrap(
            bag_of_words_accuracy(train, test, seed=seed), clusters, seed=seed
        ),
    }
    accuracy = right.interval(seed=seed)
    reasons = gate_reasons(accuracy, behavior.chance, baselines, separation)
    return Check(
        behavior=behavior.name,
        accuracy=accuracy,
        chance=behavior.chance,
        baselines=baselines,
        twin=shuffled.interval(seed=seed),
        full=full.interval(seed=seed),
        empty=empty.interval(seed=seed),
        separation=separation,
        passed=not reasons,
        reasons=reasons,
        drops={d.reason: d.count for d in prepared.drops},
        n=len(test),
        clusters=len(set(clusters.tolist())),
        metric=behavior.metric,
        provenance=collect(model, {"behavior": behavior.name, "n": behavior.n}, seed=seed),
    )


def _separation(difference: np.ndarray, clusters: np.ndarray) -> float:
    """Return how many clustered standard errors the mean of the paired differences is from zero."""
    error, mean = cluster_standard_error(difference, clusters), abs(float(difference.mean()))
    if mean == 0:
        return 0.0
    return mean / error if error > 0 else float("inf")


def gate_reasons(
    accuracy: Interval, chance: float, baselines: Mapping[str, Interval], separation: float
) -> tuple[str, ...]:
    """Return why the gate is closed; empty where it is open."""
    reasons = []
    if not accuracy.low > chance:
        reasons.append(
            f"the lower bound of accuracy, {accuracy.low:.3g}, is not above chance, {chance:.3g}"
        )
    for name, baseline in baselines.items():
        if not accuracy.low > baseline.value:
            reasons.append(
                f"the lower bound of accuracy, {accuracy.low:.3g}, is not above the {name} "
                f"baseline, {baseline.value:.3g}"
            )
    if not separation > SEPARATION:
        reasons.append(
            f"clean and corrupt prompts differ by {separation:.3g} clustered standard errors, not "
            f"more than {SEPARATION:.3g}"
        )
    return tuple(reasons)
