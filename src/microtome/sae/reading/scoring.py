"""Explaining latents and scoring the explanations on held-out text, beside two baselines.

The scores are those of :mod:`microtome.sae.reading.trials`, with the rules of the explanation in
place of a language model; the baselines are explanations of other latents, and the explanation of
the same activations at random places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from microtome.core.progress import Progress, quiet
from microtome.core.seeds import rng
from microtome.errors import ConfigError, EmptyDataError
from microtome.sae.reading.explanations import Explanation, explain
from microtome.sae.reading.families import Families
from microtome.sae.reading.index import Activity, LatentIndex
from microtome.sae.reading.trials import NAN, Scores, Trial, intruder
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd


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
    progress: Progress = quiet,
) -> list[Explained]:
    """Explain latents on half of the contexts and score the explanations on the other half.

    Args:
        index: An index of active latents.
        latents: Which latents.
        most: Rules at most.
        n_random: Explanations of other latents to compare with.
        seed: Decides the halves, the samples and the other latents.
        progress: Told how many latents are explained.

    Raises:
        SelectorError: There is no such latent.
        EmptyDataError: A latent is never active, or there are fewer than two contexts.
        ConfigError: A number is out of range.
    """
    if n_random < 1:
        raise ConfigError(f"n_random={n_random}; expected at least 1")
    for latent in latents:
        index.require_active(latent)
    explainer = _Explainer(index, most, n_random, seed)
    found = []
    for number, latent in enumerate(latents):
        found.append(explainer.explained(latent))
        progress.step(number + 1, len(latents), "latents")
    return found


class _Explainer:
    """Explains latents of an index one by one; each rule list is found once."""

    def __init__(self, index: LatentIndex, most: int, n_random: int, seed: int) -> None:
        self.index, self.most, self.n_random, self.seed = index, most, n_random, seed
        learned = half(index, seed)
        self.families = Families.of(index).among(learned)
        self.held = ~learned
        self.alive = np.flatnonzero(index.counts >= 2)
        self.known: dict[int, Explanation] = {}

    def explained(self, latent: int) -> Explained:
        """Return a latent with its explanation and scores."""
        index, seed = self.index, self.seed
        stream = rng(seed, "explanations", str(latent))
        others = stream.permutation(self.alive[self.alive != latent])[: self.n_random]
        activity = index.positions(latent)
        shuffled = scattered(index, activity, stream)
        trial = Trial.of(index, activity, self.held, rng(seed, "scores", str(latent)))
        noise = Trial.of(index, shuffled, self.held, rng(seed, "noise", str(latent)))
        explanation = self._explanation(latent)
        chance = [trial.score(self._explanation(int(o)), self.families) for o in others]
        nonsense = explain(self.families, latent, most=self.most, activity=shuffled)
        return Explained(
            explanation,
            trial.score(explanation, self.families),
            _median(chance) if chance else _nothing(),
            noise.score(nonsense, self.families),
            intruder(index, latent, seed=seed),
            float(index.density[latent]),
        )

    def _explanation(self, latent: int) -> Explanation:
        if latent not in self.known:
            self.known[latent] = explain(self.families, latent, most=self.most)
        return self.known[latent]


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


def scattered(index: LatentIndex, activity: Activity, stream: np.random.Generator) -> Activity:
    """Return the same activations at random positions."""
    places = np.flatnonzero(~index.special)
    chosen = stream.choice(places, len(activity[0]), replace=False)
    return np.sort(chosen).astype(np.int32), activity[1]


def half(index: LatentIndex, seed: int) -> NDArray[np.bool_]:
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
