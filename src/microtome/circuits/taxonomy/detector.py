"""A detector: one kind of part, its definition, its source, its score and what the score must beat.

No threshold transfers between models: a customary value comes from the models of its source, and a
part is named only if it also stands out from the nulls of the model at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from microtome.circuits.taxonomy.material import Material

Kind = Literal["head", "neuron", "pair", "motif"]
Need = Literal["weights", "random tokens", "corpus", "behavior", "ordinal lists", "circuit"]
Null = Literal["shuffle", "others", "twin"]
Standing = Literal["paper", "customary", "microtome"]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of parts by one detector, beside what its own shuffles give.

    Attributes:
        parts: Names of the parts.
        values: Score of each; NaN where it is not defined.
        null_mean: Mean of the shuffles.
        null_sd: Standard deviation of the shuffles.
        null_p: One-sided p value against the shuffles.
        allowed: Whether a further condition of the definition holds (all true without one).
        details: What is worth saying of a part, by name.
        left_out: What could not be scored, and why.
    """

    parts: tuple[str, ...]
    values: np.ndarray
    null_mean: np.ndarray
    null_sd: np.ndarray
    null_p: np.ndarray
    allowed: np.ndarray
    details: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Detector:
    """One kind of part and how it is told.

    Attributes:
        name: Its name.
        kind: What it names: heads, neurons, pairs of parts or motifs of a circuit.
        definition: What the score is.
        source: Author and year.
        needs: What it reads besides the weights.
        shuffle: What its own shuffles keep and break, or the exact null in their place.
        score: From what was read of a model to the scores.
        nulls: What a score has to beat.
        threshold: The value a score has to beat, too; None where none is customary.
        standing: Where the threshold comes from.
    """

    name: str
    kind: Kind
    definition: str
    source: str
    needs: Need
    shuffle: str
    score: Callable[[Material], Scores]
    nulls: tuple[Null, ...] = ("shuffle", "others", "twin")
    threshold: float | None = None
    standing: Standing = "customary"
