"""What differs between two conditions: relabeling by hand, its level, its power, and models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.circuits.planted import planted_model
from tests.small import code_model, save_model
from typer.testing import CliRunner

from microtome.behaviors import Behavior, quote_closing
from microtome.circuits import Circuit, Versus, versus
from microtome.circuits.edges.attribution import edge_attribution
from microtome.circuits.judging.cluster_sums import ClusterSums
from microtome.circuits.judging.contrasts import Labeled, _intervals, _null
from microtome.cli.app import app
from microtome.core.seeds import rng
from microtome.core.stats import benjamini_hochberg
from microtome.errors import ConfigError
from microtome.tracing.model import Model
from microtome.tracing.opening import load

PARTS = tuple(f"m{i}" for i in range(12))


def sums(values: np.ndarray, clusters: range) -> ClusterSums:
    """Two examples for each cluster."""
    return ClusterSums(
        PARTS[: values.shape[1]], tuple(f"c{c:02d}" for c in clusters), values * 2.0,
        np.full(len(clusters), 2.0),
    )  # fmt: skip


def test_exchanging_all_labels_exchanges_the_means() -> None:
    random = rng(0, "values")
    a, b = sums(random.normal(size=(3, 4)), range(3)), sums(random.normal(size=(2, 4)), range(1, 3))
    table = Labeled.of(a, b)
    assert table.paired.tolist() == [False, True, True]
    as_is = table.means(np.zeros((1, 3), dtype=int))
    np.testing.assert_allclose(as_is[0][0], a.mean)
    np.testing.assert_allclose(as_is[1][0], b.mean)
    swapped = table.means(np.ones((1, 3), dtype=int))
    np.testing.assert_allclose(swapped[0][0], b.mean)
    np.testing.assert_allclose(swapped[1][0], a.mean)
    # only the first pair: by hand
    one = table.means(np.array([[0, 1, 0]]))[0][0]
    by_hand = (a.sums[0] + b.sums[0] + a.sums[2]) / 6
    np.testing.assert_allclose(one, by_hand)
    np.testing.assert_allclose(table.pooled(), (a.sums.sum(0) + b.sums.sum(0)) / 10)


def test_unpaired_clusters_keep_how_many_stand_on_each_side() -> None:
    random = rng(0, "values")
    a, b = sums(random.normal(size=(5, 2)), range(5)), sums(random.normal(size=(3, 2)), range(5, 8))
    table = Labeled.of(a, b)
    for seed in range(20):
        sides = table.exchanged(rng(seed, "x"))
        on_a = [c for c in range(8) if (table.sizes[sides[c], c] > 0)]
        assert len(on_a) == 5


@pytest.mark.parametrize("shared", [True, False])
def test_the_level_and_the_power(shared: bool) -> None:
    """Conditions alike: p below 5 % in 5 %, a discovery in 5 % of draws at most; one part apart."""
    below, any_found, hits = [], 0, 0
    circuits = [Circuit(PARTS[:3], PARTS, "x")] * 2
    for run in range(40):
        random = rng(run, "level")
        frame = random.normal(size=(24, 12)) * 2
        a = sums(frame + random.normal(size=(24, 12)), range(24))
        rest = range(24) if shared else range(24, 48)
        base = frame if shared else random.normal(size=(24, 12)) * 2
        b_values = base + random.normal(size=(24, 12))
        for effect in (0.0, 4.0) if run < 15 else (0.0,):
            moved = b_values.copy()
            moved[:, 4] += effect
            table = Labeled.of(a, sums(moved, rest))
            means = tuple(m[0] for m in table.means(table.as_labeled()[None]))
            chosen = np.arange(12)
            _, p, _ = _null(table, circuits, chosen, means, 299, run)  # type: ignore[arg-type]
            found = benjamini_hochberg(p, 0.05)
            if effect:
                hits += bool(found[4])
            else:
                below += (p < 0.05).tolist()
                any_found += bool(found.any())
    assert np.mean(below) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(below))
    assert any_found <= 6, "5 % of 40 and three standard errors"
    assert hits == 15


def test_pairs_share_their_draws_in_the_interval() -> None:
    """What all items of a frame have in common cancels."""
    random = rng(0, "pairs")
    frame = random.normal(size=(20, 2)) * 10
    table = Labeled.of(sums(frame + 1.0, range(20)), sums(frame, range(20)))
    for interval in _intervals(table, np.arange(2), 500, 0):
        assert interval.low == pytest.approx(1.0) and interval.high == pytest.approx(1.0)


@pytest.fixture(scope="module")
def model() -> Model:
    return load("python-code")


def halves(behavior: Behavior, quote: str) -> Behavior:
    items = tuple(i for i in behavior.items if i.features["opening quote"] == quote)
    return replace(behavior, name=f"{quote} quotes", items=items)


def test_a_condition_does_not_differ_from_itself(model: Model, tmp_path: Path) -> None:
    behavior = quote_closing(60)
    found = versus(model, behavior, behavior, draws=800)
    assert not found.differs.any() and found.overlap == 1.0 and found.overlap_p == 1.0
    assert found.only_a == found.only_b == () and found.shared == found.circuit_a.parts
    assert found.paired == found.clusters and (found.p == 1.0).all()
    assert found.across["A in B"] == found.across["B in B"]
    assert "No part" in found.sentence
    loaded = Versus.load(found.save(tmp_path / "v.json"))
    assert loaded.to_frame().equals(found.to_frame())


def test_conditions_that_ask_for_opposite_answers_differ(model: Model) -> None:
    behavior = quote_closing(60)
    found = versus(model, behavior, behavior.invert(), draws=800)
    # the support of every part turns around: twice the support is the difference
    np.testing.assert_allclose(found.support_a, -found.support_b, atol=1e-4)
    assert found.differs.any() and "parts carry more in quote-closing" in found.sentence
    frame = found.to_frame()
    assert frame["difference"].abs().is_monotonic_decreasing
    assert set(frame["circuit"]) <= {"both", "A", "B", ""}


def test_edges_are_contrasted_too() -> None:
    model = planted_model(["a0.h1", "a1.h2", "m1"])
    behavior = quote_closing(60)
    found = versus(
        model, halves(behavior, "single"), halves(behavior, "double"), finder=edge_attribution,
        draws=400, most=20,
    )  # fmt: skip
    assert found.circuit_a.level == "edge" and len(found.parts) == 20
    assert all("->" in p for p in found.parts)


def test_settings(model: Model) -> None:
    behavior = quote_closing(40)
    with pytest.raises(ConfigError, match="draws=0"):
        versus(model, behavior, behavior, draws=0)
    with pytest.raises(ConfigError, match="take more draws, 400"):
        versus(model, behavior, behavior, draws=300, most=20)
    with pytest.raises(ConfigError, match="one unit"):
        versus(model, behavior, replace(behavior, metric="loss"))


def test_the_command(tmp_path: Path) -> None:
    folder = save_model(code_model(), tmp_path / "model")
    command = ["circuit", "versus", str(folder), "quote-closing", "bracket-closing", "--n", "40"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "Shared:" in shown.output and "difference" in shown.output
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert len(found["parts"]) == 10 and found["a"] == "quote-closing" and found["sentence"]
