"""What activation maximization gives: texts and images with the figures they stand beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microtome.core.provenance import Provenance
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class ActivatingText(Result):
    """A text that ends at the token where a unit is read.

    Attributes:
        text: The text.
        ids: Its token ids, without a beginning-of-sequence token.
        activation: The unit's activation at the last token.
        cross_entropy: The model's own, mean in nats per token; None for a single token.
        source: Number of the text in the corpus, None where it is not from there.
        position: Place of the last token in that text.
    """

    text: str
    ids: tuple[int, ...]
    activation: float
    cross_entropy: float | None
    source: int | None = None
    position: int | None = None


@dataclass(frozen=True, eq=False)
class CorpusActivations(Result):
    """Where in a corpus a unit is most active.

    Attributes:
        unit: The unit.
        windows: The most activating windows, best first, one for each window of the corpus.
        n_tokens: Tokens that were read.
        mean: Mean activation over them.
        standard_deviation: Their spread.
        quantiles: Share of tokens to the activation below which they lie.
        provenance: Model, settings, versions.
    """

    unit: str
    windows: tuple[ActivatingText, ...]
    n_tokens: int
    mean: float
    standard_deviation: float
    quantiles: dict[str, float]
    provenance: Provenance | None = None

    @property
    def maximum(self) -> ActivatingText:
        """The most activating window."""
        return self.windows[0]

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each window: activation, text number, position, token's context."""
        return _texts_frame(self.windows)


@dataclass(frozen=True, eq=False)
class TokenOptimization(Result):
    """Texts found by evolutionary search, from fluent to activating.

    Attributes:
        unit: The unit.
        driver: What the search climbed: a neuron's pre-activation, otherwise the unit.
        frontier: Texts that no other one seen beats in both activation and cross-entropy, most
            fluent first. Each comes back unchanged when it is decoded and tokenized again.
        random: The most activating of the random texts that the search began with.
        fluency_weights: Weight of the cross-entropy of each member, in activation per nat.
        history: The driver's best activation - weight x cross-entropy ``[iteration, member]``.
        evaluated: Texts whose activation was computed.
        rejected: Texts that did not survive re-tokenization.
        provenance: Model, settings, seed, versions.
    """

    unit: str
    driver: str
    frontier: tuple[ActivatingText, ...]
    random: ActivatingText
    fluency_weights: tuple[float, ...]
    history: np.ndarray
    evaluated: int
    rejected: int
    provenance: Provenance | None = None

    def best(self, limit: float | None = None) -> ActivatingText:
        """Return the most activating text with a cross-entropy of at most ``limit``.

        Where none is as fluent, this is the most fluent one.
        """
        fluent = [t for t in self.frontier if limit is None or (t.cross_entropy or 0.0) <= limit]
        return fluent[-1] if fluent else self.frontier[0]

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each text of the frontier."""
        return _texts_frame(self.frontier)


@dataclass(frozen=True, eq=False)
class Maximization(Result):
    """What most excites a unit, by search in a corpus and by optimization, beside a random unit.

    Attributes:
        unit: The unit.
        corpus: Its most activating windows in the corpus.
        cut: The best of them cut to the optimized texts' length, None where all are shorter than
            two tokens.
        optimized: The search for this unit.
        best: Its most activating text within the limit of fluency.
        median_cross_entropy: Of windows of the corpus as long as the optimized texts.
        limit: Largest cross-entropy of ``best``.
        random_corpus: The same for the random unit.
        random_optimized: The same for the random unit.
        random_best: The same for the random unit.
        random_on_best: The random unit's activation on ``best``.
        provenance: Model, settings, seed, versions.
    """

    unit: str
    corpus: CorpusActivations
    cut: ActivatingText | None
    optimized: TokenOptimization
    best: ActivatingText
    median_cross_entropy: float
    limit: float
    random_corpus: CorpusActivations
    random_optimized: TokenOptimization
    random_best: ActivatingText
    random_on_best: float
    provenance: Provenance | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each text: unit, what it is, activation, cross-entropy, text."""
        import pandas as pd

        rows = [
            _row(self.unit, "optimized", self.best),
            _row(self.unit, "corpus maximum", self.corpus.maximum),
            _row(self.unit, "best of random texts", self.optimized.random),
            _row(self.random_corpus.unit, "optimized", self.random_best),
            _row(self.random_corpus.unit, "corpus maximum", self.random_corpus.maximum),
            _row(self.random_corpus.unit, "best of random texts", self.random_optimized.random),
        ]
        if self.cut is not None:
            rows.insert(2, _row(self.unit, "corpus maximum, cut to the same length", self.cut))
        rows.append(
            _row(self.random_corpus.unit, "the first row's text", self.best)
            | {"activation": self.random_on_best}
        )
        return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class PixelMaximization(Result):
    """An image that excites a unit, beside the best image of the data and a random unit.

    Attributes:
        unit: The unit.
        image: The optimized image ``[channel, height, width]``.
        activation: The unit's activation on it.
        best_image: The most activating image of the data.
        best_index: Its number.
        best_activation: The activation on it.
        total_variation: Mean absolute difference of neighboring pixels in the optimized image.
        median_total_variation: The same over the data, median: the counterpart of fluency.
        history: Largest activation over the starts at each step ``[step]``.
        random_unit: A random unit of the same kind.
        random_activation: Its activation on an image optimized for it.
        random_best_activation: Its activation on the best image of the data for it.
        random_on_image: Its activation on ``image``.
        provenance: Model, settings, seed, versions.
    """

    unit: str
    image: np.ndarray
    activation: float
    best_image: np.ndarray
    best_index: int
    best_activation: float
    total_variation: float
    median_total_variation: float
    history: np.ndarray
    random_unit: str
    random_activation: float
    random_best_activation: float
    random_on_image: float
    provenance: Provenance | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each image: unit, what it is, activation."""
        import pandas as pd

        rows = [
            (self.unit, "optimized", self.activation),
            (self.unit, "best image of the data", self.best_activation),
            (self.random_unit, "optimized", self.random_activation),
            (self.random_unit, "best image of the data", self.random_best_activation),
            (self.random_unit, "the first row's image", self.random_on_image),
        ]
        return pd.DataFrame(rows, columns=["unit", "source", "activation"])


def _row(unit: str, source: str, found: ActivatingText) -> dict[str, object]:
    return {
        "unit": unit,
        "source": source,
        "activation": found.activation,
        "cross_entropy": found.cross_entropy,
        "text": found.text,
    }


def _texts_frame(texts: tuple[ActivatingText, ...]) -> pd.DataFrame:
    import pandas as pd

    rows = [
        {
            "activation": t.activation,
            "cross_entropy": t.cross_entropy,
            "source": t.source,
            "position": t.position,
            "text": t.text,
        }
        for t in texts
    ]
    return pd.DataFrame(rows)
