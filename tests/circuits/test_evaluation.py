"""Curves, areas and completeness: figures by hand, properties, and planted circuits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.circuits.planted import planted_model
from tests.small import code_model

from microtome.behaviors import Examples, quote_closing
from microtome.circuits import Circuit, completeness, faithfulness_curve, find
from microtome.circuits.judging.areas import (
    FRACTIONS,
    area,
    areas,
    log_area,
    nominal_sizes,
    sizes_of,
)
from microtome.circuits.judging.evaluation import curve, knocked_out
from microtome.circuits.judging.levels import AGREEMENT, KL, distances, runner, universe_of
from microtome.circuits.results import FaithfulnessCurve
from microtome.core.resampling import cluster_function_bootstrap
from microtome.core.stats import cluster_bootstrap, cluster_ratio_bootstrap
from microtome.errors import ConfigError, EmptyDataError, ShapeError, UnknownNameError
from microtome.tracing.model import Model
from microtome.tracing.opening import load

PLANTED = ("a0.h1", "a1.h2", "m1")


@pytest.fixture(scope="module")
def model() -> Model:
    return planted_model(PLANTED)


@pytest.fixture(scope="module")
def examples(model: Model) -> Examples:
    # one direction only, so that effects do not cancel in a model that knows nothing
    found = quote_closing(100).prepare(model).split("train")
    return found.where(lambda e: e.features["opening quote"] == "single")


def test_areas_are_trapezoids_by_hand() -> None:
    x = np.array([0.001, 0.5, 1.0])
    y = np.array([[0.0, 0.5, 1.0]])
    by_hand = 0.499 * (0.0 + 0.5) / 2 + 0.5 * (0.5 + 1.0) / 2
    assert area(x, y)[0] == pytest.approx(by_hand)
    # from 0 the first segment is cut at 0.001, where the line has reached 0.001
    assert area(np.array([0.0, 1.0]), np.array([[0.0, 1.0]]))[0] == pytest.approx(
        0.999 * (0.001 + 1.0) / 2
    )
    # equal neighbors span nothing
    assert area(np.array([0.0, 0.0, 1.0]), np.array([[5.0, 0.0, 1.0]]))[0] == pytest.approx(
        0.999 * (0.001 + 1.0) / 2
    )


def test_log_area_is_a_mean_over_decades() -> None:
    shares = np.array([0.001, 0.01, 0.1, 1.0])
    gap = np.array([[1.0, 1.0, 0.0, 0.0]])
    assert log_area(shares, gap, 1e-9)[0] == pytest.approx((1 + 0.5 + 0) / 3)
    # ten parts: nothing below one part can be told apart, so the mean starts at 0.1
    assert log_area(np.array([0.0, 0.1, 1.0]), np.array([[1.0, 1.0, 0.0]]), 0.1)[
        0
    ] == pytest.approx(0.5)


def test_random_scores_the_figures_that_the_reference_states() -> None:
    """With f = 0 up to 50 % and a line to 1, CPR is .25 and CMD .75."""
    total = 1000
    sizes = sizes_of(total)
    f = np.clip((np.array(sizes) / total - 0.5) * 2, 0, 1)
    full, empty = np.full(8, 3.0), np.full(8, 1.0)
    values = empty + f[:, None] * (full - empty)
    found = areas(sizes, sizes, total, values, full, empty, np.arange(8), sure_size=total)
    assert found.cpr.value == pytest.approx(0.25, abs=1e-3)
    assert found.cmd.value == pytest.approx(0.75, abs=1e-3)
    assert found.nominal_cpr.value == pytest.approx(found.cpr.value)
    assert found.size.value == next(s for s, v in zip(sizes, f, strict=True) if v >= 0.9)
    # the items agree, so no resampling moves anything
    assert found.cmd.low == pytest.approx(found.cmd.high)


def test_the_kept_share_is_the_axis() -> None:
    """Edges dropped because they are on no path move the curve to the left."""
    total = 1000
    sizes = sizes_of(total)
    kept = [s if s in (0, total) else s // 2 for s in sizes]
    full, empty = np.ones(4), np.zeros(4)
    values = np.array([np.full(4, float(s >= 100)) for s in sizes])
    found = areas(sizes, kept, total, values, full, empty, np.arange(4), sure_size=50)
    half = areas(sizes, sizes, total, values, full, empty, np.arange(4), sure_size=100)
    assert found.cmd.value < half.cmd.value
    assert found.nominal_cmd.value == pytest.approx(half.cmd.value)
    assert found.size.value == 50 and half.size.value == 100


def test_sizes_hold_the_fractions_of_mib() -> None:
    assert nominal_sizes(100) == (0, 0, 0, 1, 2, 5, 10, 20, 50, 100)
    assert nominal_sizes(32491)[:3] == (32, 64, 162)
    sizes = sizes_of(32491)
    assert {int(f * 32491) for f in FRACTIONS} <= set(sizes) and sizes[0] == 0
    assert sizes_of(1) == (0, 1)


def test_a_function_of_means_agrees_with_the_bootstraps_of_one() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(2, 40)) + np.array([[1.0], [3.0]])
    clusters = np.repeat(np.arange(10), 4)
    mean, ratio = cluster_function_bootstrap(
        values, clusters, lambda m: np.stack([m[:, 0], m[:, 0] / m[:, 1]], axis=1)
    )
    alone = cluster_bootstrap(values[0], clusters)
    assert (mean.value, mean.low, mean.high) == pytest.approx((alone.value, alone.low, alone.high))
    both = cluster_ratio_bootstrap(values[0], values[1], clusters)
    assert (ratio.low, ratio.high) == pytest.approx((both.low, both.high))
    (single,) = cluster_function_bootstrap(values[:1], np.zeros(40), lambda m: m)
    assert single.low == -np.inf
    with pytest.raises(ShapeError):
        cluster_function_bootstrap(values, clusters[:3], lambda m: m)
    with pytest.raises(EmptyDataError):
        cluster_function_bootstrap(np.zeros((1, 0)), [], lambda m: m)
    with pytest.raises(ShapeError):
        cluster_function_bootstrap([[np.nan]], ["a"], lambda m: m)


def test_a_curve_along_the_planted_parts(model: Model, examples: Examples, tmp_path: Path) -> None:
    found = faithfulness_curve(model, examples, PLANTED)
    frame = found.to_frame().set_index("size")
    assert frame.loc[0, "faithfulness"] == 0.0
    assert frame.loc[10, "faithfulness"] == pytest.approx(1.0) and found.total == 10
    assert found.kept == found.sizes
    three = found.sizes.index(3)
    assert found.faithfulness[three].value == pytest.approx(1.0, abs=1e-4)
    assert found.areas is not None and found.areas.size.value <= 3
    ideal = faithfulness_curve(model, examples, find(model, examples, method="exact").ranking())
    backward = faithfulness_curve(model, examples, universe_of(model, "node")[::-1])
    assert ideal.areas is not None and backward.areas is not None
    assert ideal.areas.log_cmd.value < backward.areas.log_cmd.value + 1e-9
    loaded = FaithfulnessCurve.load(found.save(tmp_path / "c.json"))
    assert loaded.areas is not None and loaded.areas.cmd == found.areas.cmd
    plain = curve(model, examples, PLANTED, (0, 3))
    assert plain.areas is None and plain.faithfulness[1] == found.faithfulness[three]


def test_divergence_and_agreement(model: Model, examples: Examples) -> None:
    metrics = distances(model, examples)
    ran = runner(model, examples)
    found = ran.run([frozenset(ran.universe), frozenset(PLANTED), frozenset()], metrics)
    np.testing.assert_allclose(found[KL][:2], 0.0, atol=1e-4)
    assert (found[AGREEMENT][:2] == 1.0).all()
    assert found[KL][2].mean() > 1e-3
    # slow: the divergence of one item from logits
    base = model.trace(examples.clean[:1]).last()[0].double().log_softmax(-1)
    from microtome.tracing.sites import at

    other = model.trace(examples.corrupt[:1], capture=["attn.z", "mlp.out"])
    changes = [at(f"blocks.{n}.{s}").patch(other) for n in range(2) for s in ("attn.z", "mlp.out")]
    changed = (
        model.trace(examples.clean[:1], interventions=changes).last()[0].double().log_softmax(-1)
    )
    by_hand = float((base.exp() * (base - changed)).sum())
    assert found[KL][2][0] == pytest.approx(by_hand, abs=1e-5)


def test_the_planted_circuit_is_complete_and_half_of_it_is_not(
    model: Model, examples: Examples
) -> None:
    universe = universe_of(model, "node")
    whole = completeness(model, examples, Circuit(PLANTED, universe, "planted"), random_sets=5)
    assert whole.worst.value == pytest.approx(0.0, abs=1e-4)
    assert whole.greedy == (False,) * 5 + (True,) * 3
    assert all(set(k) <= set(PLANTED) and k for k in whole.sets)
    none = completeness(model, examples, Circuit((), universe, "none"))
    assert none.sets == () and none.mean == 0.0 and none.worst.value == 0.0
    with pytest.raises(ConfigError):
        completeness(model, examples, Circuit((), universe, "none"), random_sets=-1)


def test_a_circuit_that_lacks_backups_is_not_complete() -> None:
    model = load("python-code")
    examples = quote_closing(60).prepare(model).split("train")
    ranking = find(model, examples).ranking()
    small = Circuit(tuple(ranking[:4]), universe_of(model, "node"), "first four")
    found = completeness(model, examples, small, random_sets=6, greedy_sets=2)
    assert found.worst.low > 0.05 and found.mean <= found.worst.value + 1e-9
    # by hand, for the set that was found to be the worst
    ran = runner(model, examples)
    everything = frozenset(ran.universe)
    k = frozenset(found.sets[found.difference.index(found.worst)])
    means = ran.run(
        [everything, frozenset(), small.kept - k, everything - k], ["logit_difference"]
    )["logit_difference"].mean(1)
    assert found.worst.value == pytest.approx(
        abs((means[2] - means[3]) / (means[0] - means[1])), rel=1e-6
    )
    again = completeness(model, examples, small, random_sets=6, greedy_sets=2)
    assert again.to_frame().equals(found.to_frame())


def test_edges_are_knocked_out_by_source() -> None:
    edges = ("embed->m0", "embed->logits", "m0->logits")
    circuit = Circuit(("m0->logits",), edges, "x", level="edge")
    assert knocked_out(circuit) == {"embed": frozenset(edges[:2])}
    assert knocked_out(Circuit(("m0",), ("m0", "m1"), "x")) == {"m1": frozenset({"m1"})}


def test_unknown_parts_and_levels(examples: Examples) -> None:
    model = code_model()
    with pytest.raises(UnknownNameError, match="a0.h1"):
        faithfulness_curve(model, examples, ["a0.h11"])
    with pytest.raises(UnknownNameError, match="level"):
        runner(model, examples, "nodes")  # type: ignore[arg-type]
