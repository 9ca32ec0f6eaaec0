"""The verdict alone, without the figures beside it: what a finder claims, and whether it stands.

:func:`microtome.circuits.judge` measures everything that a reader wants to see. Where thousands of
verdicts are wanted, as in counting false ones, only what decides the grade is measured here, by the
same rules on the same numbers, and no more once a rule has failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microtome.circuits.ablation import Ablation
from microtome.circuits.judging.case import RANDOM_CIRCUITS, Case
from microtome.circuits.judging.levels import Search, search_by_name
from microtome.circuits.judging.variation import stability
from microtome.circuits.results import Circuit, Evaluation, Nulls, Verdict
from microtome.circuits.verdict import NULLS, can_reach_a_grade
from microtome.store.results import Result

if TYPE_CHECKING:
    from microtome.behaviors.check import Check
    from microtome.behaviors.examples import Examples
    from microtome.core.provenance import Provenance
    from microtome.tracing.model import Model


@dataclass(frozen=True, eq=False)
class BriefVerdict(Result):
    """A circuit and its verdict.

    Attributes:
        circuit: The circuit.
        evaluation: It on test.
        nulls: The nulls; None where gate or sufficiency had failed. Without curves, and with fewer
            twins where one did as well as the circuit.
        verdict: The verdict. Its rule of stability is about resamples alone.
        provenance: Model, seed, versions.
    """

    circuit: Circuit
    evaluation: Evaluation
    nulls: Nulls | None
    verdict: Verdict
    provenance: Provenance | None = None


def brief_verdict(
    model: Model,
    examples: Examples,
    finder: Search | str,
    *,
    circuit: Circuit | None = None,
    faithfulness: float = 0.9,
    ablation: Ablation = "resample",
    metric: str = "logit_difference",
    nulls: int = NULLS,
    gate: Check | None = None,
    seed: int = 0,
) -> BriefVerdict:
    """Search a circuit and decide on it, as :func:`microtome.circuits.judge` does.

    Args:
        model: The model.
        examples: A behavior prepared for the model, with all three splits.
        finder: The finder: a name of ``FINDERS``, or a function from a model and train examples to
            scores.
        circuit: A circuit to decide on instead of the one that the finder gives; the nulls are
            searched by the finder all the same.
        faithfulness: 0.9 asks for a faithfulness from 0.9 to 1.1 on validation.
        ablation: What ablated parts give.
        metric: A metric that reads the prompt's end.
        nulls: Twins, and permutations of the answers.
        gate: The gate's outcome; None switches it off.
        seed: For everything that is drawn.

    Raises:
        UnknownNameError: If the finder does not exist.
        EmptyDataError: If a split holds no examples.
    """
    train, validation, test = (examples.split(s) for s in ("train", "validation", "test"))
    case = Case(
        model, train, validation, test, metric, ablation, faithfulness, nulls=nulls, seed=seed
    )
    search = finder
    if isinstance(search, str):
        level = None if circuit is None else circuit.level
        search = search_by_name(search, metric, ablation, level=level)
    scores = search(model, train)
    if circuit is None:
        circuit = case.smallest(scores)
    evaluation = case.evaluation(circuit)
    found, wrong, others = None, None, {}
    if nulls and (gate is None or gate.passed) and can_reach_a_grade(evaluation, circuit):
        floor = case.floor(circuit, RANDOM_CIRCUITS)
        found = case.searched_nulls(circuit, search, beat=evaluation, floor=floor)
        wrong = case.inverted_accuracy(circuit, search)
        others = case.takeovers(circuit)
    verdict = case.verdict(
        circuit, evaluation, nulls=found, inverted_accuracy=wrong, gate=gate, takeovers=others,
        stability=stability(scores, train.clusters, circuit, seed=seed),
    )  # fmt: skip
    return BriefVerdict(circuit, evaluation, found, verdict, evaluation.provenance)
