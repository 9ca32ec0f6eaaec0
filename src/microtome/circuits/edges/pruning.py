"""Which kept edges of a circuit can matter: those that lead to the logits, and that carry a change.

Two circuits that differ only in other edges give the same output, so one of them need not be run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.graph import EMBED, LOGITS

if TYPE_CHECKING:
    from microtome.circuits.graph import ComponentGraph


class Pruning:
    """Leaves out of circuits the edges that cannot matter.

    Args:
        graph: The component graph.
        changes_only: Whether a source that nothing reaches from the embedding writes what it would
            write ablated, so that its edges carry nothing: so under resample ablation.
    """

    def __init__(self, graph: ComponentGraph, *, changes_only: bool) -> None:
        number = {source: row for row, source in enumerate(graph.sources)}
        self._reads: list[list[int]] = [[] for _ in graph.sources]
        for column, target in enumerate(graph.targets):
            for reader in graph.readers(target):
                if reader != LOGITS:
                    self._reads[number[reader]].append(column)
        self._logits = graph.targets.index(LOGITS)
        self._embed = number[EMBED]
        self._changes_only = changes_only

    def __call__(self, kept: np.ndarray) -> np.ndarray:
        """Return the edges that can matter, of circuits ``[circuit, source, target]``."""
        leads = np.zeros((len(kept), kept.shape[2]), dtype=bool)
        leads[:, self._logits] = True
        for source in reversed(range(kept.shape[1])):
            used = np.asarray((kept[:, source] & leads).any(1))
            leads[:, self._reads[source]] |= used[:, None]
        left = kept & leads[:, None, :]
        if not self._changes_only:
            return np.asarray(left)
        fed = np.zeros(kept.shape[:2], dtype=bool)
        fed[:, self._embed] = True
        for source, columns in enumerate(self._reads):
            if columns:
                fed[:, source] = (left[:, :, columns] & fed[:, :, None]).any((1, 2))
        return np.asarray(left & fed[:, :, None])
