"""Circuits: component scores, selection, evaluation and the verdict."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "Ablator": "microtome.circuits.ablation:Ablator",
    "Areas": "microtome.circuits.areas:Areas",
    "Circuit": "microtome.circuits.results:Circuit",
    "CoarseScores": "microtome.circuits.edge_scores:CoarseScores",
    "Completeness": "microtome.circuits.knock_outs:Completeness",
    "ComponentGraph": "microtome.circuits.graph:ComponentGraph",
    "Difference": "microtome.circuits.differences:Difference",
    "EdgeAblator": "microtome.circuits.edge_ablation:EdgeAblator",
    "EdgeScores": "microtome.circuits.edge_scores:EdgeScores",
    "Evaluation": "microtome.circuits.results:Evaluation",
    "Evidence": "microtome.circuits.verdict:Evidence",
    "FaithfulnessCurve": "microtome.circuits.results:FaithfulnessCurve",
    "Hypothesis": "microtome.circuits.hypothesis:Hypothesis",
    "Interchange": "microtome.circuits.interchange:Interchange",
    "Judgment": "microtome.circuits.judgment:Judgment",
    "Nulls": "microtome.circuits.results:Nulls",
    "PartNames": "microtome.circuits.taxonomy.results:PartNames",
    "Scrubbing": "microtome.circuits.scrubbing:Scrubbing",
    "SecondOpinion": "microtome.circuits.hypothesis_tests:SecondOpinion",
    "Stability": "microtome.circuits.results:Stability",
    "Verdict": "microtome.circuits.results:Verdict",
    "Versus": "microtome.circuits.contrasts:Versus",
    "completeness": "microtome.circuits.knock_outs:completeness",
    "curve": "microtome.circuits.evaluation:curve",
    "decide": "microtome.circuits.verdict:decide",
    "diagram": "microtome.circuits.diagrams:diagram",
    "difference": "microtome.circuits.differences:difference",
    "eliminate": "microtome.circuits.variation:eliminate",
    "evaluate": "microtome.circuits.evaluation:evaluate",
    "exchange": "microtome.circuits.exchange",
    "faithfulness_curve": "microtome.circuits.evaluation:faithfulness_curve",
    "find": "microtome.circuits.finding:find",
    "judge": "microtome.circuits.judging:judge",
    "load_hypothesis": "microtome.circuits.hypothesis:load_hypothesis",
    "minimality": "microtome.circuits.evaluation:minimality",
    "name_parts": "microtome.circuits.taxonomy.naming:name_parts",
    "nested": "microtome.circuits.growing:nested",
    "parse_hypothesis": "microtome.circuits.hypothesis:parse_hypothesis",
    "random_floor": "microtome.circuits.nulls:random_floor",
    "scrub": "microtome.circuits.scrubbing:scrub",
    "search_nulls": "microtome.circuits.nulls:search_nulls",
    "second_opinion": "microtome.circuits.hypothesis_tests:second_opinion",
    "slider": "microtome.circuits.growing:slider",
    "smallest_faithful": "microtome.circuits.cutting:smallest_faithful",
    "stability": "microtome.circuits.variation:stability",
    "swap_claims": "microtome.circuits.interchange:swap_claims",
    "takeovers": "microtome.circuits.evaluation:takeovers",
    "versus": "microtome.circuits.contrasts:versus",
    "with_orders": "microtome.circuits.variation:with_orders",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
