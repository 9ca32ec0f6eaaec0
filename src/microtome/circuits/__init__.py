"""Circuits: component scores, selection, evaluation and the verdict."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "Stable": "microtome.circuits.search.ensembles:Stable",
    "stable_edges": "microtome.circuits.search.ensembles:stable_edges",
    "FinderBenchmark": "microtome.circuits.truth.benchmarking:FinderBenchmark",
    "GroundTruth": "microtome.circuits.truth.known_edges:GroundTruth",
    "benchmark": "microtome.circuits.truth.benchmarking:benchmark",
    "plant": "microtome.circuits.truth.planting:plant",
    "truth": "microtome.circuits.truth",
    "Hypothesis": "microtome.circuits.hypothesis:Hypothesis",
    "Interchange": "microtome.circuits.interchange:Interchange",
    "Scrubbing": "microtome.circuits.scrubbing:Scrubbing",
    "load_hypothesis": "microtome.circuits.hypothesis:load_hypothesis",
    "parse_hypothesis": "microtome.circuits.hypothesis:parse_hypothesis",
    "scrub": "microtome.circuits.scrubbing:scrub",
    "swap_claims": "microtome.circuits.interchange:swap_claims",
    "Judgment": "microtome.circuits.judgment:Judgment",
    "eliminate": "microtome.circuits.variation:eliminate",
    "judge": "microtome.circuits.judging:judge",
    "random_floor": "microtome.circuits.nulls:random_floor",
    "takeovers": "microtome.circuits.evaluation:takeovers",
    "with_orders": "microtome.circuits.variation:with_orders",
    "Areas": "microtome.circuits.areas:Areas",
    "Completeness": "microtome.circuits.knock_outs:Completeness",
    "SecondOpinion": "microtome.circuits.hypothesis_tests:SecondOpinion",
    "completeness": "microtome.circuits.knock_outs:completeness",
    "faithfulness_curve": "microtome.circuits.evaluation:faithfulness_curve",
    "second_opinion": "microtome.circuits.hypothesis_tests:second_opinion",
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
    "stability": "microtome.circuits.variation:stability",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
