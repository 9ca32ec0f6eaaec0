"""Scoring explanations by what they predict on held-out text, beside two baselines.

Detection: is the latent active in this context? Fuzzing: are these tokens the active ones?
Simulation: how strongly is it active at each token? Intruder: which of five contexts is not one of
the latent's? The protocols are those of automatic interpretation (Bills et al., 2023; Paulo et al.,
2024), with the rules of the explanation in place of a language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from microtome.core.seeds import rng
from microtome.errors import ConfigError, EmptyDataError
from microtome.sae.reading.explanations import Explanation, Families, explain
from microtome.sae.reading.index import LatentIndex
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Scores(Result, schema="sae-explanation-scores"):
    """How well an explanation predicts a latent on held-out contexts; 0.5 is chance but for two.

    Attributes:
        detection: Area under the ROC curve over contexts, by the largest prediction in each.
        detection_accuracy: Balanced accuracy of "some rule holds in this context".
        fuzzing: Balanced accuracy of "a rule holds" on active tokens against as many random tokens
            of the same contexts that are not.
        simulation: Pearson correlation over all tokens; 0 is chance.
        n_contexts: Contexts of the detection, half of them with the latent active.
        n_tokens: Tokens of the simulation.
    """

    detection: float
    detection_accuracy: float
    fuzzing: float
    simulation: float
    n_contexts: int
    n_tokens: int


@dataclass(frozen=True, eq=False)
class Explained(Result, schema="sae-explained"):
    """A latent, its explanation and its scores beside those of the baselines.

    Attributes:
        explanation: Found on the other half of the contexts.
        scores: Of this explanation.
        random: Median over explanations of other latents, scored on this one.
        shuffled: Of the explanation of the same activations at random positions.
        intruder: Share of sets of five contexts in which the one without the latent is found by
            what the texts have in common; chance is 0.2. Needs no explanation.
        density: Share of tokens at which the latent is active.
    """

    explanation: Explanation
    scores: Scores
    random: Scores
    shuffled: Scores
    intruder: float
    density: float


def explain_all(
    index: LatentIndex,
    latents: Sequence[int],
    *,
    most: int = 8,
    n_random: int = 5,
    seed: int = 0,
) -> list[Explained]:
    """Explain latents on half of the contexts and score the explanations on the other half.

    Args:
        index: An index of active latents.
        latents: Which latents.
        most: Rules at most.
        n_random: Explanations of other latents to compare with.
        seed: Decides the halves, the samples and the other latents.

    Raises:
        SelectorError: There is no such latent.
        EmptyDataError: A latent is never active, or there are fewer than two contexts.
        ConfigError: A number is out of range.
    """
    if n_random < 1:
        raise ConfigError(f"n_random={n_random}; expected at least 1")
    learned = _half(index, seed)
    families = Families.of(index)
    alive = np.flatnonzero(index.counts >= 2)
    found = []
    for latent in latents:
        index.require_active(latent)
        stream = rng(seed, "explanations", str(latent))
        others = stream.permutation(alive[alive != latent])[:n_random]
        values = _dense(index, latent)
        shuffled = np.zeros_like(values)
        places = np.flatnonzero(~index.special)
        shuffled[stream.permutation(places)[: int((values != 0).sum())]] = values[values != 0]
        explanation = explain(families, latent, among=learned, most=most)
        chance = [explain(families, int(o), among=learned, most=most) for o in others]
        scored = [score(families, values, e, ~learned, seed=seed) for e in chance]
        noise = explain(families, latent, among=learned, most=most, values=shuffled)
        found.append(
            Explained(
                explanation,
                score(families, values, explanation, ~learned, seed=seed),
                _median(scored) if scored else _nothing(),
                score(families, shuffled, noise, ~learned, seed=seed),
                intruder(index, latent, seed=seed),
                float(index.density[latent]),
            )
        )
    return found


def score(
    families: Families,
    values: NDArray[np.float64],
    explanation: Explanation,
    among: NDArray[np.bool_],
    *,
    n_contexts: int = 100,
    seed: int = 0,
) -> Scores:
    """Score an explanation against activations.

    Args:
        families: Families of rules on the index.
        values: Activations ``[position]``.
        explanation: What is scored.
        among: Positions to score on ``[position]``; contexts that lie in them.
        n_contexts: Contexts of the detection at most, half of them active.
        seed: Decides which.
    """
    index = families.index
    predicted = families.predict(explanation)
    read = among & ~index.special
    active = values != 0
    stream = rng(seed, "scores", str(explanation.latent))
    contexts = index.context_of(np.flatnonzero(read))
    numbers = np.unique(contexts)
    with_latent = np.unique(index.context_of(np.flatnonzero(read & active)))
    without = np.setdiff1d(numbers, with_latent)
    half = min(len(with_latent), len(without), n_contexts // 2)
    chosen = np.concatenate(
        [stream.permutation(with_latent)[:half], stream.permutation(without)[:half]]
    ).astype(np.int64)
    heights = [_largest(index, predicted, int(c)) for c in chosen]
    truth = np.arange(2 * half) < half
    x, y = predicted[read], values[read]
    return Scores(
        detection=_auc(np.array(heights), truth) if half else NAN,
        detection_accuracy=_balanced(np.array(heights) > 0, truth) if half else NAN,
        fuzzing=_fuzzing(index, predicted, active, read, stream),
        simulation=float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else 0.0,
        n_contexts=2 * half,
        n_tokens=int(read.sum()),
    )


def intruder(
    index: LatentIndex, latent: int, *, n_sets: int = 50, around: int = 8, seed: int = 0
) -> float:
    """Return how often the context without a latent is told from four with it by their tokens.

    Each context is the tokens around one position, weighted by how rare they are (TF-IDF), nearer
    ones more; the intruder is taken to be the one least like the others.

    Raises:
        SelectorError: There is no such latent.
        EmptyDataError: It is never active.
    """
    positions, _ = index.require_active(latent)
    stream = rng(seed, "intruder", str(latent))
    places = np.flatnonzero(~index.special)
    inactive = places[~np.isin(places, positions)]
    if len(positions) < 4 or not len(inactive):
        return NAN
    rarity = np.log(len(index.ids) / np.maximum(1, np.bincount(index.ids)))
    found = 0.0
    for _ in range(n_sets):
        four = stream.choice(positions, 4, replace=False)
        shown = [*four, int(stream.choice(inactive))]
        bags = [_bag(index, int(p), around, rarity) for p in shown]
        alike = [sum(_cosine(a, b) for b in bags if b is not a) for a in bags]
        lowest = min(alike)
        tied = [i for i, value in enumerate(alike) if value == lowest]
        found += (4 in tied) / len(tied)
    return found / n_sets


def to_frame(found: Sequence[Explained]) -> pd.DataFrame:
    """Return explanations and scores as a table, one latent a row."""
    import pandas as pd

    rows = []
    for e in found:
        row: dict[str, object] = {
            "latent": e.explanation.latent,
            "explanation": e.explanation.text,
            "density": e.density,
            "intruder": e.intruder,
        }
        for name, scores in (("", e.scores), ("_random", e.random), ("_shuffled", e.shuffled)):
            row |= {
                f"detection{name}": scores.detection,
                f"fuzzing{name}": scores.fuzzing,
                f"simulation{name}": scores.simulation,
            }
        rows.append(row)
    return pd.DataFrame(rows).set_index("latent")


def _half(index: LatentIndex, seed: int) -> NDArray[np.bool_]:
    """Return which positions lie in a random half of the contexts ``[position]``."""
    n = len(index.contexts) - 1
    if n < 2:
        raise EmptyDataError(
            f"the index has {n} context, and explanations are scored on others than they were "
            "found in; index more text, or with shorter contexts"
        )
    order = rng(seed, "halves").permutation(n)
    chosen = np.zeros(n, dtype=bool)
    chosen[order[: n // 2]] = True
    return np.repeat(chosen, np.diff(index.contexts))


def _dense(index: LatentIndex, latent: int) -> NDArray[np.float64]:
    values = np.zeros(len(index.ids))
    positions, found = index.positions(latent)
    values[positions] = found
    return values


def _largest(index: LatentIndex, predicted: NDArray[np.float64], context: int) -> float:
    return float(np.abs(predicted[index.contexts[context] : index.contexts[context + 1]]).max())


def _auc(heights: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    from scipy.stats import rankdata

    ranks = rankdata(heights)
    n = int(truth.sum())
    return float((ranks[truth].sum() - n * (n + 1) / 2) / (n * (len(truth) - n)))


def _balanced(said: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float((said[truth].mean() + (~said[~truth]).mean()) / 2)


def _fuzzing(
    index: LatentIndex,
    predicted: NDArray[np.float64],
    active: NDArray[np.bool_],
    read: NDArray[np.bool_],
    stream: np.random.Generator,
) -> float:
    marked = np.flatnonzero(read & active)
    contexts = np.unique(index.context_of(marked))
    there = np.repeat(
        np.isin(np.arange(len(index.contexts) - 1), contexts), np.diff(index.contexts)
    )
    wrong = np.flatnonzero(read & ~active & there)
    n = min(len(marked), len(wrong), 500)
    if not n:
        return NAN
    right, wrong = stream.permutation(marked)[:n], stream.permutation(wrong)[:n]
    said = predicted[np.concatenate([right, wrong])] != 0
    return _balanced(said, np.arange(2 * n) < n)


def _bag(
    index: LatentIndex, position: int, around: int, rarity: NDArray[np.float64]
) -> dict[int, float]:
    context = int(index.context_of(np.array([position]))[0])
    start = max(int(index.contexts[context]), position - around)
    end = min(int(index.contexts[context + 1]), position + 2)
    bag: dict[int, float] = {}
    for place in range(start, end):
        token = int(index.ids[place])
        bag[token] = bag.get(token, 0.0) + float(rarity[token]) / (1 + abs(position - place))
    return bag


def _cosine(a: dict[int, float], b: dict[int, float]) -> float:
    inner = sum(value * b.get(token, 0.0) for token, value in a.items())
    sizes = sum(v * v for v in a.values()) * sum(v * v for v in b.values())
    return inner / sizes**0.5 if sizes > 0 else 0.0


def _median(scores: Sequence[Scores]) -> Scores:
    def middle(name: str) -> float:
        return float(np.median([getattr(s, name) for s in scores]))

    return Scores(
        middle("detection"),
        middle("detection_accuracy"),
        middle("fuzzing"),
        middle("simulation"),
        scores[0].n_contexts,
        scores[0].n_tokens,
    )


def _nothing() -> Scores:
    return Scores(NAN, NAN, NAN, NAN, 0, 0)
