"""The tests of Shi et al.: rates of false positives, power, planted and random circuits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from tests.circuits.planted import planted_model

from microtome.behaviors import Examples, quote_closing
from microtome.circuits import Circuit, second_opinion
from microtome.circuits.graph import ComponentGraph, split_edge
from microtome.circuits.hypotheses.second_opinion import (
    by_cluster,
    equivalence,
    independence,
    minimality_p,
    random_path,
)
from microtome.circuits.judging.levels import universe_of
from microtome.core.seeds import rng
from microtome.errors import ConfigError, ShapeError
from microtome.tracing.model import Model

PLANTED = ("a0.h1", "a1.h2", "m1")
RUNS = 400


@pytest.fixture(scope="module")
def model() -> Model:
    return planted_model(PLANTED)


@pytest.fixture(scope="module")
def examples(model: Model) -> Examples:
    # one direction only, so that effects do not cancel in a model that knows nothing
    found = quote_closing(160).prepare(model).split("train")
    return found.where(lambda e: e.features["opening quote"] == "single")


def rate(p_values: list[float]) -> float:
    return float(np.mean(np.array(p_values) < 0.05))


def test_equivalence_keeps_its_level_at_the_border_and_inside() -> None:
    random = rng(0, "level")
    inside = [equivalence(random.normal(size=60), 0.1)[0] for _ in range(RUNS)]
    # at the border: positive with probability 0.6
    border = [
        equivalence(np.where(random.random(60) < 0.6, 1.0, -1.0), 0.1)[0] for _ in range(RUNS)
    ]
    far = [equivalence(np.where(random.random(60) < 0.9, 1.0, -1.0), 0.1)[0] for _ in range(50)]
    assert rate(inside) <= 0.03
    # three standard errors above 5 %
    assert rate(border) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / RUNS)
    assert rate(far) > 0.9


def test_the_reverse_test_keeps_its_level() -> None:
    random = rng(1, "level")
    border = [
        equivalence(np.where(random.random(300) < 0.6, 1.0, -1.0), 0.1)[1] for _ in range(RUNS)
    ]
    same = [equivalence(np.where(random.random(900) < 0.5, 1.0, -1.0), 0.1)[1] for _ in range(50)]
    assert rate(border) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / RUNS)
    assert rate(same) > 0.9


def test_equivalence_by_hand() -> None:
    """Five of five up: the chance of all up or all down with P = 0.6."""
    p, reverse, share = equivalence(np.ones(5), 0.1)
    assert p == pytest.approx(0.6**5 + 0.4**5) and share == 1.0
    assert reverse == pytest.approx(1.0)
    assert equivalence(np.zeros(5), 0.1) == (1.0, 0.0, 0.5)
    assert equivalence(np.array([1.0, -1.0, 0.0]), 0.1)[2] == 0.5


def test_independence_keeps_its_level_and_sees_a_nonlinear_dependence() -> None:
    random = rng(2, "level")
    null = [
        independence(random.normal(size=25), random.normal(size=25), permutations=99, seed=i)[0]
        for i in range(RUNS)
    ]
    assert rate(null) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / RUNS)
    x = random.normal(size=80)
    assert independence(x, x**2 + 0.1 * random.normal(size=80))[0] < 0.01
    assert independence(np.ones(5), np.arange(5.0)) == (1.0, 0.0)
    with pytest.raises(ShapeError):
        independence(np.ones(3), np.ones(4))


def test_independence_by_hand() -> None:
    """The criterion is the trace of K H L H over (n - 1)^2."""
    random = rng(3, "hand")
    x, y = random.normal(size=6), random.normal(size=6)
    h = np.eye(6) - 1 / 6

    def kernel(v: np.ndarray) -> np.ndarray:
        d = np.abs(np.subtract.outer(v, v))
        return np.exp(-(d**2) / (2 * np.median(d[d > 0]) ** 2))

    by_hand = np.trace(kernel(x) @ h @ kernel(y) @ h) / 25
    assert independence(x, y, permutations=3)[1] == pytest.approx(by_hand)


def test_minimality_is_a_binomial_test_with_its_level() -> None:
    added = np.arange(100.0)
    assert minimality_p(79.5, added, 0.9) == pytest.approx(
        binomtest(80, 100, 0.9, alternative="less").pvalue
    )
    assert minimality_p(1.0, np.zeros(0), 0.9) == 1.0
    random = rng(4, "level")
    # a part that outdoes exactly nine in ten
    null = [minimality_p(0.9, random.random(100), 0.9) for _ in range(RUNS)]
    assert rate(null) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / RUNS)


def test_the_planted_circuit_is_not_rejected(model: Model, examples: Examples) -> None:
    universe = universe_of(model, "node")
    found = second_opinion(model, examples, Circuit(PLANTED, universe, "planted"))
    # the parts outside write nothing, so circuit and model differ by rounding only
    assert found.quantiles == dict.fromkeys(PLANTED, 1.0)
    assert found.needless == () and min(found.minimality.values()) > 0.99
    # without its parts nothing of the clean prompt is left but the embedding
    assert found.clusters == len(np.unique(examples.clusters))
    assert set(found.to_frame()["null"]) and len(found.to_frame()) == 4


def test_needless_parts_are_named(model: Model, examples: Examples) -> None:
    universe = universe_of(model, "node")
    padded = Circuit((*PLANTED, "a0.h0", "m0"), universe, "padded")
    found = second_opinion(model, examples, padded)
    assert set(found.needless) == {"a0.h0", "m0"}


def test_random_circuits_are_told_from_the_model(model: Model, examples: Examples) -> None:
    universe = universe_of(model, "node")
    found = second_opinion(model, examples, Circuit(("a0.h0", "m0"), universe, "wrong"))
    assert found.independence < 0.05, "the complement is the model itself"
    half = second_opinion(model, examples, Circuit(("a0.h1",), universe, "half"))
    assert half.equivalence < 0.05 or half.outdoes not in (0.0, 1.0)


def test_clusters_are_the_unit() -> None:
    values = by_cluster(np.array([1.0, 3.0, 5.0]), np.array(["b", "b", "a"]))
    assert values.tolist() == [5.0, 2.0]


def test_random_paths_lead_from_the_embedding_to_the_logits(model: Model) -> None:
    graph = ComponentGraph.of(model)
    for seed in range(20):
        path = random_path(graph, rng(seed, "path"))
        kept = graph.mask(path)
        assert (graph.connected(kept) == kept).all()
        assert {split_edge(e)[0] for e in path} >= {"embed"}


def test_settings(model: Model, examples: Examples) -> None:
    circuit = Circuit((), universe_of(model, "node"), "none")
    for wrong in ({"epsilon": 0.5}, {"quantile": 1.0}, {"additions": 0}, {"permutations": 0}):
        with pytest.raises(ConfigError, match="epsilon"):
            second_opinion(model, examples, circuit, **wrong)  # type: ignore[arg-type]
