"""What every exchange format carries: a circuit, and scores of its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from microtome.circuits.results import Circuit
from microtome.errors import DataError, UnknownNameError, nearest
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class ScoredCircuit(Result):
    """A circuit with scores of some or all parts of the model.

    Attributes:
        circuit: The circuit.
        scores: Score by name of the part; parts without one were not scored.
        absent: Parts of the model that a file did not mention. They are not in the circuit.
        partial: Edges into a key/value group of which a file keeps only some heads' copies. They
            are in the circuit.

    Raises:
        UnknownNameError: If a part of the circuit or of the scores is not in the universe.
        DataError: If a score is not finite.
    """

    circuit: Circuit
    scores: Mapping[str, float] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check names and scores."""
        known = frozenset(self.circuit.universe)
        for name in (*self.circuit.parts, *self.scores):
            if name not in known:
                raise UnknownNameError(
                    f"No part {name!r}{nearest(name, self.circuit.universe[:5000])}."
                )
        for name, score in self.scores.items():
            if not math.isfinite(score):
                raise DataError(f"the score of {name} is {score}; give finite scores")

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each part with its score and whether it is kept."""
        frame = self.circuit.to_frame()
        frame["score"] = [self.scores.get(name, math.nan) for name in self.circuit.universe]
        return frame
