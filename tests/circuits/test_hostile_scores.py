"""Metrics, thresholds, sizes and references that make no sense: refused, never turned to scores."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.circuits.slow_edges import tiny_gpt2
from tests.sweeps.test_sweeps import pairs

from microtome.behaviors import Examples
from microtome.behaviors.metrics import LastTokenMetric, custom_metric
from microtome.circuits import EdgeScores, find, stable_edges
from microtome.circuits.judging.evaluation import curve, minimality, takeovers
from microtome.circuits.search.set_scores import set_scores
from microtome.errors import ConfigError, EmptyDataError, MetricError
from microtome.tracing.model import Model
from microtome.tracing.opening import load


@pytest.fixture(scope="module")
def model() -> Model:
    return load(tiny_gpt2())


@pytest.fixture(scope="module")
def scores(model: Model) -> EdgeScores:
    found: EdgeScores = find(model, pairs((6, 7, 8)), method="eap")
    return found


def twice() -> LastTokenMetric:
    """Twice the logit difference of the tests' pairs."""
    return custom_metric("twice", lambda row, e: 2 * (row[11] - row[12]), unit="logits")


@pytest.mark.parametrize("method", ["attribution", "exact", "exact-edges", "eap", "eap-ig"])
def test_every_finder_takes_a_metric_of_ones_own(model: Model, method: str) -> None:
    examples = pairs((6, 7))
    own = find(model, examples, method=method, metric=twice())
    usual = find(model, examples, method=method)
    assert own.metric == "twice"
    np.testing.assert_allclose(own.mean, 2 * usual.mean, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["eap", "acdc", "ugs", "exact-edges", "exact", "attribution"])
def test_a_metric_that_gives_nan_is_refused(model: Model, method: str) -> None:
    nothing = custom_metric("nothing", lambda row, e: row[0] * float("nan"), unit="logits")
    with pytest.raises(MetricError, match="nothing gives NaN for example 0"):
        find(model, pairs((6, 7)), method=method, metric=nothing)


def test_a_gradient_that_is_nan_is_refused(model: Model) -> None:
    cornered = custom_metric("root", lambda row, e: (row[0] - row[0]).sqrt(), unit="logits")
    with pytest.raises(MetricError, match="edges score NaN or infinity"):
        find(model, pairs((6, 7)), method="eap", metric=cornered)


def test_scores_of_a_set_are_finite_too(model: Model, scores: EdgeScores) -> None:
    values = np.zeros(len(scores.universe))
    values[3] = np.inf
    with pytest.raises(MetricError, match=f"the first {scores.universe[3]}"):
        set_scores(
            model, scores.graph, values, n=1, method="m", metric="x", ablation="zero", meaning=""
        )


def test_what_scores_nothing_is_never_stable(scores: EdgeScores) -> None:
    sums = np.zeros_like(scores.cluster_sums)
    sums[:, 5] = 1.0
    found = stable_edges(replace(scores, cluster_sums=sums), edges=3)
    assert found.circuit().parts == (scores.universe[5],)
    assert found.share.sum() == 1.0


def test_no_mean_is_taken_over_nothing(model: Model) -> None:
    examples = pairs((6, 7))
    for method in ("eap", "mask-ig"):
        with pytest.raises(EmptyDataError, match="no examples"):
            find(model, examples, method=method, ablation="mean", reference=examples.take([]))


def test_settings_that_mean_nothing(model: Model, scores: EdgeScores) -> None:
    examples = pairs((6, 7))
    with pytest.raises(ConfigError, match="threshold=nan"):
        scores.select(threshold=float("nan"))
    with pytest.raises(ConfigError, match="ablation='nonsense'"):
        find(model, examples, method="attribution", ablation="nonsense")
    for sizes in ((-1,), (5, 3)):
        with pytest.raises(ConfigError, match="ascending"):
            curve(model, examples, scores.ranking(), sizes, level="edge")
    few = [find(model, examples, method="acdc", thresholds=n).mean for n in (2, np.int64(2))]
    np.testing.assert_array_equal(*few)


def test_arrays_can_be_read_by_those_who_can_read_the_rest(
    scores: EdgeScores, tmp_path: Path
) -> None:
    place = scores.save(tmp_path / "scores.json")
    (arrays,) = tmp_path.glob("*.safetensors")
    assert stat.S_IMODE(arrays.stat().st_mode) == stat.S_IMODE(place.stat().st_mode)
    assert torch.isfinite(torch.as_tensor(EdgeScores.load(place).mean)).all()


def test_shares_of_no_loss_at_all_are_nan(model: Model, scores: EdgeScores) -> None:
    same = Examples(tuple(replace(e, corrupt=e.clean) for e in pairs((6, 7))))
    circuit = scores.select(edges=5)
    lost = minimality(model, same, circuit, metric="accuracy")
    carried = takeovers(model, same, circuit, metric="accuracy")
    assert len(lost) == 5 and np.isnan(list(lost.values())).all()
    assert carried and np.isnan(list(carried.values())).all()
