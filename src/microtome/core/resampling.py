"""Intervals for any function of means, by resampling whole clusters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microtome.core.intervals import Interval
from microtome.core.seeds import rng
from microtome.errors import EmptyDataError, ShapeError

Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From means ``[draw, row]`` to numbers ``[draw, output]``."""

DRAWS = 2000
"""Resamples of an interval."""


def cluster_function_bootstrap(
    values: ArrayLike,
    clusters: Sequence[Any] | NDArray[Any],
    function: Function,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    level: float = 0.95,
) -> tuple[Interval, ...]:
    """Estimate functions of several means over the same examples, resampling whole clusters.

    Whole clusters are drawn with replacement and the function is computed anew from the means of
    every draw, so that what rows have in common cancels (Davison and Hinkley 1997, section 3.8).

    Args:
        values: Finite numbers ``[row, example]``.
        clusters: The cluster label of each example.
        function: From means ``[draw, row]`` to ``[draw, output]``; NaN where a draw does not
            determine an output.
        seed: Seed of the resampling.
        draws: Number of resamples.
        level: Coverage, between 0 and 1.

    Returns:
        One interval for each output. Its bounds are infinite where there is a single cluster, or
        where more than ``(1 - level) / 2`` of the draws do not determine the output.

    Raises:
        ShapeError: Shapes do not fit, or a value is not finite.
        EmptyDataError: There are no examples.

    Example:
        >>> half = lambda means: means / 2
        >>> print(cluster_function_bootstrap([[1.0, 3.0]], ["a", "b"], half)[0])
        1 [0.5, 1.5]
    """
    data = np.asarray(values, dtype=np.float64)
    labels = np.asarray(clusters)
    if data.ndim != 2 or labels.shape != data.shape[1:]:
        raise ShapeError(
            f"values of shape {data.shape} with {labels.shape} cluster labels; expected rows of "
            "one value per example, and one label per example"
        )
    if data.shape[1] == 0:
        raise EmptyDataError("no examples; expected at least one")
    if not np.isfinite(data).all():
        raise ShapeError(f"{int((~np.isfinite(data)).sum())} values are not finite")
    names, codes = np.unique(labels, return_inverse=True)
    count = len(names)
    member = np.zeros((data.shape[1], count))
    member[np.arange(data.shape[1]), codes] = 1.0
    sums, sizes = data @ member, member.sum(0)
    estimates = function(data.mean(1)[None])[0]
    resampled = None
    if count > 1:
        # as many of each cluster as were drawn, so that a draw's mean is one product
        drawn = rng(seed, "cluster bootstrap").integers(0, count, size=(draws, count))
        times = np.zeros((draws, count))
        np.add.at(times, (np.arange(draws)[:, None], drawn), 1.0)
        resampled = function((times @ sums.T) / (times @ sizes)[:, None])
    method = f"cluster bootstrap of a function of means ({draws} draws)"
    found = []
    for number, value in enumerate(estimates):
        low, high = _bounds(None if resampled is None else resampled[:, number], level)
        found.append(
            Interval(
                float(value), low, high,
                level=level, n=data.shape[1], clusters=count, method=method,
            )
        )  # fmt: skip
    return tuple(found)


def _bounds(resampled: NDArray[np.float64] | None, level: float) -> tuple[float, float]:
    """Return the percentile bounds, infinite where the draws do not give them."""
    tail = (1 - level) / 2
    if resampled is None or float(np.mean(~np.isfinite(resampled))) > tail:
        return -math.inf, math.inf
    low, high = np.quantile(resampled[np.isfinite(resampled)], [tail, 1 - tail])
    return float(low), float(high)
