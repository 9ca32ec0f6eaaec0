"""Planning a pass of small circuits so that what several of them have in common is computed once.

What a head or an MLP writes depends only on the kept edges upstream of it. Circuits that agree
there share one *variant* of it: a circuit without one edge differs from the circuit only downstream
of that edge. Variants of the parts of a block are laid out in as few rows of a pass as possible,
those of different heads side by side in one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from microtome.circuits.edges.reading import Reading, Stage

Write = tuple[int, int]
"""A source, and the number of its variant."""

Read = tuple[Write, ...]
"""What a target reads: the variants of the sources that it keeps an edge from."""


@dataclass(eq=False)
class Site:
    """The different reads of one stream: of a block's ports, of its MLP, or of the logits.

    Attributes:
        numbers: Number of each read.
    """

    numbers: dict[Read, int] = field(default_factory=dict)

    def number(self, read: Read) -> int:
        """Return the number of a read, a new one for a new read."""
        return self.numbers.setdefault(read, len(self.numbers))


@dataclass(eq=False)
class StagePlan:
    """What one block computes.

    Attributes:
        attention: What its ports read.
        mlp: What its MLP reads; the variants of the MLP are these reads, each in its own row.
        heads: By head, the row of each of its variants; a variant is the reads of q, k and v.
        groups: By key/value group, which reads of k and v each row holds, and for which heads.
    """

    attention: Site = field(default_factory=Site)
    mlp: Site = field(default_factory=Site)
    heads: dict[int, dict[tuple[int, int, int], int]] = field(default_factory=dict)
    groups: dict[int, list[tuple[int, int, set[int]]]] = field(default_factory=dict)
    _numbers: dict[tuple[int, tuple[int, int, int]], int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows in which the block is computed, for each example."""
        return max(len(self.mlp.numbers), *(len(rows) for rows in self.groups.values()), 0)

    def variant(self, head: int, group: int, reads: tuple[int, int, int]) -> int:
        """Return the number of a head's variant."""
        known = self.heads.setdefault(head, {})
        if reads not in known:
            rows = self.groups.setdefault(group, [])
            place = next(
                (n for n, (k, v, taken) in enumerate(rows)
                 if (k, v) == reads[1:] and head not in taken), len(rows),
            )  # fmt: skip
            if place == len(rows):
                rows.append((reads[1], reads[2], set()))
            rows[place][2].add(head)
            known[reads] = place
        return self._numbers.setdefault((head, reads), len(known) - 1)


class SharedPlan:
    """The variants that some circuits need.

    Args:
        reading: The model.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self.stages = [StagePlan() for _ in reading.stages]
        self.logits = Site()
        self.circuits: list[int] = []

    def add(self, kept: np.ndarray) -> None:
        """Add a circuit, given by its kept edges ``[source, target]`` without needless ones."""
        writes = np.asarray(kept.any(1))
        variants: dict[int, int] = {0: 0}
        for stage, plan in zip(self._reading.stages, self.stages, strict=True):
            for place, source in enumerate(stage.heads):
                if writes[source]:
                    variants[source] = self._head(stage, plan, place, kept, variants)
            mlp, target = stage.mlp_source, stage.mlp_target
            if mlp is not None and target is not None and writes[mlp]:
                variants[mlp] = plan.mlp.number(_read(kept, target, variants))
        self.circuits.append(self.logits.number(_read(kept, -1, variants)))

    @property
    def rows(self) -> int:
        """The most rows of any block."""
        return max(plan.rows for plan in self.stages)

    @property
    def copies(self) -> int:
        """Copies of the stream that the pass holds at most: all writes, and a block's reads."""
        written = sum(
            len(plan.mlp.numbers) + sum(len(v) for v in plan.heads.values()) for plan in self.stages
        )
        read = max(len(plan.attention.numbers) + len(plan.mlp.numbers) for plan in self.stages)
        return written + 2 * read + len(self.logits.numbers)

    def _head(
        self,
        stage: Stage,
        plan: StagePlan,
        place: int,
        kept: np.ndarray,
        variants: dict[int, int],
    ) -> int:
        q, k, v = stage.ports
        group = place // (len(q.targets) // len(k.targets))
        columns = (q.targets[place], k.targets[group], v.targets[group])
        reads = [plan.attention.number(_read(kept, column, variants)) for column in columns]
        return plan.variant(place, group, (reads[0], reads[1], reads[2]))


def _read(kept: np.ndarray, target: int, variants: dict[int, int]) -> Read:
    sources: Sequence[int] = np.flatnonzero(kept[:, target]).tolist()
    return tuple((source, variants[source]) for source in sources)
