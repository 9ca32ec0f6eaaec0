"""Certification: a random sample of a sweep's cells, recomputed the naive way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.core.seeds import rng
from microtome.sweeps.execution import group_of, run_cells

if TYPE_CHECKING:
    from microtome.sweeps.plans import Plan

SAMPLE = 12
"""Runs that are recomputed."""


def certify(plan: Plan, values: np.ndarray, rules: Sequence[str]) -> dict[str, Any]:
    """Compare a random sample of a sweep's values with one forward pass each.

    The tolerance is the larger of 1e-5 of the metric's range (float32) and four times the
    difference between two batch sizes of the naive way; in shorter types only the latter.

    Args:
        plan: The plan.
        values: What the rules gave ``[example, cell]``.
        rules: The rules that were used.

    Returns:
        ``difference``, ``tolerance``, ``passed``, ``sample``, ``runs`` and ``rules``.
    """
    from microtome.sweeps.plans import dtype_tolerance

    random = rng(plan.seed, "certificate", plan.site)
    count = min(SAMPLE, values.size)
    chosen = random.choice(values.size, size=count, replace=False)
    difference, spread = 0.0, 0.0
    for flat in chosen:
        example, cell = divmod(int(flat), values.shape[1])
        if np.isnan(values[example, cell]):
            continue
        group = group_of(plan, [example])
        naive = float(run_cells(plan, group, [plan.cells[cell]], ())[0, 0])
        pair = run_cells(plan, group_of(plan, [example, example]), [plan.cells[cell]], ("batch",))
        spread = max(spread, abs(float(pair[0, 0]) - naive))
        difference = max(difference, abs(float(values[example, cell]) - naive))
    reach = float(np.nanmax(values) - np.nanmin(values)) if values.size else 0.0
    tolerance = max(dtype_tolerance(plan.model.dtype) * max(reach, 1e-3), 4 * spread)
    return {
        "difference": difference,
        "tolerance": tolerance,
        "passed": bool(difference <= tolerance),
        "sample": count,
        "runs": int(values.size),
        "rules": list(rules),
        "would_catch": float(1 - (1 - 0.05) ** count),
    }
