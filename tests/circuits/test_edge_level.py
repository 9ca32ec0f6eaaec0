"""The same judging at the level of edges: properties, stability, nulls and the verdict."""

from __future__ import annotations

import numpy as np
import pytest
from tests.circuits.planted import planted_model

from microtome.behaviors import Examples, quote_closing
from microtome.circuits import (
    Circuit,
    EdgeScores,
    completeness,
    evaluate,
    faithfulness_curve,
    judge,
    second_opinion,
    takeovers,
)
from microtome.circuits.edges.attribution import edge_attribution
from microtome.circuits.graph import ComponentGraph
from microtome.circuits.judging.levels import AGREEMENT, KL, distances, runner, universe_of
from microtome.tracing.model import Model

PLANTED = ("a0.h1", "a1.h2", "m1")


@pytest.fixture(scope="module")
def model() -> Model:
    return planted_model(PLANTED)


@pytest.fixture(scope="module")
def examples(model: Model) -> Examples:
    found = quote_closing(60).prepare(model).split("train")
    return found.where(lambda e: e.features["opening quote"] == "single")


@pytest.fixture(scope="module")
def circuit(model: Model) -> Circuit:
    """All edges between parts that write and what they read; no other edge carries anything."""
    graph = ComponentGraph.of(model)
    parts = tuple(
        e for e, (u, v) in zip(graph.edges, graph, strict=True)
        if u in ("embed", *PLANTED) and (v.split("<")[0] in PLANTED or v == "logits")
    )  # fmt: skip
    return Circuit(parts, graph.edges, "planted", level="edge")


def finder(model: Model, examples: Examples) -> EdgeScores:
    return edge_attribution(model, examples)


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_all_edges_are_the_model_and_none_is_nothing(
    model: Model, examples: Examples, ablation: str
) -> None:
    universe = universe_of(model, "edge")
    whole = evaluate(
        model, examples, Circuit(universe, universe, "all", level="edge"),
        ablation=ablation,  # type: ignore[arg-type]
    )  # fmt: skip
    assert whole.faithfulness.value == pytest.approx(1.0)
    assert whole.moved.value == pytest.approx(1.0)
    none = evaluate(
        model, examples, Circuit((), universe, "none", level="edge"),
        ablation=ablation,  # type: ignore[arg-type]
    )  # fmt: skip
    assert none.faithfulness.value == 0.0
    far = runner(model, examples, "edge", ablation=ablation).run(  # type: ignore[arg-type]
        [frozenset(universe)], distances(model, examples)
    )
    assert (far[AGREEMENT] == 1).all() and np.abs(far[KL]).max() < 1e-4


def test_the_planted_edges_are_sufficient_necessary_and_complete(
    model: Model, examples: Examples, circuit: Circuit
) -> None:
    found = evaluate(model, examples, circuit)
    assert found.faithfulness.value == pytest.approx(1.0, abs=1e-3)
    assert found.moved.value == pytest.approx(1.0, abs=1e-3)
    assert completeness(
        model, examples, circuit, random_sets=3, greedy_sets=1
    ).worst.value == pytest.approx(0.0, abs=1e-2)
    outside = takeovers(model, examples, circuit)
    assert all(abs(v) < 1e-2 for pair in outside.values() for v in pair)


def test_the_curve_counts_connected_edges_only(model: Model, examples: Examples) -> None:
    scores = finder(model, examples)
    found = faithfulness_curve(model, examples, scores.ranking(), level="edge")
    assert found.total == len(scores.universe) and found.areas is not None
    assert all(k <= s for k, s in zip(found.kept, found.sizes, strict=True))
    # the strongest edge alone does not lead anywhere unless it is the direct path
    graph = ComponentGraph.of(model)
    for size, kept in zip(found.sizes, found.kept, strict=True):
        mask = graph.mask(scores.ranking()[:size])
        assert kept == int(graph.connected(mask).sum())
    assert found.faithfulness[-1].value == pytest.approx(1.0)


def test_the_tests_of_shi_find_needless_edges(
    model: Model, examples: Examples, circuit: Circuit
) -> None:
    needless = "a0.h0->logits"
    padded = Circuit(
        tuple(e for e in circuit.universe if e in circuit.kept or e == needless),
        circuit.universe, "padded", level="edge",
    )  # fmt: skip
    found = second_opinion(model, examples, padded, additions=40, permutations=99)
    assert needless in found.needless
    assert found.quantiles["embed->logits"] >= 0.0 and len(found.minimality) == len(padded)


def test_edges_are_judged_to_the_verdict(model: Model) -> None:
    behavior = quote_closing(60)
    scores = finder(model, behavior.prepare(model).split("train"))
    found = judge(model, behavior, scores, finder="eap", nulls=1, gate=False, orders=2)
    assert found.circuit.level == "edge" and found.verdict is not None
    assert found.stability is not None and found.stability.orders == 2
    assert "edges" in found.verdict.sentence
    # a model that knows nothing is not explained
    assert found.verdict.grade == "not established"
