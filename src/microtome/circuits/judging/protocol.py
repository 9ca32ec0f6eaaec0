"""Judging a ranking or a circuit by the whole protocol, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from microtome.behaviors.check import check
from microtome.circuits.ablation import ABLATIONS, Ablation
from microtome.circuits.finding import FINDERS, by_layer, sizes_up_to, top
from microtome.circuits.hypotheses.second_opinion import second_opinion
from microtome.circuits.judging.case import RANDOM_CIRCUITS, Case
from microtome.circuits.judging.evaluation import evaluated, faithfulness_curve
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
    level_of,
    runner,
    search_by_name,
)
from microtome.circuits.judging.variation import ORDERS, order_items, stability, with_orders
from microtome.circuits.results import Circuit, FaithfulnessCurve, Level, Stability
from microtome.circuits.verdict import NULLS, can_reach_a_grade
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.core.stats import cluster_bootstrap
from microtome.errors import ConfigError, EmptyDataError

if TYPE_CHECKING:
    from microtome.behaviors.behavior import Behavior
    from microtome.tracing.model import Model


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
    train, validation, test = (examples.split(s) for s in ("train", "validation", "test"))
    name = metric or behavior.metric
    if finder is None and found is None and level is not None:
        finder = default_finder(model, level, examples=train)
    search = _search(found, finder, name, ablation, level)
    if found is None:
        if search is None:
            raise ConfigError(
                "Nothing to judge: give scores, a ranking, a circuit, a finder or a level."
            )
        found = search(model, train)
    _check_level(found, level)
    case = _Thorough(
        model, train, validation, test, name, ablation, faithfulness, nulls, seed, progress
    )
    circuit, along = case.cut(found)
    # a circuit has no scores of its own: how it varies is that of what the finder gives
    scores = search(model, train) if isinstance(found, Circuit) and search else found
    result = replace(
        case.judged(behavior.name, circuit),
        curve=along,
        stability=case.stability(scores, circuit, orders),
        check=check(model, behavior, seed=seed, examples=examples) if gate else None,
    )
    if isinstance(search, NamedSearch):
        search = search.among(circuit.universe)
    return case.with_verdict(result, search)


@dataclass(frozen=True)
class _Thorough(Case):
    """A case of which everything is measured that a reader wants to see."""

    def cut(
        self, found: Ranked | Sequence[str] | Circuit
    ) -> tuple[Circuit, FaithfulnessCurve | None]:
        """Return the smallest circuit along a ranking that is faithful on validation.

        And the ranking's curve on test; a circuit comes back as it is, without a curve.
        """
        if isinstance(found, Circuit):
            return found, None
        along = faithfulness_curve(
            self.model, self.test, self.ordered(found), level=level_of(found),
            ablation=self.ablation, metric=self.metric, reference=self.train, seed=self.seed,
        )  # fmt: skip
        return self.smallest(found), along

    def judged(self, behavior: str, circuit: Circuit) -> Judgment:
        """Return everything that needs no finder."""
        train, validation, test = self.train, self.validation, self.test
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
        floor = self.floor(circuit, RANDOM_CIRCUITS)
        self.progress.step(3, 4, "tests")
        return Judgment(
            behavior=behavior,
            circuit=circuit,
            evaluation=kinds[ablation].evaluation,
            kinds=kinds,
            completeness=found,
            minimality=self.minimality(circuit),
            takeovers=self.takeovers(circuit),
            tests=tests,
            random=floor,
            provenance=collect(model, {"ablation": ablation, "metric": metric}, seed=seed),
        )

    def stability(self, found: object, circuit: Circuit, orders: int) -> Stability | None:
        """Return the stability over resamples and orders; None where there are no scores."""
        train = self.train
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

    def with_verdict(self, found: Judgment, finder: Search | None) -> Judgment:
        """Return the judgment with nulls and verdict, where there are a finder and its scores."""
        if finder is None or found.stability is None:
            return found
        nulls, wrong, circuit = None, None, found.circuit
        if can_reach_a_grade(found.evaluation, circuit) and self.nulls:
            nulls = self.searched_nulls(
                circuit, finder, beat=found.evaluation, sizes=sizes_up_to(len(circuit.universe)),
                floor=found.random,
            )  # fmt: skip
            wrong = self.inverted_accuracy(circuit, finder)
        verdict = self.verdict(
            circuit, found.evaluation, nulls=nulls, inverted_accuracy=wrong, gate=found.check,
            takeovers=found.takeovers, stability=found.stability,
        )  # fmt: skip
        return replace(found, nulls=nulls, inverted_accuracy=wrong, verdict=verdict)

    def _under(self, circuit: Circuit, kind: Ablation) -> UnderAblation:
        test = self.test
        ran = runner(
            self.model, test, circuit.level, ablation=kind, reference=self.train,
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
