"""Areas along a faithfulness curve: CPR and CMD as MIB defines them, and log-CMD.

All are trapezoid integrals over the share of parts kept, k, from 0.001 to 1 (Mueller et al. 2025):
CPR of f(k), CMD of ``|1 - f(k)|``. log-CMD is the mean of ``|1 - f|`` over the logarithm of the
share, so that small circuits count as much as large ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from microtome.core.intervals import Interval
from microtome.core.resampling import cluster_function_bootstrap
from microtome.store.results import Result

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's shares of parts."""

FROM = FRACTIONS[0]
"""Where the integrals begin."""

ENOUGH = 0.9
"""Faithfulness at which the size of a circuit is read off."""


@dataclass(frozen=True, eq=False)
class Areas(Result):
    """What a faithfulness curve comes to, with cluster-bootstrap intervals.

    Attributes:
        cpr: Area under f over the share actually kept; higher is better, unbounded above.
        cmd: Area under ``|1 - f|`` over the share actually kept; 0 is best.
        log_cmd: Mean of ``|1 - f|`` over the logarithm of the share actually kept; 0 is best.
        nominal_cpr: CPR over the share asked for, as MIB reports it.
        nominal_cmd: CMD over the share asked for.
        size: Parts kept by the first circuit on the curve with f of at least 0.9.
        sure_size: Parts kept by the first circuit whose interval of f lies above 0.9 as a whole;
            the whole model where none does.
    """

    cpr: Interval
    cmd: Interval
    log_cmd: Interval
    nominal_cpr: Interval
    nominal_cmd: Interval
    size: Interval
    sure_size: int


def sizes_of(total: int, *, extra: int = 20) -> tuple[int, ...]:
    """Return the sizes of a curve: MIB's fractions of the parts and more, spaced by logarithm.

    A fraction is rounded down, as in MIB; 0 parts are among the sizes.

    Args:
        total: Parts of the model.
        extra: Log-spaced sizes from 1 to all.
    """
    sizes = {0, *nominal_sizes(total)}
    sizes |= {int(round(s)) for s in np.geomspace(1, total, extra)}
    return tuple(sorted(sizes))


def nominal_sizes(total: int) -> tuple[int, ...]:
    """Return the sizes that MIB's ten fractions ask for."""
    # 0.29 * 100 is 28.999...: a fraction that is meant to be whole must not lose one
    return tuple(int(f * total + 1e-9) for f in FRACTIONS)


def areas(
    sizes: Sequence[int],
    kept: Sequence[int],
    total: int,
    values: np.ndarray,
    full: np.ndarray,
    empty: np.ndarray,
    clusters: np.ndarray,
    *,
    sure_size: int,
    seed: int = 0,
) -> Areas:
    """Return the areas of a curve.

    Args:
        sizes: Sizes asked for, ascending; they include MIB's.
        kept: Parts actually kept at each size.
        total: Parts of the model.
        values: The metric at each size ``[size, example]``.
        full: The metric of the whole model ``[example]``.
        empty: The metric with everything ablated ``[example]``.
        clusters: Cluster of each example.
        sure_size: See :class:`Areas`.
        seed: Of the bootstrap.
    """
    asked = nominal_sizes(total)
    places = [list(sizes).index(s) for s in asked]
    shares = np.array(kept) / total

    sign = float(np.sign(np.mean(full - empty)))

    def measured(means: np.ndarray) -> np.ndarray:
        f = faithfulness_of(means, sign)
        gap = np.abs(1 - f)
        counts = np.array([*kept, total], dtype=float)
        reached = np.concatenate([f, np.ones((len(f), 1))], axis=1) >= ENOUGH
        return np.stack(
            [
                area(shares[places], f[:, places]),
                area(shares[places], gap[:, places]),
                log_area(shares, gap, 1 / total),
                area(np.array(FRACTIONS), f[:, places]),
                area(np.array(FRACTIONS), gap[:, places]),
                np.where(np.isfinite(f).all(1), counts[reached.argmax(1)], np.nan),
            ],
            axis=1,
        )

    rows = np.concatenate([full[None], empty[None], values])
    found = cluster_function_bootstrap(rows, clusters, measured, seed=seed)
    return Areas(found[0], found[1], found[2], found[3], found[4], found[5], sure_size)


def faithfulness_of(means: np.ndarray, sign: float) -> np.ndarray:
    """Return f ``[draw, size]`` from means ``[draw, 2 + size]`` of full, empty and each size.

    NaN for draws in which the effect m(N) - m(0) is zero or has not the sign that it has overall:
    there the ratio says nothing.
    """
    span = means[:, :1] - means[:, 1:2]
    with np.errstate(divide="ignore", invalid="ignore"):
        f = (means[:, 2:] - means[:, 1:2]) / span
    return np.where(span * sign > 0, f, np.nan)


def area(shares: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the trapezoid integral of each row over shares from 0.001 to 1.

    Args:
        shares: Ascending ``[point]``; equal neighbors span nothing.
        values: ``[row, point]``.
    """
    return _between(shares, values, FROM)


def log_area(shares: np.ndarray, values: np.ndarray, least: float) -> np.ndarray:
    """Return the mean of each row over the logarithm of the share.

    From 0.001, or one part where that is more, to 1. Points below stand at the lower end.

    Args:
        shares: Ascending ``[point]``.
        values: ``[row, point]``.
        least: The share of one part.
    """
    low = max(FROM, least)
    if low >= 1:
        return np.asarray(values[:, -1] * 0.0)
    logs = np.log(np.maximum(shares, low))
    return np.asarray(np.trapezoid(values, logs, axis=1) / -np.log(low))


def _between(shares: np.ndarray, values: np.ndarray, low: float) -> np.ndarray:
    """Integrate from ``low`` on, cutting the segment that it lies in."""
    inside = shares > low
    if not inside.any():
        return np.zeros(len(values))
    first = int(inside.argmax())
    x, y = shares[first:], values[:, first:]
    if first > 0:
        x0, x1 = shares[first - 1], shares[first]
        at_low = values[:, first - 1] + (values[:, first] - values[:, first - 1]) * (
            (low - x0) / (x1 - x0)
        )
        x, y = np.concatenate([[low], x]), np.concatenate([at_low[:, None], y], axis=1)
    return np.asarray(np.trapezoid(y, x, axis=1))
