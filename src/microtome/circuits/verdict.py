"""The verdict: fixed rules, decided before looking, in this one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.judging.evaluation import closeness, item_closeness
from microtome.circuits.results import Level, Rule, Verdict

if TYPE_CHECKING:
    from microtome.behaviors.check import Check
    from microtome.circuits.results import Circuit, Evaluation, Nulls, Stability
    from microtome.core.stats import Interval

SUFFICIENT = (0.8, 1.2)
"""The whole interval of faithfulness on test has to lie in here."""

NECESSARY = 0.8
"""Share of the way to m(0) that ablating only the circuit has to move the metric."""

NULLS = 20
"""Twins, and permutations of the answers, that the circuit has to beat."""

FLOOR = 0.05
"""Share of random subgraphs of the same make that may do as well as the circuit, at most."""

STABLE = 0.7
"""Median Jaccard with the circuits of bootstrap resamples from which it is called stable."""

TAKES_OVER = 0.05
"""Additional share of the metric that a backup carries once the circuit is ablated."""

NOUNS: Mapping[Level, str] = {
    "node": "heads and MLPs",
    "neuron": "heads and neurons",
    "latent": "latents and errors",
    "latent-edge": "edges between latents and errors",
    "edge": "edges",
    "role-edge": "edges at the positions of a role",
    "position-edge": "edges at a position",
    "neuron-edge": "edges that leave neurons",
}
"""What the parts of a circuit are called."""

GRADES = ("sufficient and necessary", "sufficient, redundant", "sufficient only", "not established")


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything the verdict is based on.

    Attributes:
        circuit: The circuit.
        evaluation: Its evaluation on test.
        nulls: The nulls, None where an earlier rule already decided the grade.
        inverted_accuracy: Accuracy of the circuit found for the inverted answers, on them.
        gate: The gate's outcome, None where it was switched off.
        takeovers: What parts outside carry with and without the circuit.
        stability: Over bootstrap resamples.
        templates: Templates of the test split.
        train_templates: Templates of the train split.
    """

    circuit: Circuit
    evaluation: Evaluation
    nulls: Nulls | None
    inverted_accuracy: Interval | None
    gate: Check | None
    takeovers: Mapping[str, tuple[float, float]]
    stability: Stability
    templates: int
    train_templates: int


def decide(evidence: Evidence) -> Verdict:
    """Apply the rules to the evidence.

    Returns:
        The verdict: grade, every rule with its numbers, backups, and a sentence.
    """
    backups = backups_of(evidence.takeovers)
    rules = [
        _gate(evidence.gate),
        _sufficient(evidence.evaluation, evidence.circuit),
        _better(evidence),
        _inverted(evidence),
        _necessary(evidence.evaluation),
        _stable(evidence.stability),
    ]
    outcome = {rule.name: rule.outcome for rule in rules}
    grade = _grade(outcome, bool(backups))
    return Verdict(
        grade=grade,
        rules=tuple(asdict(rule) for rule in rules),
        backups=backups,
        sentence=_sentence(evidence, grade, outcome, backups),
        provenance=evidence.evaluation.provenance,
    )


