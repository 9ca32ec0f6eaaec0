"""Judging a ranking or a circuit by the whole protocol, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from microtome.behaviors.check import check
from microtome.circuits.ablation import ABLATIONS, Ablation
from microtome.circuits.finding import FINDERS, by_layer, sizes_up_to, top
from microtome.circuits.hypotheses.second_opinion import second_opinion
from microtome.circuits.judging.cutting import smallest_faithful
from microtome.circuits.judging.evaluation import (
    complete,
    evaluate,
    faithfulness_curve,
    item_closeness,
    minimality,
    takeovers,
)
from microtome.circuits.judging.judgment import Judgment, UnderAblation
from microtome.circuits.judging.knock_outs import completeness
from microtome.circuits.judging.levels import (
    AGREEMENT,
    KL,
    Ranked,
    Search,
    distances,
    level_of,
    runner,
    search_by_name,
    universe_of,
)
from microtome.circuits.judging.nulls import inverted, random_floor, search_nulls
from microtome.circuits.judging.variation import ORDERS, stability, with_orders
from microtome.circuits.results import Circuit, Level, Nulls, Stability, Verdict
from microtome.circuits.verdict import NULLS, Evidence, can_reach_a_grade, decide
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.core.stats import Interval, cluster_bootstrap
from microtome.errors import ConfigError, EmptyDataError

if TYPE_CHECKING:
    from microtome.behaviors.behavior import Behavior
    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model

RANDOM_CIRCUITS = 100
"""Random circuits of the same make that a circuit is shown beside."""


def judge(
    model: Model,
    behavior: Behavior,
    found: Ranked | Sequence[str] | Circuit | None = None,
    *,
    finder: Search | str | None = None,
    faithfulness: float = 0.9,
    ablation: Ablation = "resample",
    metric: str | None = None,
    nulls: int = NULLS,
    orders: int = ORDERS,
    gate: bool = True,
    seed: int = 0,
    progress: Progress = quiet,
) -> Judgment:
    """Judge what a finder found on train: curve, areas, tests, and the verdict by fixed rules.

    Along a ranking the circuit is the smallest whose faithfulness on validation lies as near 1 as
    asked. Everything else is measured on test.

    Args:
        model: The model.
        behavior: The behavior.
        found: Scores of nodes or edges from train, a ranking of names, or a circuit; by default
            what ``finder`` gives on train.
        finder: The finder, rerun on the nulls for the verdict: a name of ``FINDERS``, or a function
            from a model and train examples to scores. Scores that name their finder bring their
            own; otherwise there is no verdict without it.
        faithfulness: 0.9 asks for a faithfulness from 0.9 to 1.1 on validation.
        ablation: What ablated parts give, for all but the comparison of kinds.
        metric: A metric that reads the prompt's end; the behavior's own by default.
        nulls: Twins, and permutations of the answers; fewer than 20 cannot pass the rule.
        orders: Random orders of elimination.
        gate: Whether the gate counts; without it the verdict says that it was switched off.
        seed: For everything that is drawn.
        progress: Told of the steps.

    Returns:
        The judgment.

    Raises:
        ConfigError: If there is nothing to judge, or a setting is out of range.
        UnknownNameError: If a part does not exist.
        EmptyDataError: If a split holds no examples.
    """
    if not 0 < faithfulness < 1 or nulls < 0 or orders < 1:
        raise ConfigError(
            f"faithfulness={faithfulness}, nulls={nulls}, orders={orders}; expected a share "
            "between 0 and 1, 0 nulls or more, and 1 order or more."
        )
    examples = behavior.prepare(model)
    splits = (examples.split("train"), examples.split("validation"), examples.split("test"))
    name = metric or behavior.metric
    if found is None:
        if finder is None:
            raise ConfigError("Nothing to judge: give scores, a ranking, a circuit or a finder.")
        found = _search(None, finder, name, ablation)(model, splits[0])  # type: ignore[misc]
    case = _Case(
        model, splits, name, ablation, _search(found, finder, name, ablation), faithfulness, nulls,
        seed, progress,
    )  # fmt: skip
    level = level_of(found)
    if isinstance(found, Circuit):
        circuit, along = found, None
    else:
        ranking = found.ranking() if hasattr(found, "ranking") else tuple(found)
        order = complete(ranking, universe_of(model, level, examples=splits[0]))
        circuit = case.cut(order, level, found)
        along = faithfulness_curve(
            model, splits[2], order, level=level, ablation=ablation, metric=case.metric,
            reference=splits[0], seed=seed,
        )  # fmt: skip
    result = case.judged(behavior.name, circuit)
    result = replace(
        result,
        curve=along,
        stability=case.stability(found, circuit, orders),
        check=check(model, behavior, seed=seed, examples=examples) if gate else None,
    )
    return case.with_verdict(result)


@dataclass(frozen=True)
class _Case:
    """One case: the model, the splits and the settings."""

    model: Model
    splits: tuple[Examples, Examples, Examples]
    metric: str
    ablation: Ablation
    finder: Search | None
    faithfulness: float
    nulls: int
    seed: int
    progress: Progress

    def cut(self, order: tuple[str, ...], level: Level, found: object) -> Circuit:
        """Return the smallest circuit along a ranking that is faithful on validation."""
        return smallest_faithful(
            self.model, self.splits[1], order, level=level, faithfulness=self.faithfulness,
            ablation=self.ablation, metric=self.metric, reference=self.splits[0],
            method=str(getattr(found, "method", "a ranking")), seed=self.seed,
        )  # fmt: skip

    def judged(self, behavior: str, circuit: Circuit) -> Judgment:
        """Return everything that needs no finder."""
        train, validation, test = self.splits
        model, metric, ablation, seed = self.model, self.metric, self.ablation, self.seed
        kinds: dict[str, UnderAblation] = {kind: self._under(circuit, kind) for kind in ABLATIONS}
        self.progress.step(1, 4, "ablations")
        found = completeness(
            model, test, circuit, search=validation, ablation=ablation, metric=metric,
            reference=train, seed=seed,
        )  # fmt: skip
        self.progress.step(2, 4, "knock-outs")
        tests = second_opinion(
            model, test, circuit, ablation=ablation, metric=metric, reference=train, seed=seed
        )
        floor = random_floor(
            model, test, circuit, ablation=ablation, metric=metric, seed=seed, reference=train,
            count=RANDOM_CIRCUITS,
        )  # fmt: skip
        self.progress.step(3, 4, "tests")
        return Judgment(
            behavior=behavior,
            circuit=circuit,
            evaluation=evaluate(
                model, test, circuit, ablation=ablation, metric=metric, reference=train, seed=seed
            ),
            kinds=kinds,
            completeness=found,
            minimality=minimality(
                model, test, circuit, ablation=ablation, metric=metric, reference=train
            ),
            takeovers=takeovers(
                model, test, circuit, ablation=ablation, metric=metric, reference=train
            ),
            tests=tests,
            random=floor,
            provenance=collect(model, {"ablation": ablation, "metric": metric}, seed=seed),
        )

    def stability(self, found: object, circuit: Circuit, orders: int) -> Stability | None:
        """Return the stability over resamples and orders; None where there are no scores."""
        train = self.splits[0]
        try:
            resampled = stability(found, train.clusters, circuit, seed=self.seed)
        except EmptyDataError:
            return None
        ranking = found.ranking() if hasattr(found, "ranking") else ()
        start = by_layer(circuit.kept | top(ranking, 2 * len(circuit.parts)), circuit.universe)
        ran = runner(self.model, train, circuit.level, ablation=self.ablation)
        return with_orders(
            resampled, ran, circuit, start, least=self.faithfulness, metric=self.metric,
            orders=orders, seed=self.seed,
        )  # fmt: skip

    def with_verdict(self, found: Judgment) -> Judgment:
        """Return the judgment with nulls and verdict, where there are a finder and its scores."""
        if self.finder is None or found.stability is None:
            return found
        nulls, wrong = None, None
        if can_reach_a_grade(found.evaluation, found.circuit) and self.nulls:
            nulls = self._nulls(found, self.finder)
            wrong = inverted_accuracy(
                self.model, self.splits[0], self.splits[2], found.circuit, self.finder,
                ablation=self.ablation, seed=self.seed,
            )  # fmt: skip
        train, _, test = self.splits
        verdict: Verdict = decide(
            Evidence(
                circuit=found.circuit,
                evaluation=found.evaluation,
                nulls=nulls,
                inverted_accuracy=wrong,
                gate=found.check,
                takeovers=found.takeovers,
                stability=found.stability,
                templates=len({e.template for e in test}),
                train_templates=len({e.template for e in train}),
            )
        )
        return replace(found, nulls=nulls, inverted_accuracy=wrong, verdict=verdict)

    def _nulls(self, found: Judgment, finder: Search) -> Nulls:
        train, validation, test = self.splits
        evaluation = found.evaluation
        nulls = search_nulls(
            self.model, train, validation, test, found.circuit,
            sizes_up_to(len(found.circuit.universe)), count=self.nulls, ablation=self.ablation,
            metric=self.metric, method=finder, seed=self.seed,
            enough=item_closeness(evaluation.full, evaluation.empty, evaluation.circuit),
            progress=self.progress,
        )  # fmt: skip
        return replace(nulls, random=found.random)

    def _under(self, circuit: Circuit, kind: Ablation) -> UnderAblation:
        train, _, test = self.splits
        found = evaluate(
            self.model, test, circuit, ablation=kind, metric=self.metric, reference=train,
            seed=self.seed,
        )  # fmt: skip
        ran = runner(self.model, test, circuit.level, ablation=kind, reference=train)
        far = ran.run([circuit.kept], distances(self.model, test))
        kl, agreement = (
            cluster_bootstrap(far[name][0], test.clusters, seed=self.seed)
            for name in (KL, AGREEMENT)
        )
        return UnderAblation(
            kind, found.faithfulness, found.complement, found.moved, found.accuracy, kl, agreement
        )


def inverted_accuracy(
    model: Model,
    train: Examples,
    test: Examples,
    circuit: Circuit,
    finder: Search,
    *,
    ablation: Ablation,
    seed: int,
) -> Interval:
    """Return the best accuracy, on inverted answers, of circuits that the finder gives for them.

    By magnitude the finder returns the same parts for exchanged answers, so it also ranks by value.
    The rest gives its mean, not the corrupt run, which gives the inverted answer all by itself.
    """
    asked = inverted(test)
    scores = finder(model, inverted(train))
    ran = runner(
        model, asked, circuit.level, ablation="mean" if ablation == "resample" else ablation,
        reference=train,
    )  # fmt: skip
    size = len(circuit.parts)
    circuits = [top(scores.ranking(signed=signed), size) for signed in (False, True)]
    values = ran.run(circuits, ["accuracy"])["accuracy"]
    found = [cluster_bootstrap(row, asked.clusters, seed=seed) for row in values]
    return max(found, key=lambda interval: interval.low)


def _search(
    found: Ranked | Sequence[str] | Circuit | None,
    finder: Search | str | None,
    metric: str,
    ablation: Ablation,
) -> Search | None:
    """Return the finder to rerun: the given one, or the one that the scores name."""
    method = getattr(found, "method", "") if finder is None else finder
    if not isinstance(method, str):
        return method
    if finder is None and (isinstance(found, Circuit) or method not in FINDERS):
        return None
    level = None if found is None else level_of(found)
    return search_by_name(method, metric, ablation, level=level)
