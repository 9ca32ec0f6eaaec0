"""Permuted and inverted answers; what is found for them without searching once for each.

Exchanging right and wrong answers turns the sign of a metric such as the logit difference. Scores
that are linear in the metric, example by example, turn theirs, and so does the metric of a circuit.
So one search with its scores kept by example serves all permutations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.attribution import ComponentScores
from microtome.behaviors.examples import Examples
from microtome.behaviors.metrics import LastTokenMetric, metric
from microtome.circuits.edges.scores import EdgeScores
from microtome.circuits.finding import FINDERS
from microtome.circuits.judging.levels import NamedSearch, Ranked, Runner, Search
from microtome.core.seeds import rng

if TYPE_CHECKING:
    from microtome.behaviors.examples import Example
    from microtome.tracing.model import Model


def permuted_scores(
    model: Model, train: Examples, search: Search, seeds: Sequence[int]
) -> Iterator[Ranked]:
    """Yield what a finder gives for permuted answers, by seed: searched once where that does it.

    Args:
        model: The model.
        train: The examples, their answers as they are.
        search: The finder.
        seeds: Seeds of the permutations.
    """
    by_example = _scores_by_example(model, train, search) if seeds else None
    for seed in seeds:
        if by_example is None:
            yield search(model, permute(train, seed))
        else:
            scores, values = by_example
            yield _resigned(scores, values * signs(train, seed)[:, None])


def permuted_values(
    run_on: Callable[[Examples], Runner],
    examples: Examples,
    name: str,
    circuits: Sequence[frozenset[str]],
    seeds: Sequence[int],
) -> Iterator[np.ndarray]:
    """Yield a metric on permuted answers ``[2, example]``: of a circuit, and of no part at all.

    Args:
        run_on: Returns what runs circuits on examples.
        examples: The examples, their answers as they are.
        name: The metric.
        circuits: One for each permutation.
        seeds: Seeds of the permutations.
    """
    if turns_sign(name, examples):
        found = run_on(examples).run([frozenset(), *circuits], [name])[name]
        for row, seed in zip(found[1:], seeds, strict=True):
            yield np.stack([row, found[0]]) * signs(examples, seed)
        return
    for kept, seed in zip(circuits, seeds, strict=True):
        yield run_on(permute(examples, seed)).run([kept, frozenset()], [name])[name]


def turns_sign(name: str, examples: Examples) -> bool:
    """Return whether a metric turns its sign when right and wrong answers are exchanged."""
    chosen = metric(name)
    if not isinstance(chosen, LastTokenMetric) or chosen.weights is None:
        return False
    there, back = (
        [_by_token(chosen.weights(e)) for e in side] for side in (examples, inverted(examples))
    )
    return all(
        one.keys() == two.keys() and all(np.isclose(one[t], -two[t]) for t in one)
        for one, two in zip(there, back, strict=True)
    )


def _by_token(weights: tuple[Sequence[int], Sequence[float]]) -> dict[int, float]:
    found: dict[int, float] = {}
    for token, weight in zip(*weights, strict=True):
        found[token] = found.get(token, 0.0) + weight
    return found


def _scores_by_example(
    model: Model, train: Examples, search: Search
) -> tuple[Any, np.ndarray] | None:
    """Return scores and their values ``[example, part]``; None where they do not turn their sign.

    Also None where there would be too many values to keep.
    """
    if not isinstance(search, NamedSearch) or not FINDERS[search.method].linear:
        return None
    if not turns_sign(search.metric, train):
        return None
    # a cluster for each example: scores of edges are kept by cluster
    alone = [replace(e, cluster=f"{n:09d}") for n, e in enumerate(train)]
    scores: Any = search(model, Examples(tuple(alone), train.drops, train.behavior))
    if isinstance(scores, ComponentScores):
        return scores, scores.values
    if not isinstance(scores, EdgeScores) or scores.cluster_sums is None:
        return None
    return scores, scores.cluster_sums[np.argsort(scores.clusters)]


def _resigned(scores: Any, values: np.ndarray) -> Ranked:
    found: Ranked
    if isinstance(scores, ComponentScores):
        found = replace(scores, values=values)
        return found
    found = replace(scores, mean=values.mean(0), clusters=(), cluster_sums=None, cluster_sizes=None)
    return found


def exchanged(examples: Sequence[Example] | Examples, seed: int) -> np.ndarray:
    """Return whose answers a permutation exchanges: half of each cluster ``[example]``."""
    random = rng(seed, "permuted answers")
    clusters = np.array([e.cluster for e in examples])
    swap = np.zeros(len(clusters), dtype=bool)
    for cluster in np.unique(clusters):
        places = np.flatnonzero(clusters == cluster)
        chosen = random.permutation(places)
        half = len(chosen) // 2 + (random.random() < 0.5) * (len(chosen) % 2)
        swap[chosen[: int(half)]] = True
    return swap


def signs(examples: Examples, seed: int) -> np.ndarray:
    """Return -1 for examples whose answers a permutation exchanges, 1 for the others."""
    return np.where(exchanged(examples, seed), -1.0, 1.0)


def permute(examples: Examples, seed: int) -> Examples:
    """Return examples whose answers and wrong answers are exchanged in half of each cluster."""
    items = tuple(
        replace(e, answers=e.wrongs, wrongs=e.answers) if swapped else e
        for e, swapped in zip(examples, exchanged(examples, seed), strict=True)
    )
    return Examples(items, examples.drops, examples.behavior)


def inverted(examples: Examples) -> Examples:
    """Return examples with answers and wrong answers exchanged."""
    items = tuple(replace(e, answers=e.wrongs, wrongs=e.answers) for e in examples)
    return Examples(items, examples.drops, examples.behavior)
