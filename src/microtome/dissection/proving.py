"""Step 4, prove: the controls of the circuit, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.behaviors.examples import Examples
from microtome.circuits.ablation import ABLATIONS
from microtome.circuits.connections import connections
from microtome.circuits.judging.evaluation import (
    evaluate,
    item_closeness,
    minimality,
    takeovers,
)
from microtome.circuits.judging.levels import search_by_name
from microtome.circuits.judging.nulls import random_floor, search_nulls
from microtome.circuits.judging.protocol import inverted_accuracy
from microtome.circuits.judging.variation import stability
from microtome.circuits.results import Circuit, FaithfulnessCurve, Nulls, Verdict
from microtome.circuits.verdict import Evidence, can_reach_a_grade, decide
from microtome.core.stats import Interval
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
    evaluation = evaluate(
        model, test, circuit, ablation=config.ablation, metric=metric, reference=train,
        seed=config.seed,
    )  # fmt: skip
    open_still = can_reach_a_grade(evaluation, circuit)
    nulls, wrong = None, None
    if open_still or thorough:
        reached = item_closeness(evaluation.full, evaluation.empty, evaluation.circuit)
        nulls = _nulls(
            model,
            splits,
            circuit,
            found,
            config=config,
            metric=metric,
            progress=progress,
            enough=None if thorough else reached,
        )
        finder = search_by_name(config.method, metric, config.ablation)
        wrong = inverted_accuracy(
            model, train, test, circuit, finder, ablation=config.ablation, seed=config.seed
        )
    proof = Proof(
        evaluation=evaluation,
        ablations=_kinds(model, train, test, circuit, config=config, metric=metric)
        if thorough
        else {config.ablation: evaluation.faithfulness},
        nulls=nulls,
        inverted_accuracy=wrong,
        stability=stability(scores, train.clusters, circuit, seed=config.seed),
        minimality=minimality(
            model, test, circuit, ablation=config.ablation, metric=metric, reference=train
        )
        if thorough
        else {},
        takeovers=takeovers(
            model, test, circuit, ablation=config.ablation, metric=metric, reference=train
        )
        if open_still or thorough
        else {},
        connections=_connections(model, train, circuit, metric) if thorough else {},
        templates=len({e.template for e in test}),
        clusters=len(set(test.clusters.tolist())),
    )
    return proof, decide(_evidence(proof, circuit, gate, train))


def _kinds(
    model: Model,
    train: Examples,
    test: Examples,
    circuit: Circuit,
    *,
    config: Config,
    metric: str,
) -> dict[str, Interval]:
    """Return the faithfulness under each kind of ablation."""
    return {
        kind: evaluate(
            model,
            test,
            circuit,
            ablation=kind,
            metric=metric,
            reference=train,
            seed=config.seed,
        ).faithfulness
        for kind in ABLATIONS
    }


def _connections(model: Model, train: Examples, circuit: Circuit, metric: str) -> dict[str, float]:
    found = connections(model, train[:CONNECTED], circuit, name=metric)
    return {f"{source} -> {target}": weight for (source, target), weight in found.items()}


def _evidence(proof: Proof, circuit: Circuit, gate: Check | None, train: Examples) -> Evidence:
    return Evidence(
        circuit=circuit,
        evaluation=proof.evaluation,
        nulls=proof.nulls,
        inverted_accuracy=proof.inverted_accuracy,
        gate=gate,
        takeovers=proof.takeovers,
        stability=proof.stability,
        templates=proof.templates,
        train_templates=len({e.template for e in train}),
    )


def _nulls(
    model: Model,
    splits: tuple[Examples, Examples, Examples],
    circuit: Circuit,
    found: FaithfulnessCurve,
    *,
    config: Config,
    metric: str,
    progress: Progress,
    enough: float | None,
) -> Nulls:
    from dataclasses import replace

    train, validation, test = splits
    nulls = search_nulls(
        model,
        train,
        validation,
        test,
        circuit,
        found.sizes,
        count=config.nulls,
        ablation=config.ablation,
        metric=metric,
        method=config.method,
        seed=config.seed,
        enough=enough,
        progress=progress,
    )
    floor = random_floor(
        model,
        test,
        circuit,
        ablation=config.ablation,
        metric=metric,
        seed=config.seed,
        reference=train,
    )
    return replace(nulls, random=floor)
