"""Intervals, tests and agreement: the statistics behind every claim.

Rows that come from one template are not independent, so the unit of resampling is the
cluster. All functions are deterministic: the same values and seed give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microtome.core.intervals import Interval
from microtome.core.seeds import rng
from microtome.errors import ConfigError, EmptyDataError, ShapeError

__all__ = [
    "Interval",
    "benjamini_hochberg",
    "cluster_bootstrap",
    "cluster_ratio_bootstrap",
    "cluster_standard_error",
    "matthews",
    "permutation_p",
    "wilson",
]

_BLOCK = 1 << 22
"""Random indices drawn at once by the bootstrap, to bound its memory."""


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence[Any] | NDArray[Any],
    *,
    statistic: str = "mean",
    seed: int = 0,
    draws: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Estimate a mean or median with a percentile interval over resampled clusters.

    Whole clusters are drawn with replacement (Davison and Hinkley 1997, section 3.8). With
    a single cluster the data say nothing about the spread, so the bounds are infinite.

    Args:
        values: One finite number per example, shape example.
        clusters: The cluster label of each example, same length.
        statistic: ``"mean"`` or ``"median"``, over the examples.
        seed: Seed of the resampling.
        draws: Number of resamples.
        level: Coverage, between 0 and 1.

    Returns:
        The estimate, its bounds, the number of values and of clusters.

    Raises:
        ShapeError: Lengths differ, or a value is not finite.
        EmptyDataError: There are no values.
        ConfigError: An unknown statistic, or draws or level out of range.

    Example:
        >>> print(cluster_bootstrap([1.0, 1.0, 0.0, 1.0], ["a", "a", "b", "c"], seed=0))
        0.75 [0, 1]
    """
    data, codes, count = _checked(values, clusters, draws, level)
    if statistic not in ("mean", "median"):
        raise ConfigError(f"statistic is {statistic!r}; expected 'mean' or 'median'")
    method = f"cluster bootstrap ({draws} draws)"
    value = float(np.mean(data) if statistic == "mean" else np.median(data))
    if count == 1:
        return _interval(value, None, level, data.size, count, method)
    resample = (_means if statistic == "mean" else _medians)(data, codes, count)
    resampled = np.concatenate([resample(picks) for picks in _blocks(count, draws, seed)])
    return _interval(value, resampled, level, data.size, count, method)


