"""Circuits: component scores, selection, evaluation and the verdict."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "Ablator": "microtome.circuits.ablation:Ablator",
    "Circuit": "microtome.circuits.results:Circuit",
    "Evaluation": "microtome.circuits.results:Evaluation",
    "Evidence": "microtome.circuits.verdict:Evidence",
    "FaithfulnessCurve": "microtome.circuits.results:FaithfulnessCurve",
    "Nulls": "microtome.circuits.results:Nulls",
    "Stability": "microtome.circuits.results:Stability",
    "Verdict": "microtome.circuits.results:Verdict",
    "curve": "microtome.circuits.evaluation:curve",
    "Difference": "microtome.circuits.differences:Difference",
    "decide": "microtome.circuits.verdict:decide",
    "diagram": "microtome.circuits.diagrams:diagram",
    "difference": "microtome.circuits.differences:difference",
    "evaluate": "microtome.circuits.evaluation:evaluate",
    "find": "microtome.circuits.finding:find",
    "exchange": "microtome.circuits.exchange",
    "minimality": "microtome.circuits.evaluation:minimality",
    "nested": "microtome.circuits.growing:nested",
    "search_nulls": "microtome.circuits.nulls:search_nulls",
    "slider": "microtome.circuits.growing:slider",
    "stability": "microtome.circuits.nulls:stability",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
