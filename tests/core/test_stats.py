from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import matthews_corrcoef

from microtome.core.stats import (
    Interval,
    benjamini_hochberg,
    cluster_bootstrap,
    cluster_ratio_bootstrap,
    cluster_standard_error,
    matthews,
    permutation_p,
    wilson,
)
from microtome.errors import ConfigError, EmptyDataError, ShapeError


def sample(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values with a shared effect per cluster, and their cluster labels."""
    stream = np.random.default_rng(seed)
    clusters = np.arange(n) % k
    return stream.normal(size=n) + 3 * stream.normal(size=k)[clusters], clusters


def test_interval_prints_three_significant_digits() -> None:
    assert str(Interval(0.9123, 0.88, 0.94)) == "0.912 [0.88, 0.94]"
    assert str(Interval(12345.6, 999.7, 0.000123456)) == "12346 [1000, 0.000123]"
    assert str(Interval(-0.0, -math.inf, math.inf)) == "0 [-inf, inf]"


def test_interval_to_dict_is_strict_json() -> None:
    found = Interval(0.5, -math.inf, math.inf, n=3, clusters=1, method="m").to_dict()
    assert found["low"] is None and found["high"] is None
    assert found["n"] == 3 and found["level"] == 0.95


def test_interval_within_needs_both_bounds() -> None:
    assert Interval(1.0, 0.85, 1.15).within(0.8, 1.2)
    assert not Interval(1.0, 0.75, 1.15).within(0.8, 1.2)
    assert not Interval(1.0, -math.inf, math.inf).within(0.8, 1.2)
    assert 0.9 in Interval(1.0, 0.85, 1.15)
    assert 0.8 not in Interval(1.0, 0.85, 1.15)


def test_bootstrap_of_independent_values_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, size=400)
    found = cluster_bootstrap(values, np.arange(400), draws=4000)
    error = scipy_stats.sem(values)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert (found.n, found.clusters) == (400, 400)


def test_bootstrap_agrees_with_scipy_for_the_median() -> None:
    values = np.random.default_rng(2).exponential(size=101)
    found = cluster_bootstrap(values, np.arange(101), statistic="median", draws=4000)
    peer = scipy_stats.bootstrap(
        (values,), np.median, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.value == np.median(values)
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=0.05)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_bootstrap_equals_a_slow_loop_over_the_same_draws(statistic: str) -> None:
    from microtome.core.stats import _blocks

    values, clusters = sample(37, 5)
    values = values[: 37 - 1]  # clusters of unequal size
    clusters = clusters[: 37 - 1]
    picks = np.concatenate(list(_blocks(5, 200, 7)))
    function = getattr(np, statistic)
    slow = [function(np.concatenate([values[clusters == c] for c in row])) for row in picks]
    found = cluster_bootstrap(values, clusters, statistic=statistic, seed=7, draws=200)
    assert [found.low, found.high] == pytest.approx(list(np.quantile(slow, [0.025, 0.975])))


def test_clustered_values_give_a_wider_interval_than_independent_ones() -> None:
    values, clusters = sample(300, 6)
    clustered = cluster_bootstrap(values, clusters)
    independent = cluster_bootstrap(values, np.arange(300))
    assert clustered.high - clustered.low > 3 * (independent.high - independent.low)


def test_bootstrap_interval_covers_at_its_level() -> None:
    stream = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        effects = stream.normal(size=40)
        values = np.repeat(effects, 5) + stream.normal(size=200)
        hits += 0.0 in cluster_bootstrap(values, np.repeat(np.arange(40), 5), seed=trial, draws=400)
    assert 0.88 <= hits / 200 <= 0.99


def test_bootstrap_is_the_same_bit_for_bit_and_differs_by_seed() -> None:
    values, clusters = sample(100, 10)
    first = cluster_bootstrap(values, clusters, seed=4)
    assert first == cluster_bootstrap(values, list(clusters), seed=4)
    assert first != cluster_bootstrap(values, clusters, seed=5)


def test_bootstrap_takes_text_labels_whatever_their_names() -> None:
    values, clusters = sample(60, 6)
    named = [f"template-{c}" for c in clusters]
    assert cluster_bootstrap(values, clusters) == cluster_bootstrap(values, named)


def test_one_cluster_bounds_nothing() -> None:
    found = cluster_bootstrap([1.0, 2.0], ["a", "a"])
    assert (found.value, found.low, found.high) == (1.5, -math.inf, math.inf)
    assert cluster_standard_error([1.0, 2.0], ["a", "a"]) == math.inf


def test_bootstrap_of_1000_values_is_fast() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    cluster_bootstrap(values, np.arange(1000))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        cluster_bootstrap(values, np.arange(1000))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5  # about 0.03 s; the margin is for a loaded machine


def test_ratio_bootstrap_of_proportional_values_is_exact() -> None:
    values = np.abs(sample(50, 10)[0]) + 0.1
    found = cluster_ratio_bootstrap(0.75 * values, values, np.arange(50) % 10)
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 0.75, 0.75))


def test_ratio_bootstrap_agrees_with_the_delta_method() -> None:
    stream = np.random.default_rng(5)
    bottom = stream.normal(10.0, 1.0, size=500)
    top = 0.9 * bottom + stream.normal(0.0, 1.0, size=500)
    found = cluster_ratio_bootstrap(top, bottom, np.arange(500), draws=4000)
    ratio = top.mean() / bottom.mean()
    error = np.std(top - ratio * bottom, ddof=1) / math.sqrt(500) / bottom.mean()
    assert found.value == pytest.approx(ratio)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_ratio_with_an_undetermined_denominator_is_unbounded() -> None:
    bottom = np.random.default_rng(6).normal(0.01, 1.0, size=100)
    found = cluster_ratio_bootstrap(np.ones(100), bottom, np.arange(100))
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert math.isnan(cluster_ratio_bootstrap([1.0, 1.0], [1.0, -1.0], [0, 1]).value)


def test_standard_error_without_clusters_is_the_usual_one() -> None:
    values = np.random.default_rng(7).normal(size=80)
    assert cluster_standard_error(values, np.arange(80)) == pytest.approx(scipy_stats.sem(values))


def test_standard_error_of_equal_clusters_is_that_of_their_means() -> None:
    values, clusters = sample(60, 6)
    means = [values[clusters == c].mean() for c in range(6)]
    assert cluster_standard_error(values, clusters) == pytest.approx(scipy_stats.sem(means))


@pytest.mark.parametrize(
    ("observed", "null", "expected"),
    [(3.0, [1.0, 2.0, 3.0], 0.5), (9.0, list(range(9)), 0.1), (-1.0, [0.0, 1.0], 1.0)],
)
def test_permutation_p_counts_the_observation_itself(
    observed: float, null: list[float], expected: float
) -> None:
    assert permutation_p(observed, null) == pytest.approx(expected)


def test_benjamini_hochberg_on_the_published_example() -> None:
    # The 15 p values of Benjamini and Hochberg (1995), section 4.1: four are rejected at 0.05.
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    order = np.random.default_rng(0).permutation(15)
    rejected = np.empty(15, dtype=bool)
    rejected[order] = benjamini_hochberg(np.array(p)[order], 0.05)
    assert rejected.tolist() == [True] * 4 + [False] * 11


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_benjamini_hochberg_equals_adjusted_p_values(p: list[float]) -> None:
    # p values at the very threshold may fall on either side by rounding
    adjusted = scipy_stats.false_discovery_control(p)
    clear = np.abs(adjusted - 0.05) > 1e-12
    assert np.array_equal(benjamini_hochberg(p, 0.05)[clear], (adjusted <= 0.05)[clear])


def test_benjamini_hochberg_keeps_the_shape() -> None:
    assert benjamini_hochberg(np.full((2, 3), 0.001), 0.05).all()
    assert benjamini_hochberg(np.zeros((0,)), 0.05).shape == (0,)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40))
def test_matthews_equals_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    a, b = zip(*pairs, strict=True)
    constant = len(set(a)) == 1 or len(set(b)) == 1
    expected = 0.0 if constant else matthews_corrcoef(a, b)
    assert matthews(a, b) == pytest.approx(expected, abs=1e-12)


def test_matthews_takes_texts_and_booleans() -> None:
    assert matthews(["x", "y", "x"], ["x", "y", "x"]) == pytest.approx(1.0)
    assert matthews([True, False], [False, True]) == pytest.approx(-1.0)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (7, 10), (10, 10), (133, 200)])
def test_wilson_equals_scipy(k: int, n: int) -> None:
    peer = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
    found = wilson(k, n)
    assert (found.value, found.low, found.high) == pytest.approx((k / n, peer.low, peer.high))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: cluster_bootstrap([], []), EmptyDataError, "at least one"),
        (lambda: cluster_bootstrap([1.0, np.nan], [0, 1]), ShapeError, "not finite"),
        (lambda: cluster_bootstrap([1.0], [0, 1]), ShapeError, "one label per value"),
        (lambda: cluster_bootstrap([[1.0]], [[0]]), ShapeError, "one number per example"),
        (lambda: cluster_bootstrap([1.0], [0], statistic="mode"), ConfigError, "'median'"),
        (lambda: cluster_bootstrap([1.0], [0], draws=0), ConfigError, "draws"),
        (lambda: cluster_bootstrap([1.0], [0], level=95), ConfigError, "0.95"),
        (lambda: cluster_ratio_bootstrap([1.0], [np.inf], [0]), ShapeError, "not finite"),
        (lambda: permutation_p(1.0, []), EmptyDataError, "null"),
        (lambda: permutation_p(math.nan, [1.0]), ShapeError, "nan"),
        (lambda: benjamini_hochberg([0.1], 5), ConfigError, "q is 5"),
        (lambda: benjamini_hochberg([np.nan], 0.05), ShapeError, "p value"),
        (lambda: matthews([1], [1, 2]), ShapeError, "(1,)"),
        (lambda: matthews([], []), EmptyDataError, "at least one"),
        (lambda: wilson(3, 0), EmptyDataError, "0 trials"),
        (lambda: wilson(5, 3), ConfigError, "from 0 to 3"),
    ],
)
def test_bad_input_is_named(call, error, words) -> None:
    with pytest.raises(error, match=words.replace("(", r"\(").replace(")", r"\)")):
        call()
