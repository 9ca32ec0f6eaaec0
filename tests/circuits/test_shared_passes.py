"""Passes that circuits share, one search for all permutations: each equals the slow way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from tests.circuits.planted import planted_model
from tests.sweeps.test_sweeps import pairs

from microtome.behaviors import Examples, quote_closing
from microtome.behaviors.metrics import Metric, metric
from microtome.circuits import EdgeAblator
from microtome.circuits.edges.pruning import Pruning
from microtome.circuits.edges.reading import Reading
from microtome.circuits.edges.shared_plan import SharedPlan
from microtome.circuits.graph import ComponentGraph
from microtome.circuits.judging import briefly, nulls, permuting
from microtome.circuits.judging.briefly import brief_verdict
from microtome.circuits.judging.evaluation import connected
from microtome.circuits.judging.levels import (
    NamedSearch,
    Ranked,
    default_finder,
    graph_at,
    level_of,
    runner,
    search_by_name,
)
from microtome.circuits.judging.nulls import of_size
from microtome.circuits.judging.permuting import (
    permute,
    permuted_scores,
    permuted_values,
    turns_sign,
)
from microtome.circuits.results import Level
from microtome.errors import ConfigError, UnknownNameError
from microtome.models.families import build
from microtome.tracing.model import Model
from microtome.tracing.opening import load

PLANTED = ("a0.h1", "a1.h2", "m1")


@pytest.fixture(scope="module")
def model() -> Model:
    return planted_model(PLANTED)


@pytest.fixture(scope="module")
def examples(model: Model) -> Examples:
    return quote_closing(40).prepare(model).split("train")


def small_circuits(graph: ComponentGraph, count: int) -> list[frozenset[str]]:
    """Random circuits of few edges, and each without one of them."""
    source = np.random.default_rng(7)
    found = []
    for share in np.linspace(0.1, 0.22, count):
        kept = [e for e in graph.edges if source.random() < share]
        found += [frozenset(kept), frozenset(kept[1:]), frozenset(kept[:-1])]
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_shared_passes_equal_passes_of_their_own(
    family: str, ablation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, examples = load(build(family)), pairs((7, 7, 8))
    fast = EdgeAblator(model, examples, ablation=ablation)  # type: ignore[arg-type]
    slow = EdgeAblator(model, examples, ablation=ablation)  # type: ignore[arg-type]
    circuits = [frozenset(fast.universe), *small_circuits(fast.graph, 5), frozenset[str]()]
    _, small = fast._keys([fast._cut(c) for c in circuits])
    assert len(small) > 3
    found = fast.run(circuits)["logit_difference"]
    monkeypatch.setattr(EdgeAblator, "_shares", False)
    wanted = slow.run(circuits)["logit_difference"]
    np.testing.assert_allclose(found, wanted, atol=5e-5)
    assert np.ptp(wanted, axis=0).min() > 1e-3


def test_circuits_that_agree_upstream_share_what_lies_there(model: Model) -> None:
    reading = Reading.of(model)
    graph = reading.graph
    plan = SharedPlan(reading)
    edges = ("embed->a0.h1<v>", "a0.h1->a1.h2<v>", "a1.h2->logits", "a0.h1->m1", "m1->logits")
    for missing in ("", "a0.h1->a1.h2<v>", "m1->logits"):
        plan.add(graph.mask([e for e in edges if e != missing]))
    first, second = plan.stages
    assert first.rows == 1 and list(first.heads) == [1] and not first.mlp.numbers
    # with and without its value; the MLP does not see the difference
    assert len(second.heads[2]) == 2 and len(second.mlp.numbers) == 1 and plan.rows == 2
    assert len(plan.logits.numbers) == 3 and plan.circuits == [0, 1, 2]


def test_needless_edges_are_those_that_are_not_connected() -> None:
    graph = ComponentGraph.of(load(build("llama")))
    source = np.random.default_rng(3)
    masks = np.stack([graph.possible & (source.random(graph.possible.shape) < 0.1)] * 4)
    masks &= source.random(masks.shape) < np.linspace(0.2, 1, 4)[:, None, None]
    found = Pruning(graph, changes_only=True)(masks)
    wanted = np.stack([graph.connected(mask) for mask in masks])
    assert (found == wanted).all() and found.any() and (found != masks).any()
    # where a source that nothing reaches writes something else than ablated, its edges stay
    leading = Pruning(graph, changes_only=False)(masks)
    assert (found <= leading).all() and (leading <= masks).all() and (found != leading).any()


def test_a_circuit_is_run_once(model: Model, examples: Examples) -> None:
    ran = EdgeAblator(model, examples)
    kept = frozenset({"embed->a0.h1<v>", "a0.h1->logits"})
    first = ran.run([kept, frozenset(ran.universe)], ["logit_difference", "accuracy"])
    ran._run_new = None  # type: ignore[assignment, method-assign]
    with pytest.raises(TypeError):
        ran.run([frozenset({"embed->logits"})])
    del ran._run_new
    needless = kept | {"a0.h0->logits"}
    again = ran.run([frozenset(ran.universe), needless, kept], ["accuracy", "logit_difference"])
    for name, rows in again.items():
        np.testing.assert_array_equal(rows[1], rows[2])
        np.testing.assert_array_equal(rows[:2], first[name][::-1])


@pytest.mark.parametrize("method", ["attribution", "exact", "eap", "eap-ig", "exact-edges"])
def test_one_search_serves_all_permutations(model: Model, examples: Examples, method: str) -> None:
    search = search_by_name(method, "logit_difference", "resample")
    fast = permuted_scores(model, examples, search, (1, 2))
    slow = permuted_scores(model, examples, lambda m, e: search(m, e), (1, 2))
    for one, two in zip(fast, slow, strict=True):
        np.testing.assert_allclose(one.mean, two.mean, atol=1e-5)  # type: ignore[attr-defined]
        assert np.abs(two.mean).max() > 1e-3  # type: ignore[attr-defined]


@pytest.mark.parametrize(("method", "level"), [("eap", "role-edge"), ("attribution", "neuron")])
def test_one_search_serves_all_permutations_of_finer_parts(
    model: Model, examples: Examples, method: str, level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = search_by_name(method, "logit_difference", "resample", level=level)
    slow = list(permuted_scores(model, examples, lambda m, e: search(m, e), (1, 2)))
    searched = []

    def counted(self: NamedSearch, one: Model, train: Examples) -> Ranked:
        searched.append(self)
        return found(self, one, train)

    found = NamedSearch.__call__
    monkeypatch.setattr(NamedSearch, "__call__", counted)
    fast = list(permuted_scores(model, examples, search, (1, 2)))
    assert searched == [search]
    for one, two in zip(fast, slow, strict=True):
        assert level_of(one) == level_of(two) == level
        np.testing.assert_allclose(one.mean, two.mean, atol=1e-5)  # type: ignore[attr-defined]
        assert np.abs(two.mean).max() > 1e-3  # type: ignore[attr-defined]


def test_permuted_answers_turn_the_sign(
    model: Model, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert turns_sign("logit_difference", examples)
    assert not turns_sign("probability_difference", examples)
    circuits = [frozenset({"embed->logits"}), frozenset(ComponentGraph.of(model).edges)]

    def values() -> Iterator[np.ndarray]:
        return permuted_values(
            lambda e: runner(model, e, "edge"), examples, "logit_difference", circuits, (1, 2)
        )

    fast = list(values())
    monkeypatch.setattr(permuting, "turns_sign", lambda *_: False)
    np.testing.assert_allclose(fast, list(values()), atol=1e-5)
    swapped = [e.answers != p.answers for e, p in zip(examples, permute(examples, 1), strict=True)]
    assert 0.3 < np.mean(swapped) < 0.7


def test_null_circuits_are_connected_and_as_large(model: Model) -> None:
    graph = ComponentGraph.of(model)
    order = np.random.default_rng(2).permutation(len(graph.edges))
    ranking = [graph.edges[int(i)] for i in order]
    kept = of_size(ranking, 5, graph)
    assert len(kept) >= 5 and int(graph.connected(graph.mask(kept)).sum()) == len(kept)
    last = max(ranking.index(e) for e in kept)
    assert graph.connected(graph.mask(ranking[:last])).sum() < 5
    assert of_size(ranking, 5, None) == frozenset(ranking[:5])


def test_null_circuits_of_edges_at_places_are_connected_by_place(
    model: Model, examples: Examples
) -> None:
    graph = graph_at(model, "role-edge", examples=examples)
    assert graph is not None and graph.places
    order = np.random.default_rng(2).permutation(len(graph.edges))
    ranking = [graph.edges[int(i)] for i in order]
    kept = of_size(ranking, 5, graph)
    assert len(kept) >= 5 and frozenset(graph.named(graph.connected(graph.mask(kept)))) == kept
    last = max(ranking.index(e) for e in kept)
    assert graph.connected(graph.mask(ranking[:last])).sum() < 5


def test_edges_at_places_share_no_passes(model: Model, examples: Examples) -> None:
    few = examples[:2]
    placed, plain = EdgeAblator(model, few, split="role"), EdgeAblator(model, few)
    edges = frozenset({"embed->a0.h1<v>", "a0.h1->a1.h2<v>", "a1.h2->logits"})
    whole = frozenset(e for e in placed.universe if e.partition("@")[0] in edges)
    assert len(whole) > len(edges)
    assert not placed._keys([placed._cut(whole)])[1] and plain._keys([plain._cut(edges)])[1]
    metrics: list[str | Metric] = ["logit_difference", metric("accuracy")]
    found, wanted = placed.run([whole, whole], metrics), plain.run([edges, edges], metrics)
    for name in ("logit_difference", "accuracy"):
        np.testing.assert_allclose(found[name], wanted[name], atol=5e-5)


def test_every_level_has_a_default_finder(model: Model, examples: Examples) -> None:
    levels = ("node", "neuron", "edge", "role-edge")
    found = [default_finder(model, level, examples=examples) for level in levels]
    assert found == ["exact", "attribution", "exact-edges", "exact-edges"]
    with pytest.raises(ConfigError, match="depends on the prompts"):
        default_finder(model, "role-edge")
    with pytest.raises(UnknownNameError, match="edge"):
        default_finder(model, "edges")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="scores no role-edges"):
        search_by_name("acdc", "logit_difference", "resample", level="role-edge")
    with pytest.raises(ConfigError, match="scores no latents"):
        search_by_name("contextual-decomposition", "logit_difference", "resample", level="latent")


def test_the_nulls_of_a_verdict_alone_are_cut_as_elsewhere(
    model: Model, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twins and permutations have connected circuits at least as large as the circuit."""
    sizes: list[tuple[int, int, bool]] = []

    def watched(ranking: Sequence[str], size: int, graph: ComponentGraph | None) -> frozenset[str]:
        assert graph is not None
        kept = of_size(ranking, size, graph)
        sizes.append((size, len(kept), connected(kept, graph) == kept))
        return kept

    monkeypatch.setattr(nulls, "of_size", watched)
    monkeypatch.setattr(briefly, "can_reach_a_grade", lambda *_: True)
    behavior = quote_closing(40).prepare(model)
    found = brief_verdict(model, behavior, "eap", nulls=2)
    assert found.nulls is not None and found.circuit.level == "edge"
    assert len(sizes) == len(found.nulls.twins) + len(found.nulls.permuted) > 0
    assert all(size == len(found.circuit.parts) <= kept and ok for size, kept, ok in sizes)
