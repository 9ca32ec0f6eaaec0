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
    evaluated,
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
    NamedSearch,
    Ranked,
    Search,
    default_finder,
    distances,
    graph_at,
    level_of,
    runner,
    search_by_name,
    universe_of,
)
from microtome.circuits.judging.nulls import of_size, random_floor, search_nulls
from microtome.circuits.judging.permuting import inverted
from microtome.circuits.judging.variation import ORDERS, order_items, stability, with_orders
from microtome.circuits.results import (
    Circuit,
    FaithfulnessCurve,
    Level,
    Nulls,
    Stability,
    Verdict,
)
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
    level: Level | None = None,
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
        level: What is judged, ``node``, ``neuron``, ``edge``, ``role-edge`` or ``position-edge``;
            by default what is given or found. With nothing given, judge what the level's default
            finder gives, see :func:`microtome.circuits.judging.levels.default_finder`.
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
        ConfigError: If there is nothing to judge, a setting is out of range, or what is judged is
            of another level than asked.
        UnknownNameError: If a part does not exist.
        EmptyDataError: If a split holds no examples.
    """
    _check_settings(faithfulness, nulls, orders)
    examples = behavior.prepare(model)
    splits = (examples.split("train"), examples.split("validation"), examples.split("test"))
    name = metric or behavior.metric
    if finder is None and found is None and level is not None:
        finder = default_finder(model, level, examples=splits[0])
    search = _search(found, finder, name, ablation, level)
    if found is None:
        if search is None:
            raise ConfigError(
                "Nothing to judge: give scores, a ranking, a circuit, a finder or a level."
            )
        found = search(model, splits[0])
    _check_level(found, level)
    case = _Case(model, splits, name, ablation, search, faithfulness, nulls, seed, progress)
    circuit, along = case.cut(found)
    if isinstance(search, NamedSearch):
        case = replace(case, finder=search.among(circuit.universe))
    # a circuit has no scores of its own: how it varies is that of what the finder gives
    scores = search(model, splits[0]) if isinstance(found, Circuit) and search else found
    result = replace(
        case.judged(behavior.name, circuit),
        curve=along,
        stability=case.stability(scores, circuit, orders),
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

    def cut(
        self, found: Ranked | Sequence[str] | Circuit
    ) -> tuple[Circuit, FaithfulnessCurve | None]:
        """Return the smallest circuit along a ranking that is faithful on validation.

        And the ranking's curve on test; a circuit comes back as it is, without a curve.
        """
        if isinstance(found, Circuit):
            return found, None
        level = level_of(found)
        ranking = found.ranking() if hasattr(found, "ranking") else tuple(found)
        train, validation, test = self.splits
        universe = universe_of(self.model, level, examples=train, universe=ranking)
        order = complete(ranking, universe)
        circuit = smallest_faithful(
            self.model, validation, order, level=level, faithfulness=self.faithfulness,
            ablation=self.ablation, metric=self.metric, reference=train,
            method=str(getattr(found, "method", "a ranking")), seed=self.seed,
        )  # fmt: skip
        along = faithfulness_curve(
            self.model, test, order, level=level, ablation=self.ablation, metric=self.metric,
            reference=train, seed=self.seed,
        )  # fmt: skip
        return circuit, along

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
            evaluation=kinds[ablation].evaluation,
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
        items = order_items(train, circuit.level, seed=self.seed)
        ran = runner(
            self.model, items, circuit.level, ablation=self.ablation, reference=train,
            universe=circuit.universe,
        )  # fmt: skip
        varied = with_orders(
            resampled, ran, circuit, start, least=self.faithfulness, metric=self.metric,
            orders=orders, seed=self.seed,
        )  # fmt: skip
        return replace(varied, order_items=len(items), order_items_of=len(train))

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
        ran = runner(
            self.model, test, circuit.level, ablation=kind, reference=train,
            universe=circuit.universe,
        )  # fmt: skip
        found = evaluated(
            ran, self.model, test, circuit, ablation=kind, metric=self.metric, seed=self.seed
        )
        far = ran.run([circuit.kept], distances(self.model, test))
        kl, agreement = (
            cluster_bootstrap(far[name][0], test.clusters, seed=self.seed)
            for name in (KL, AGREEMENT)
        )
        return UnderAblation(
            kind, found.faithfulness, found.complement, found.moved, found.accuracy, kl, agreement,
            found,
        )  # fmt: skip


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
        reference=train, universe=circuit.universe,
    )  # fmt: skip
    size = len(circuit.parts)
    graph = graph_at(model, circuit.level, examples=train)
    circuits = [of_size(scores.ranking(signed=signed), size, graph) for signed in (False, True)]
    values = ran.run(circuits, ["accuracy"])["accuracy"]
    found = [cluster_bootstrap(row, asked.clusters, seed=seed) for row in values]
    return max(found, key=lambda interval: interval.low)


def _search(
    found: Ranked | Sequence[str] | Circuit | None,
    finder: Search | str | None,
    metric: str,
    ablation: Ablation,
    level: Level | None,
) -> Search | None:
    """Return the finder to rerun: the given one, or the one that the scores name."""
    method = getattr(found, "method", "") if finder is None else finder
    if not isinstance(method, str):
        return method
    if finder is None and (isinstance(found, Circuit) or method not in FINDERS):
        return None
    if found is not None:
        level = level_of(found)
    return search_by_name(method, metric, ablation, level=level)


def _check_settings(faithfulness: float, nulls: int, orders: int) -> None:
    if not 0 < faithfulness < 1 or nulls < 0 or orders < 1:
        raise ConfigError(
            f"faithfulness={faithfulness}, nulls={nulls}, orders={orders}; expected a share "
            "between 0 and 1, 0 nulls or more, and 1 order or more."
        )


def _check_level(found: Ranked | Sequence[str] | Circuit, level: Level | None) -> None:
    own = level_of(found)
    if level is not None and level != own:
        raise ConfigError(f"level={level!r}, but what was given or found is of {own}s.")
