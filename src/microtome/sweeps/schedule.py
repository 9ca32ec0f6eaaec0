"""Which runs share a wave: those that start at the same or nearby positions, as many as fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microtome.sweeps.groups import Group

if TYPE_CHECKING:
    from microtome.sweeps.plans import Plan

OVERHEAD = 32
"""What a block costs beside its arithmetic, in tokens: reading its weights, calling its parts."""


@dataclass(frozen=True, eq=False)
class Wave:
    """Runs that walk the blocks together.

    Attributes:
        first: First position that is computed for all of them.
        cells: Cell of each run.
        rows: Row of the group of each run.
        entries: First whole block of each run.
        firsts: First changed position of each run.
    """

    first: int
    cells: np.ndarray
    rows: np.ndarray
    entries: np.ndarray
    firsts: np.ndarray


def waves(plan: Plan, group: Group) -> Iterator[Wave]:
    """Yield the waves of a group, in an order that depends on nothing but plan and group."""
    cells, rows = np.nonzero(group.moved)
    if not len(cells):
        return
    entries = np.array([group.entry(cell, plan.site) for cell in plan.cells])[cells]
    firsts = group.firsts[cells, rows]
    sorted_by = [entries, firsts] if "wavefront" in plan.rules else [firsts, entries]
    order = np.lexsort([rows, cells, *sorted_by])
    packed = "fast" in plan.rules
    # what enters behind the last block runs none, and shares no wave with what does
    behind = entries[order] == group.layers
    pieces = [part for part in (order[~behind], order[behind]) if len(part)]
    segments = (_segments(plan, group, part, entries, firsts, packed) for part in pieces)
    for chosen in itertools.chain.from_iterable(segments):
        yield Wave(
            int(firsts[chosen].min()), cells[chosen], rows[chosen], entries[chosen], firsts[chosen]
        )


def _segments(
    plan: Plan,
    group: Group,
    order: np.ndarray,
    entries: np.ndarray,
    firsts: np.ndarray,
    packed: bool,
) -> Iterator[np.ndarray]:
    """Cut the ordered runs into waves within the budget of tokens."""
    if "wavefront" not in plan.rules:
        cuts = np.flatnonzero(np.diff(entries[order])) + 1
        parts = np.split(order, cuts)
    elif packed or "suffix" not in plan.rules:
        parts = [order]
    else:
        parts = _buckets(order, firsts, group.width)
    for part in parts:
        yield from _within(part, group.width - firsts[part], plan.tokens, packed)


def _within(part: np.ndarray, live: np.ndarray, budget: int, packed: bool) -> Iterator[np.ndarray]:
    """Yield pieces of a part whose tokens fit the budget; a piece has one run at least."""
    start, total, longest = 0, 0, 0
    for place, tokens in enumerate(live.tolist()):
        longest = max(longest, tokens)
        count = place - start + 1
        total = total + tokens if packed else longest * count
        if total > budget and count > 1:
            yield part[start:place]
            start, longest = place, tokens
            total = tokens
    yield part[start:]


def _buckets(order: np.ndarray, firsts: np.ndarray, width: int) -> list[np.ndarray]:
    """Join runs of nearby first positions where that costs less than a wave of their own.

    All runs of a wave compute from the earliest first position among them. The cheapest cuts are
    found by dynamic programming over the distinct first positions.
    """
    starts, counts = np.unique(firsts[order], return_counts=True)
    edges = np.concatenate([[0], np.cumsum(counts)])
    best, back = [0.0], [0]
    for stop in range(1, len(starts) + 1):
        costs = [
            best[start] + (edges[stop] - edges[start]) * (width - starts[start]) + OVERHEAD * 2
            for start in range(stop)
        ]
        back.append(int(np.argmin(costs)))
        best.append(costs[back[-1]])
    cuts, stop = [], len(starts)
    while stop:
        cuts.append(stop)
        stop = back[stop]
    bounds = [0, *(int(edges[c]) for c in reversed(cuts))]
    return [order[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