def backups_of(takeovers: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """Return the parts that carry clearly more once the circuit is ablated, most first."""
    gained = {
        n: after - before for n, (before, after) in takeovers.items() if after - before > TAKES_OVER
    }
    return tuple(sorted(gained, key=lambda n: -gained[n]))


def can_reach_a_grade(evaluation: Evaluation, circuit: Circuit) -> bool:
    """Return whether any grade is still open after the rule of sufficiency, which comes first."""
    return _sufficient(evaluation, circuit).outcome == "pass"


def _grade(outcome: Mapping[str, str], backups: bool) -> str:
    needed = ("gate", "sufficient", "better than search", "inverted target")
    if any(outcome[name] not in ("pass", "switched off") for name in needed):
        return GRADES[3]
    if outcome["necessary"] == "pass":
        return GRADES[0]
    return GRADES[1] if backups else GRADES[2]


def _gate(gate: Check | None) -> Rule:
    demand = (
        "lower bound of accuracy above chance and above the best baseline; clean and corrupt 3 "
        "standard errors apart"
    )
    if gate is None:
        return Rule("gate", demand, "not applied", "", "switched off")
    name, best = gate.best_baseline
    value = f"accuracy {gate.accuracy}; {gate.separation:.3g} standard errors"
    return Rule(
        "gate",
        demand,
        value,
        f"chance {gate.chance:.3g}, {name} {best.value:.3g}",
        "pass" if gate.passed else "fail",
    )


def _sufficient(evaluation: Evaluation, circuit: Circuit) -> Rule:
    low, high = SUFFICIENT
    f = evaluation.faithfulness
    size, total = len(circuit.parts), len(circuit.universe)
    passed = f.within(low, high) and size < total
    return Rule(
        "sufficient",
        f"smaller than the model, and the whole interval of faithfulness on test inside "
        f"[{low}, {high}] under {evaluation.ablation} ablation",
        f"{size} of {total} parts; faithfulness {f}",
        "0 with everything ablated, 1 for the whole model",
        "pass" if passed else "fail",
    )


def _better(evidence: Evidence) -> Rule:
    demand = (
        f"closer to the model, item by item, than circuits of equal size found the same way are in "
        f"{NULLS} twins; guaranteed closeness above the share of the effect, of either sign, that "
        f"comes out for {NULLS} permutations of the answers, and above the guaranteed closeness of "
        f"{1 - FLOOR:.0%} of random subgraphs"
    )
    nulls = evidence.nulls
    if nulls is None:
        return Rule(
            "better than search", demand, "not run: an earlier rule failed already", "", "unsure"
        )
    evaluation = evidence.evaluation
    items = item_closeness(evaluation.full, evaluation.empty, evaluation.circuit)
    sure = closeness(evaluation.faithfulness)
    twins, permuted = (float(np.max(x, initial=-np.inf)) for x in (nulls.twins, nulls.permuted))
    enough = min(len(nulls.twins), len(nulls.permuted)) >= NULLS
    as_good = float(np.mean(nulls.random >= sure)) if len(nulls.random) else 0.0
    passed = items > twins and sure > permuted and enough and as_good <= FLOOR
    baseline = (
        f"best of {len(nulls.twins)} twins {twins:.3g}; best of {len(nulls.permuted)} permutations "
        f"{permuted:.3g}"
    )
    if np.isfinite(nulls.permuted_overlap):
        baseline += f" (their circuits overlap with this one by {nulls.permuted_overlap:.0%})"
    if len(nulls.random):
        baseline += (
            f"; random subgraphs, guaranteed, at most {float(np.max(nulls.random)):.3g}, "
            f"{as_good:.0%} of them as good"
        )
    value = f"item by item {items:.3g}; guaranteed {sure:.3g}"
    return Rule("better than search", demand, value, baseline, "pass" if passed else "fail")


def _inverted(evidence: Evidence) -> Rule:
    demand = (
        "the finder, rerun on inverted answers and ranking by magnitude or by value, does not "
        "reach the gate at equal size with the rest at its mean"
    )
    accuracy = evidence.inverted_accuracy
    if accuracy is None:
        return Rule(
            "inverted target", demand, "not run: an earlier rule failed already", "", "unsure"
        )
    chance = (
        0.5
        if evidence.gate is None
        else max(evidence.gate.chance, evidence.gate.best_baseline[1].value)
    )
    return Rule(
        "inverted target", demand, f"accuracy {accuracy} on the inverted answers", f"{chance:.3g}",
        "fail" if accuracy.low > chance else "pass",
    )  # fmt: skip


def _necessary(evaluation: Evaluation) -> Rule:
    moved = evaluation.moved
    return Rule(
        "necessary",
        f"ablating only the circuit moves the metric at least {NECESSARY:.0%} of the way to m(0)",
        f"{moved}",
        "0 when nothing is ablated",
        "pass" if moved.value >= NECESSARY else "fail",
    )


def _stable(stability: Stability) -> Rule:
    value = (
        f"median Jaccard {stability.median_jaccard:.3g}; core of {len(stability.core)}, "
        f"{len(stability.alternatives)} alternatives"
    )
    if stability.orders:
        value += (
            f"; over {stability.orders} elimination orders median Jaccard "
            f"{stability.order_jaccard:.3g}, core of {len(stability.order_core)}"
        )
    if stability.order_items < stability.order_items_of:
        value += f" (on {stability.order_items} of {stability.order_items_of} train items)"
    outcome = "pass" if stability.median_jaccard >= STABLE else "unsure"
    return Rule(
        "stable",
        "reported: parts chosen in at least 90 % of bootstrap resamples",
        value,
        "1 if always the same",
        outcome,
    )


def _sentence(
    evidence: Evidence, grade: str, outcome: Mapping[str, str], backups: tuple[str, ...]
) -> str:
    size, total = len(evidence.circuit.parts), len(evidence.circuit.universe)
    parts = NOUNS[evidence.circuit.level]
    f = evidence.evaluation.faithfulness
    where = f"{evidence.templates} unseen templates ({len(evidence.evaluation.clusters)} items)"
    if grade == GRADES[3]:
        failed = [
            name
            for name, result in outcome.items()
            if result == "fail" and name not in ("necessary", "stable")
        ]
        return (
            f"Not established: {size} of {total} {parts} keep {f} of the effect on {where}, "
            f"and the rule on {', '.join(failed) or 'the nulls'} is not met."
        )
    first = (
        f"{size} of {total} {parts} are sufficient under {evidence.evaluation.ablation} "
        f"ablation on {where}: they keep {f} of the effect."
    )
    moved = evidence.evaluation.moved
    if grade == GRADES[0]:
        return (
            f"{first} They are also necessary: ablating only them moves the metric {moved} of the "
            "way."
        )
    if backups:
        return (
            f"{first} They are not necessary, because others take over when they are ablated: "
            f"{', '.join(backups[:4])}."
        )
    return (
        f"{first} They are not shown to be necessary: ablating only them moves the metric {moved} "
        "of the way."
    )
