"""What judging gives: every figure of the protocol on one circuit, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from microtome.behaviors.check import Check
from microtome.circuits.hypotheses.second_opinion import SecondOpinion
from microtome.circuits.judging.knock_outs import Completeness
from microtome.circuits.results import (
    Circuit,
    Evaluation,
    FaithfulnessCurve,
    Nulls,
    Stability,
    Verdict,
)
from microtome.core.provenance import Provenance
from microtome.core.stats import Interval
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class UnderAblation(Result, version=2):
    """A circuit under one kind of ablation, on test.

    Attributes:
        ablation: What ablated parts gave.
        faithfulness: f of the circuit.
        complement: f of all but the circuit: completeness by Marks et al. (2024); low is good.
        moved: Share of the way to m(0) that ablating only the circuit moves the metric.
        accuracy: Accuracy with only the circuit kept.
        kl: Divergence from the whole model's to the circuit's distribution, in nats.
        agreement: Share of items on which both give the same token the highest logit.
        evaluation: The same item by item.
    """

    ablation: str
    faithfulness: Interval
    complement: Interval
    moved: Interval
    accuracy: Interval
    kl: Interval
    agreement: Interval
    evaluation: Evaluation


@dataclass(frozen=True, eq=False)
class Judgment(Result):
    """Everything the protocol says about a circuit.

    Attributes:
        behavior: Name of the behavior.
        circuit: The circuit: the smallest along the ranking that is faithful on validation, or the
            one that was given.
        evaluation: The circuit on test under the asked ablation.
        kinds: The circuit under each kind of ablation.
        curve: Faithfulness along the ranking on test, with its areas; None for a given circuit.
        completeness: Knock-outs in circuit and model.
        minimality: Faithfulness lost when each part alone is dropped.
        takeovers: What parts outside carry, with and without the circuit.
        tests: The tests of Shi et al. (2024).
        random: Guaranteed closeness of random circuits of the same make.
        stability: Over resamples and elimination orders; None without scores.
        check: The gate's outcome, None where it was switched off.
        nulls: The nulls, None where they were not searched.
        inverted_accuracy: Accuracy of the finder on inverted answers, None likewise.
        verdict: The verdict, None without a finder.
        provenance: Model, seed, versions.
    """

    behavior: str
    circuit: Circuit
    evaluation: Evaluation
    kinds: Mapping[str, UnderAblation]
    completeness: Completeness
    minimality: Mapping[str, float]
    takeovers: Mapping[str, tuple[float, float]]
    tests: SecondOpinion
    random: np.ndarray
    curve: FaithfulnessCurve | None = None
    stability: Stability | None = None
    check: Check | None = None
    nulls: Nulls | None = None
    inverted_accuracy: Interval | None = None
    verdict: Verdict | None = None
    provenance: Provenance | None = field(default=None)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each figure: quantity, value, low, high."""
        import pandas as pd

        rows: list[dict[str, object]] = []

        def add(name: str, value: Interval | float) -> None:
            low, high = (value.low, value.high) if isinstance(value, Interval) else (None, None)
            shown = value.value if isinstance(value, Interval) else value
            rows.append({"quantity": name, "value": shown, "low": low, "high": high})

        add("parts", len(self.circuit.parts))
        add("share", self.circuit.share)
        for kind, found in self.kinds.items():
            for name in ("faithfulness", "complement", "moved", "accuracy", "kl", "agreement"):
                add(f"{name}, {kind}", getattr(found, name))
        if self.curve is not None and self.curve.areas is not None:
            for name in ("cpr", "cmd", "log_cmd", "nominal_cpr", "nominal_cmd", "size"):
                add(name, getattr(self.curve.areas, name))
        add("incompleteness, mean of random sets", self.completeness.mean)
        add("incompleteness, worst set", self.completeness.worst)
        add("least lost by dropping one", min(self.minimality.values(), default=float("nan")))
        add("best random circuit, guaranteed", float(np.max(self.random, initial=-np.inf)))
        for row in self.tests.to_frame().itertuples():
            add(f"p, {row.null}", float(str(row.p)))
        return pd.DataFrame(rows)
