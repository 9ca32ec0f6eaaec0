"""Step 4, prove: the controls of the circuit, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.behaviors.examples import Examples
from microtome.circuits.ablation import ABLATIONS
from microtome.circuits.connections import connections
from microtome.circuits.judging.case import Case
from microtome.circuits.judging.levels import search_by_name
from microtome.circuits.judging.variation import stability
from microtome.circuits.results import Circuit, FaithfulnessCurve, Verdict
from microtome.circuits.verdict import can_reach_a_grade
from microtome.dissection.results import Proof

CONNECTED = 32
"""Train items over which the connections are averaged."""

if TYPE_CHECKING:
    from microtome.attribution import ComponentScores
    from microtome.behaviors.check import Check
    from microtome.core.progress import Progress
    from microtome.dissection.config import Config
    from microtome.tracing.model import Model


def prove(
    model: Model,
    splits: tuple[Examples, Examples, Examples],
    scores: ComponentScores,
    circuit: Circuit,
    found: FaithfulnessCurve,
    gate: Check | None,
    *,
    config: Config,
    metric: str,
    progress: Progress,
    thorough: bool = True,
) -> tuple[Proof, Verdict]:
    """Gather the evidence on test and apply the fixed rules.

    Where sufficiency fails, no grade can be reached any more, and the nulls are searched only if
    ``thorough``.

    Args:
        model: The model.
        splits: Train, validation and test.
        scores: Scores on train.
        circuit: The circuit.
        found: Its curve on validation.
        gate: The gate's outcome, None where it was switched off.
        config: The settings.
        metric: The metric.
        progress: Told after each null.
        thorough: Search the nulls in any case.
    """
    train, validation, test = splits
    case = Case(
        model, train, validation, test, metric, config.ablation, config.faithfulness,
        config.nulls, config.seed, progress,
    )  # fmt: skip
    evaluation = case.evaluation(circuit)
    open_still = can_reach_a_grade(evaluation, circuit)
    nulls, wrong, others = None, None, {}
    if open_still or thorough:
        finder = search_by_name(config.method, metric, config.ablation)
        nulls = case.searched_nulls(
            circuit, finder, beat=None if thorough else evaluation, sizes=found.sizes,
            floor=case.floor(circuit),
        )  # fmt: skip
        wrong = case.inverted_accuracy(circuit, finder)
        others = case.takeovers(circuit)
    stable = stability(scores, train.clusters, circuit, seed=config.seed)
    kinds = ABLATIONS if thorough else (config.ablation,)
    proof = Proof(
        evaluation=evaluation,
        ablations={
            kind: (
                evaluation if kind == config.ablation else case.evaluation(circuit, kind)
            ).faithfulness
            for kind in kinds
        },
        nulls=nulls,
        inverted_accuracy=wrong,
        stability=stable,
        minimality=case.minimality(circuit) if thorough else {},
        takeovers=others,
        connections=_connections(model, train, circuit, metric) if thorough else {},
        templates=len({e.template for e in test}),
        clusters=len(set(test.clusters.tolist())),
    )
    verdict = case.verdict(
        circuit, evaluation, nulls=nulls, inverted_accuracy=wrong, gate=gate, takeovers=others,
        stability=stable,
    )  # fmt: skip
    return proof, verdict


def _connections(model: Model, train: Examples, circuit: Circuit, metric: str) -> dict[str, float]:
    found = connections(model, train[:CONNECTED], circuit, name=metric)
    return {f"{source} -> {target}": weight for (source, target), weight in found.items()}
