"""Circuits: component scores, selection, evaluation and the verdict."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "FinderBenchmark": "microtome.circuits.truth.benchmarking:FinderBenchmark",
    "GroundTruth": "microtome.circuits.truth.known_edges:GroundTruth",
    "benchmark": "microtome.circuits.truth.benchmarking:benchmark",
    "plant": "microtome.circuits.truth.planting:plant",
    "truth": "microtome.circuits.truth",
    "Ablator": "microtome.circuits.ablation:Ablator",
    "CoarseScores": "microtome.circuits.edge_scores:CoarseScores",
    "Circuit": "microtome.circuits.results:Circuit",
    "EdgeAblator": "microtome.circuits.edge_ablation:EdgeAblator",
    "EdgeScores": "microtome.circuits.edge_scores:EdgeScores",
    "ComponentGraph": "microtome.circuits.graph:ComponentGraph",
    "Evaluation": "microtome.circuits.results:Evaluation",
    "Evidence": "microtome.circuits.verdict:Evidence",
    "FaithfulnessCurve": "microtome.circuits.results:FaithfulnessCurve",
    "Nulls": "microtome.circuits.results:Nulls",
    "Stability": "microtome.circuits.results:Stability",
    "Verdict": "microtome.circuits.results:Verdict",
    "curve": "microtome.circuits.evaluation:curve",
    "decide": "microtome.circuits.verdict:decide",
    "evaluate": "microtome.circuits.evaluation:evaluate",
    "find": "microtome.circuits.finding:find",
    "minimality": "microtome.circuits.evaluation:minimality",
    "search_nulls": "microtome.circuits.nulls:search_nulls",
    "stability": "microtome.circuits.nulls:stability",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
