"""Trials of explanations: what each protocol asks, drawn once for all explanations compared.

Detection: is the latent active in this context? Fuzzing: are these tokens the active ones?
Simulation: how strongly is it active at each token? The protocols are those of automatic
interpretation (Bills et al., 2023; Paulo et al., 2024).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from microtome.core.seeds import rng
from microtome.sae.reading.explanations import Explanation
from microtome.sae.reading.families import Families
from microtome.sae.reading.index import Activity, LatentIndex
from microtome.store.results import Result

NAN = float("nan")

N_TOKENS = 500
"""Active tokens, and as many others, that fuzzing asks about at most."""


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
class Trial:
    """What is asked about one latent.

    Attributes:
        index: The index.
        read: Positions that are asked about ``[position]``.
        positions: Those of them at which the latent is active, growing.
        values: Its activations there.
        contexts: Contexts of the detection; the latent is active in the first half of them.
        tokens: Positions of the fuzzing; the latent is active at the first half of them.
    """

    index: LatentIndex
    read: NDArray[np.bool_]
    positions: NDArray[np.int32]
    values: NDArray[np.float64]
    contexts: NDArray[np.int64]
    tokens: NDArray[np.int64]

    @staticmethod
    def of(
        index: LatentIndex,
        activity: Activity,
        among: NDArray[np.bool_],
        stream: np.random.Generator,
        *,
        n_contexts: int = 100,
    ) -> Trial:
        """Draw a trial.

        Args:
            index: The index.
            activity: Positions and activations of the latent.
            among: Positions of contexts that may be asked about ``[position]``.
            stream: Draws the contexts and tokens.
            n_contexts: Contexts of the detection at most, half of them active.
        """
        read = among & ~index.special
        kept = read[activity[0]]
        positions, values = activity[0][kept], activity[1][kept].astype(np.float64)
        whole = np.zeros(len(index.contexts) - 1, dtype=bool)
        whole[index.context_ids[read]] = True
        having = np.unique(index.context_of(positions))
        whole[having] = False
        without = np.flatnonzero(whole)
        half = min(len(having), len(without), n_contexts // 2)
        shown = np.concatenate([_some(having, half, stream), _some(without, half, stream)])
        there = np.zeros(len(whole), dtype=bool)
        there[having] = True
        others = there[index.context_ids] & read
        others[positions] = False
        wrong = np.flatnonzero(others)
        n = min(len(positions), len(wrong), N_TOKENS)
        tokens = np.concatenate([_some(positions, n, stream), _some(wrong, n, stream)])
        return Trial(index, read, positions, values, shown, tokens.astype(np.int64))

    @property
    def truth(self) -> NDArray[np.bool_]:
        """Whether the latent is active in each context of the detection ``[context]``."""
        return np.arange(len(self.contexts)) < len(self.contexts) // 2

    @property
    def marked(self) -> NDArray[np.bool_]:
        """Whether the latent is active at each token of the fuzzing ``[token]``."""
        return np.arange(len(self.tokens)) < len(self.tokens) // 2

    def score(self, explanation: Explanation, families: Families) -> Scores:
        """Return how well rules predict the latent."""
        predicted = explanation.predict(families)
        held = np.flatnonzero(predicted)
        held = held[self.read[held]]
        heights = self._heights(held, predicted[held])[self.contexts]
        any_context, any_token = len(self.contexts) > 0, len(self.tokens) > 0
        return Scores(
            detection=auc(heights, self.truth) if any_context else NAN,
            detection_accuracy=balanced(heights > 0, self.truth) if any_context else NAN,
            fuzzing=balanced(predicted[self.tokens] != 0, self.marked) if any_token else NAN,
            simulation=self._correlation(predicted, held),
            n_contexts=len(self.contexts),
            n_tokens=int(self.read.sum()),
        )

    def _heights(self, held: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the largest prediction in each context ``[context]``."""
        heights = np.zeros(len(self.index.contexts) - 1)
        if len(held):
            contexts = self.index.context_of(held)
            starts = np.flatnonzero(np.diff(contexts, prepend=-1))
            heights[contexts[starts]] = np.maximum.reduceat(np.abs(values), starts)
        return heights

    def _correlation(self, predicted: NDArray[np.float64], held: NDArray[np.int64]) -> float:
        """Return Pearson's correlation of prediction and activation over all tokens."""
        n, x, y = int(self.read.sum()), predicted[held], self.values
        squares, means = (float(x @ x), float(y @ y)), (float(x.sum()) / n, float(y.sum()) / n)
        spread = [square - n * mean**2 for square, mean in zip(squares, means, strict=True)]
        # What is left of a constant is rounding.
        if any(s <= 1e-10 * square for s, square in zip(spread, squares, strict=True)):
            return 0.0
        both = float(predicted[self.positions] @ y) - n * means[0] * means[1]
        return float(both / (spread[0] * spread[1]) ** 0.5)


def intruder(
    index: LatentIndex, latent: int, *, n_sets: int = 50, around: int = 8, seed: int = 0
) -> float:
    """Return how often the context without a latent is told from four with it by their tokens.

    Each context is the tokens around one position, weighted by how rare they are (TF-IDF), nearer
    ones more; the intruder is taken to be the one least like the others. NaN where the latent is
    active at fewer than four positions, or at all.

    Raises:
        SelectorError: There is no such latent.
        EmptyDataError: It is never active.
    """
    positions, _ = index.require_active(latent)
    stream = rng(seed, "intruder", str(latent))
    inactive = ~index.special
    inactive[positions] = False
    others = np.flatnonzero(inactive)
    if len(positions) < 4 or not len(others):
        return NAN
    shown = np.stack(
        [
            [*_some(positions, 4, stream), others[stream.integers(len(others))]]
            for _ in range(n_sets)
        ]
    )
    offsets = np.arange(-around, 2)
    places = np.clip(shown[..., None] + offsets, 0, len(index.ids) - 1)
    inside = (index.context_ids[places] == index.context_ids[shown][..., None]) & (
        places == shown[..., None] + offsets
    )
    ids = index.ids[places]
    rarity = np.log(len(index.ids) / np.maximum(1, np.bincount(index.ids)))
    weights = rarity[ids] * inside / (1 + np.abs(offsets))
    same = ids[:, :, None, :, None] == ids[:, None, :, None, :]
    inner = np.einsum("sai,sbj,sabij->sab", weights, weights, same, optimize=True)
    sizes = np.sqrt(np.einsum("saa->sa", inner))
    scale = sizes[:, :, None] * sizes[:, None, :]
    cosine = np.divide(inner, scale, out=np.zeros_like(inner), where=scale > 0)
    alike = cosine.sum(-1) - np.einsum("saa->sa", cosine)
    lowest = np.isclose(alike, alike.min(1, keepdims=True), rtol=0, atol=1e-12)
    return float((lowest[:, 4] / lowest.sum(1)).mean())


def auc(heights: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve; ties count half."""
    from scipy.stats import rankdata

    ranks = rankdata(heights)
    n = int(truth.sum())
    return float((ranks[truth].sum() - n * (n + 1) / 2) / (n * (len(truth) - n)))


def balanced(said: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return the mean of the shares of true and of false cases that were told."""
    return float((said[truth].mean() + (~said[~truth]).mean()) / 2)


def _some(numbers: NDArray[np.integer], n: int, stream: np.random.Generator) -> NDArray[np.integer]:
    """Return ``n`` of some numbers, drawn without replacement."""
    return numbers[stream.choice(len(numbers), n, replace=False)] if n else numbers[:0]