def cluster_ratio_bootstrap(
    numerator: ArrayLike,
    denominator: ArrayLike,
    clusters: Sequence[Any] | NDArray[Any],
    *,
    seed: int = 0,
    draws: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Estimate a ratio of two means over the same examples, resampling whole clusters.

    The bounds are infinite where more than ``(1 - level) / 2`` of the resampled denominators
    are zero or change sign: then the ratio is not determined by the data (Fieller 1954).

    Args:
        numerator: One finite number per example, shape example.
        denominator: One finite number per example, shape example.
        clusters: The cluster label of each example.
        seed: Seed of the resampling.
        draws: Number of resamples.
        level: Coverage, between 0 and 1.

    Returns:
        The ratio with its bounds; the value is NaN where the denominator's mean is zero.

    Raises:
        ShapeError: Lengths differ, or a value is not finite.
        EmptyDataError: There are no values.
        ConfigError: Draws or level out of range.
    """
    top, codes, count = _checked(numerator, clusters, draws, level)
    bottom, _, _ = _checked(denominator, clusters, draws, level)
    method = f"cluster bootstrap of a ratio of means ({draws} draws)"
    total = float(np.sum(bottom))
    value = float(np.sum(top)) / total if total != 0 else math.nan
    if count == 1 or total == 0:
        return _interval(value, None, level, top.size, count, method)
    tops = np.bincount(codes, weights=top, minlength=count)
    bottoms = np.bincount(codes, weights=bottom, minlength=count)
    pairs = [(tops[p].sum(axis=1), bottoms[p].sum(axis=1)) for p in _blocks(count, draws, seed)]
    tops_drawn = np.concatenate([pair[0] for pair in pairs])
    bottoms_drawn = np.concatenate([pair[1] for pair in pairs])
    sound = bottoms_drawn * np.sign(total) > 0
    if np.mean(~sound) > (1 - level) / 2:
        return _interval(value, None, level, top.size, count, method)
    ratios = tops_drawn[sound] / bottoms_drawn[sound]
    return _interval(value, ratios, level, top.size, count, method)


def cluster_standard_error(values: ArrayLike, clusters: Sequence[Any] | NDArray[Any]) -> float:
    """Return the cluster-robust standard error of the mean.

    With every example its own cluster this is the usual ``std(ddof=1) / sqrt(n)``
    (Liang and Zeger 1986, with the factor ``k / (k - 1)`` for ``k`` clusters).

    Args:
        values: One finite number per example, shape example.
        clusters: The cluster label of each example.

    Returns:
        The standard error, in the unit of the values; infinite for a single cluster.

    Raises:
        ShapeError: Lengths differ, or a value is not finite.
        EmptyDataError: There are no values.
    """
    data, codes, count = _checked(values, clusters, 1, 0.95)
    if count == 1:
        return math.inf
    residuals = np.bincount(codes, weights=data - data.mean(), minlength=count)
    return float(np.sqrt(count / (count - 1) * np.sum(residuals**2)) / data.size)


def permutation_p(observed: float, null: ArrayLike) -> float:
    """Return the one-sided p value of an observation among values drawn under the null.

    The observation counts as one of the draws, so the p value is never zero
    (Phipson and Smyth 2010).

    Args:
        observed: The statistic; large values speak against the null.
        null: The statistic under the null, one number per draw.

    Raises:
        EmptyDataError: There are no draws.
        ShapeError: A value is not finite.

    Example:
        >>> permutation_p(3.0, [1.0, 2.0, 3.0])
        0.5
    """
    draws = _finite(null, "null")
    if not math.isfinite(observed):
        raise ShapeError(f"the observed value is {observed}; expected a finite number")
    return float((1 + np.count_nonzero(draws >= observed)) / (1 + draws.size))


def benjamini_hochberg(p: ArrayLike, q: float) -> NDArray[np.bool_]:
    """Return which hypotheses are rejected at a false discovery rate of q.

    Source: Benjamini and Hochberg 1995.

    Args:
        p: P values of any shape, each from 0 to 1.
        q: The false discovery rate allowed, between 0 and 1.

    Returns:
        True where rejected, in the shape of ``p``.

    Raises:
        ConfigError: q is outside the open range from 0 to 1.
        ShapeError: A p value is outside the range from 0 to 1 or not a number.

    Example:
        >>> benjamini_hochberg([0.01, 0.9, 0.02], 0.05).tolist()
        [True, False, True]
    """
    if not 0 < q < 1:
        raise ConfigError(f"q is {q}; expected a rate between 0 and 1, for example 0.05")
    values = np.asarray(p, dtype=np.float64)
    if not np.all((values >= 0) & (values <= 1)):
        raise ShapeError("a p value is not in the range from 0 to 1")
    flat = values.ravel()
    order = np.argsort(flat, kind="stable")
    passed = np.flatnonzero(flat[order] <= q * np.arange(1, flat.size + 1) / max(flat.size, 1))
    rejected = np.zeros(flat.size, dtype=np.bool_)
    if passed.size:
        rejected[order[: passed[-1] + 1]] = True
    return rejected.reshape(values.shape)


def matthews(a: ArrayLike, b: ArrayLike) -> float:
    """Return the Matthews correlation of two labelings of the same items.

    For two classes this is the phi coefficient; for more, the generalization by
    Gorodkin (2004). It is 0 where either labeling is constant.

    Args:
        a: One label per item.
        b: One label per item, same length.

    Raises:
        ShapeError: The lengths differ.
        EmptyDataError: There are no items.

    Example:
        >>> matthews([1, 1, 0, 0], [1, 1, 0, 0])
        1.0
    """
    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape or first.ndim != 1:
        raise ShapeError(f"labels of shapes {first.shape} and {second.shape}; expected one length")
    if first.size == 0:
        raise EmptyDataError("no labels to compare; give at least one item")
    classes = np.unique(np.concatenate([first, second]))
    table = np.zeros((classes.size, classes.size))
    np.add.at(table, (np.searchsorted(classes, first), np.searchsorted(classes, second)), 1.0)
    rows, columns, total = table.sum(axis=1), table.sum(axis=0), float(first.size)
    spread = (total**2 - rows @ rows) * (total**2 - columns @ columns)
    if spread == 0:
        return 0.0
    return float((np.trace(table) * total - rows @ columns) / math.sqrt(spread))


def wilson(k: int, n: int, *, level: float = 0.95) -> Interval:
    """Estimate a proportion of independent trials with Wilson's (1927) score interval.

    Args:
        k: Number of successes.
        n: Number of trials.
        level: Coverage, between 0 and 1.

    Raises:
        EmptyDataError: n is 0.
        ConfigError: k is not from 0 to n, or the level is out of range.

    Example:
        >>> print(wilson(9, 10))
        0.9 [0.596, 0.982]
    """
    if n <= 0:
        raise EmptyDataError(f"a proportion of {n} trials; expected at least one")
    if not 0 <= k <= n:
        raise ConfigError(f"{k} successes in {n} trials; expected a number from 0 to {n}")
    _check_level(level)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = k / n
    center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low = 0.0 if k == 0 else center - half
    high = 1.0 if k == n else center + half
    return Interval(share, low, high, level=level, n=n, clusters=n, method="Wilson")


def _checked(
    values: ArrayLike, clusters: Sequence[Any] | NDArray[Any], draws: int, level: float
) -> tuple[NDArray[np.float64], NDArray[np.intp], int]:
    """Return the values, each one's cluster number, and the number of clusters."""
    data = _finite(values, "values")
    labels = np.asarray(clusters)
    if labels.shape != data.shape:
        raise ShapeError(
            f"{data.shape} values with {labels.shape} cluster labels; expected one label per value"
        )
    if draws < 1:
        raise ConfigError(f"draws is {draws}; expected at least 1")
    _check_level(level)
    names, codes = np.unique(labels, return_inverse=True)
    return data, codes, int(names.size)


def _finite(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Return a flat array of finite numbers."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1:
        raise ShapeError(f"{name} of shape {data.shape}; expected one number per example")
    if data.size == 0:
        raise EmptyDataError(f"no {name}; expected at least one number")
    bad = np.flatnonzero(~np.isfinite(data))
    if bad.size:
        raise ShapeError(
            f"{bad.size} of {data.size} {name} are not finite, first number {bad[0]}; "
            "drop or repair them before"
        )
    return data


def _check_level(level: float) -> None:
    """Refuse a coverage outside the open range from 0 to 1."""
    if not 0 < level < 1:
        raise ConfigError(f"level is {level}; expected a coverage between 0 and 1, such as 0.95")


def _blocks(count: int, draws: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield the cluster numbers drawn, in blocks of rows, shape draws x count in total."""
    stream = rng(seed, "cluster bootstrap")
    rows = max(1, _BLOCK // count)
    for start in range(0, draws, rows):
        yield stream.integers(0, count, size=(min(rows, draws - start), count))


def _means(
    data: NDArray[np.float64], codes: NDArray[np.intp], count: int
) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    """Return the function from clusters drawn, draws x count, to the mean of each draw."""
    sums = np.bincount(codes, weights=data, minlength=count)
    sizes = np.bincount(codes, minlength=count).astype(np.float64)

    def means(picks: NDArray[np.int64]) -> NDArray[np.float64]:
        drawn: NDArray[np.float64] = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
        return drawn

    return means


def _medians(
    data: NDArray[np.float64], codes: NDArray[np.intp], count: int
) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    """Return the function from clusters drawn, draws x count, to the median of each draw.

    A draw repeats each value as often as its cluster was drawn, so the median is read off
    the cumulative counts of the sorted values.
    """
    order = np.argsort(data, kind="stable")
    ordered, owner = data[order], codes[order]

    def medians(picks: NDArray[np.int64]) -> NDArray[np.float64]:
        rows = picks.shape[0]
        cells = picks + count * np.arange(rows)[:, None]
        times = np.bincount(cells.ravel(), minlength=rows * count).reshape(rows, count)
        cumulative = np.cumsum(times[:, owner], axis=1)
        total = cumulative[:, -1:]
        below = (cumulative <= (total - 1) // 2).sum(axis=1)
        above = (cumulative <= total // 2).sum(axis=1)
        drawn: NDArray[np.float64] = (ordered[below] + ordered[above]) / 2
        return drawn

    return medians


def _interval(
    value: float,
    resampled: NDArray[np.float64] | None,
    level: float,
    n: int,
    clusters: int,
    method: str,
) -> Interval:
    """Return the percentile interval, unbounded where there are no resamples."""
    low, high = -math.inf, math.inf
    if resampled is not None:
        tail = (1 - level) / 2
        low, high = (float(bound) for bound in np.quantile(resampled, [tail, 1 - tail]))
    return Interval(value, low, high, level=level, n=n, clusters=clusters, method=method)
