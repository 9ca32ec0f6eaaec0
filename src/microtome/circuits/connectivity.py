"""Which edges lie on a path from the embedding to the logits.

Where edges are told apart by place, so are the heads and MLPs that they join: an MLP and a head's
query act at the place where they read, a head's key and value at every later place. Positions have
an order; roles need not have the same one in every prompt, so keys and values count at all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from microtome.circuits.graph import ComponentGraph


def connected(graph: ComponentGraph, mask: np.ndarray) -> np.ndarray:
    """Return a mask without edges that lie on no path from the embedding to the logits.

    Args:
        graph: The component graph.
        mask: Which edges are there ``[source, target]``.
    """
    wiring = _Wiring(graph)
    kept: np.ndarray = mask & graph.possible
    while True:
        fed, used = wiring.fed(kept), wiring.used(kept)
        smaller = kept & fed[:, wiring.place_of] & used
        smaller[:, -1] = kept[:, -1] & np.asarray(fed[:, wiring.ends].any(1))
        if (smaller == kept).all():
            return kept
        kept = smaller


class _Wiring:
    """Which head or MLP each target feeds, and where; the logits come last and feed none.

    Attributes:
        place_of: Number of each target's place; 0 for the logits ``[target]``.
        ends: Places at which the logits may read.
    """

    def __init__(self, graph: ComponentGraph) -> None:
        self._n = max(1, len(graph.places))
        self._ordered = graph.ordered
        self._embed = np.array([s == "embed" for s in graph.sources])
        self.place_of = np.maximum(graph.place_numbers, 0)
        self.ends = slice(self._n - 1, self._n) if self._ordered else slice(0, self._n)
        number = {source: i for i, source in enumerate(graph.sources)}
        pairs = [
            (t, number[reader], self.place_of[t], target.partition("<")[2][:1] in ("k", "v"))
            for t, target in enumerate(graph.targets[:-1])
            for reader in graph.readers(target)
        ]
        table = np.array(pairs, dtype=int).reshape(-1, 4)
        self._target, self._reader, self._place = table[:, 0], table[:, 1], table[:, 2]
        self._spreads = table[:, 3].astype(bool)

    def fed(self, kept: np.ndarray) -> np.ndarray:
        """Return which sources read anything at each place ``[source, place]``."""
        found = np.zeros((2, len(kept), self._n), dtype=bool)
        reads = np.asarray(kept.any(axis=0))[self._target]
        np.logical_or.at(found, (self._spreads.astype(int), self._reader, self._place), reads)
        here, far = found
        if self._ordered:
            far = np.logical_or.accumulate(far, 1)
        else:
            far = np.asarray(far.any(axis=1, keepdims=True))
        return np.asarray(here | far | self._embed[:, None])

    def used(self, kept: np.ndarray) -> np.ndarray:
        """Return which targets feed a source that something reads ``[target]``."""
        written = np.zeros((len(kept), self._n), dtype=bool)
        for place in range(self._n):
            written[:, place] = kept[:, :-1][:, self.place_of[:-1] == place].any(1)
        written[:, self.ends] |= kept[:, -1:]
        if self._ordered:
            far = np.logical_or.accumulate(written[:, ::-1], 1)[:, ::-1]
        else:
            far = np.asarray(written.any(axis=1, keepdims=True)).repeat(self._n, 1)
        acts = np.where(
            self._spreads, far[self._reader, self._place], written[self._reader, self._place]
        )
        found = np.zeros(kept.shape[1], dtype=bool)
        found[-1] = True
        np.logical_or.at(found, self._target, acts)
        return found
