"""Certification: a random sample of a sweep's runs, repeated the naive way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from microtome.core.seeds import rng
from microtome.sweeps.execution import batched, naive
from microtome.sweeps.groups import Group
from microtome.sweeps.rules import Rule

if TYPE_CHECKING:
    from microtome.sweeps.plans import Plan

FEWEST, MOST = 3, 32
"""Runs that are repeated unless a number is asked for: one in a hundred within these bounds."""

SHARE, SMALLEST_RANGE = 1e-5, 1e-3
"""Share of the metric's range that rounding may move in float32, and the range taken at least."""

STEPS = 4
"""Steps of a short type's precision that may be moved."""

NOISE = 0.1
"""Share of the metric's range beyond which a model's own noise certifies nothing."""

WRONG = 0.05
"""Share of wrong runs for which the chance of being caught is stated."""


@dataclass
class Certifier:
    """Compares a random sample of a sweep's runs with one forward pass each.

    The sample is drawn from the runs that were computed; in a long sweep one that was filled in
    joins it for each group.

    Attributes:
        plan: The plan.
        sample: Runs that were repeated so far.
        difference: Largest difference so far.
        spread: Largest difference so far between two batch sizes of the naive way.
        seconds: What it took so far.
    """

    plan: Plan
    sample: int = 0
    difference: float = 0.0
    spread: float = 0.0
    seconds: float = 0.0
    _owed: float = 0.5

    def check(self, group: Group, values: np.ndarray) -> None:
        """Repeat some runs of a group; ``values`` are the sweep's ``[row, cell]``."""
        began = time.perf_counter()
        cells, local = self._drawn(group)
        if len(cells):
            rows = np.array(group.places)[local]
            pairs = zip(cells.tolist(), local.tolist(), strict=True)
            slow = np.array([naive(self.plan, group, cell, row) for cell, row in pairs])
            off = largest(values[rows, cells], slow)
            if not off <= allowed(self.plan.model.dtype, values):
                together = batched(self.plan, group, *_twice(cells, local))[: len(cells)]
                self.spread = max(self.spread, largest(together, slow))
            self.difference = max(self.difference, off)
            self.sample += len(cells)
        self.seconds += time.perf_counter() - began

    def _drawn(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """Return cells and rows of a group to repeat: its share of the sample."""
        runs = len(self.plan.lines) * len(self.plan.cells)
        asked = self.plan.certify
        wanted = max(FEWEST, min(MOST, runs // 100)) if asked is None else asked
        # what a group cannot give, the next ones do
        self._owed += wanted * group.moved.size / runs
        count = min(int(self._owed), int(group.moved.sum()))
        self._owed -= count
        random = rng(self.plan.seed, "certificate", self.plan.site, str(group.places[0]))
        found = []
        for kind, wanted in ((group.moved, count), (~group.moved, int(count > FEWEST))):
            cells, rows = np.nonzero(kind)
            drawn = random.permutation(len(cells))[:wanted]
            found.append((cells[drawn], rows[drawn]))
        return (
            np.concatenate([cells for cells, _ in found]),
            np.concatenate([rows for _, rows in found]),
        )

    def certificate(self, values: np.ndarray, seconds: float) -> dict[str, Any]:
        """Return what was found.

        The tolerance is the larger of 1e-5 of the metric's range (float32) and four times the
        difference between two batch sizes of the naive way, which is measured where the former does
        not suffice. In shorter types four steps of the type's precision at the largest value stand
        for the share. Noise beyond a tenth of the range certifies nothing.

        Args:
            values: The sweep's values ``[row, cell]``.
            seconds: How long it took, this included.
        """
        known = values[np.isfinite(values)]
        cap = NOISE * float(known.max() - known.min()) if known.size else 0.0
        tolerance = max(allowed(self.plan.model.dtype, values), min(4 * self.spread, cap))
        return {
            "difference": self.difference,
            "tolerance": tolerance,
            "passed": bool(self.difference <= tolerance),
            "sample": self.sample,
            "runs": int(values.size),
            "rules": list(self.plan.rules),
            "would_catch": float(1 - (1 - WRONG) ** self.sample),
            "seconds": seconds,
            "seconds_certifying": self.seconds,
        }


def largest(one: np.ndarray | float, other: np.ndarray | float) -> float:
    """Return the largest difference; infinite where only one of two values is a number."""
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(np.subtract(one, other)))
    return float(np.where(np.isnan(apart), np.inf, apart).max())


def _twice(cells: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return runs to be made in one pass; a single one is run beside itself."""
    return (cells, rows) if len(cells) > 1 else (np.tile(cells, 2), np.tile(rows, 2))


def allowed(dtype: torch.dtype, values: np.ndarray) -> float:
    """Return what rounding may move: a share of the metric's range, or of it a few short steps.

    In a short type the logits themselves are rounded to steps of its precision, which a pass of
    another batch size need not show on a machine that computes each row alike.
    """
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0
    if dtype not in (torch.float32, torch.float64):
        return STEPS * torch.finfo(dtype).eps * float(np.abs(known).max())
    return SHARE * max(float(known.max() - known.min()), SMALLEST_RANGE)


def simpler(rules: Sequence[Rule]) -> tuple[Rule, ...] | None:
    """Return the rules to try when a certificate fails, None where there are none simpler."""
    from microtome.sweeps.rules import SIMPLER

    for step in SIMPLER:
        kept = tuple(rule for rule in step if rule in rules)
        if len(kept) < len(rules):
            return kept
    return None
