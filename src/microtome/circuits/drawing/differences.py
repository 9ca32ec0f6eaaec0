"""The difference of two circuits: what they share, what only one has, and how much that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.drawing.diagrams import Drawn
from microtome.circuits.parts import Scores, part, scores_by_name
from microtome.circuits.results import Circuit
from microtome.errors import ConfigError
from microtome.store.results import Result
from microtome.views import CircuitDiagram, Table
from microtome.views.table import Cell

if TYPE_CHECKING:
    import pandas as pd

SHARED = "in both"
RECALL_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


@dataclass(frozen=True, eq=False)
class Difference(Result):
    """How two circuits of one model differ.

    Attributes:
        first: The first circuit.
        second: The second.
        names: What they are called.
        shared: Parts of both, in the universe's order.
        only_first: Parts of the first alone.
        only_second: Parts of the second alone.
        jaccard: Shared parts as a share of all parts of either; 1 if both are empty.
        recall: Share of the first's parts that the second has; NaN if the first is empty.
        precision: Share of the second's parts that the first has; NaN if the second is empty.
        recall_at: Size, and the share of the first's parts among that many of the strongest by the
            second's scores; empty where none were given.
        scores: Score by part, for the picture: the first's where it has one, else the second's.
    """

    first: Circuit
    second: Circuit
    names: tuple[str, str]
    shared: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    jaccard: float
    recall: float
    precision: float
    recall_at: tuple[tuple[int, float], ...]
    scores: Mapping[str, float]

    @property
    def groups(self) -> tuple[str, str, str]:
        """Names of the three classes of parts."""
        return SHARED, f"only {self.names[0]}", f"only {self.names[1]}"

    def membership(self) -> dict[str, str]:
        """Return the class of every part that either circuit has."""
        classes = zip(self.groups, (self.shared, self.only_first, self.only_second), strict=True)
        return {name: group for group, parts in classes for name in parts}

    def diagram(self, *, max_edges: int = 200, unit: str = "") -> CircuitDiagram:
        """Return both circuits in one diagram; color and dash say who has what.

        Args:
            max_edges: How many edges are drawn, the strongest.
            unit: Unit of the scores.

        Raises:
            ConfigError: If more nodes would be drawn than can be told apart.
        """
        belongs = self.membership()
        either = Circuit(
            tuple(p for p in self.first.universe if p in belongs),
            self.first.universe,
            f"{self.names[0]} or {self.names[1]}",
            self.first.level,
        )
        by_node = not self.first.of_edges
        drawn = Drawn(
            either,
            self.scores or dict.fromkeys(belongs, 1.0),
            classes=belongs if by_node else self._node_classes(),
            groups={} if by_node else belongs,
        )
        return drawn.diagram(max_edges=max_edges, unit=unit, groups=self.groups)

    def _node_classes(self) -> dict[str, str]:
        """Return for every node whose circuit it is in: that of the edges at it."""
        at: dict[str, set[str]] = {}
        for edge, group in self.membership().items():
            for end in edge.partition("@")[0].split("->"):
                at.setdefault(part(end).node, set()).add(group)
        return {
            node: next(iter(groups)) if len(groups) == 1 else SHARED
            for node, groups in at.items()
            if node not in ("embed", "logits")
        }

    def table(self) -> Table:
        """Return the counts and shares, one row each."""
        unit = f"{self.first.level}s"
        rows: list[list[Cell]] = [
            [f"{unit} in both", len(self.shared)],
            [f"{unit} in {self.groups[1]}", len(self.only_first)],
            [f"{unit} in {self.groups[2]}", len(self.only_second)],
            ["Jaccard index", self.jaccard],
            [f"share of {self.names[0]} that {self.names[1]} has (recall)", self.recall],
            [f"share of {self.names[1]} that {self.names[0]} has (precision)", self.precision],
        ]
        rows += [
            [f"recall of {self.names[0]} among the {size} strongest of {self.names[1]}", value]
            for size, value in self.recall_at
        ]
        return Table(("measure", "value"), rows)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each part of either circuit."""
        import pandas as pd

        belongs = self.membership()
        names = [p for p in self.first.universe if p in belongs]
        return pd.DataFrame(
            {
                self.first.level: names,
                "in": [belongs[n] for n in names],
                "score": [self.scores.get(n, np.nan) for n in names],
            }
        )


def difference(
    first: Circuit,
    second: Circuit,
    *,
    scores: tuple[Scores | None, Scores | None] = (None, None),
    names: tuple[str, str] = ("A", "B"),
) -> Difference:
    """Compare two circuits of one model.

    Args:
        first: A circuit.
        second: Another of the same universe.
        scores: Scores of both, for the picture and for the recall at sizes.
        names: What they are called.

    Raises:
        ConfigError: If their levels or universes differ, or both have one name.
    """
    if first.level != second.level:
        raise ConfigError(
            f"{names[0]} is a circuit of {first.level}s and {names[1]} one of {second.level}s; "
            "compare circuits of one level"
        )
    if set(first.universe) != set(second.universe):
        alien = sorted(set(first.universe) ^ set(second.universe))
        raise ConfigError(
            f"{names[0]} and {names[1]} are circuits of different models or graphs: "
            f"{len(alien)} parts are in one universe only, such as {', '.join(alien[:3])}"
        )
    if names[0] == names[1]:
        raise ConfigError(f"both circuits are called {names[0]!r}; give two names")
    mine, theirs = first.kept, second.kept
    shared, either = mine & theirs, mine | theirs
    by_name = [scores_by_name(one) for one in scores]
    return Difference(
        first=first,
        second=second,
        names=names,
        shared=_ordered(first, shared),
        only_first=_ordered(first, mine - theirs),
        only_second=_ordered(first, theirs - mine),
        jaccard=len(shared) / len(either) if either else 1.0,
        recall=len(shared) / len(mine) if mine else float("nan"),
        precision=len(shared) / len(theirs) if theirs else float("nan"),
        recall_at=recall_at(first, by_name[1]) if mine else (),
        scores={p: s for p, s in (by_name[1] | by_name[0]).items() if p in either},
    )


def recall_at(circuit: Circuit, scores: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    """Return the share of a circuit's parts among the strongest, at sizes up to all scored parts.

    Args:
        circuit: The circuit that is looked for.
        scores: Scores by part, of whose magnitudes the strongest are taken.
    """
    ranking = sorted(scores, key=lambda name: -abs(scores[name]))
    sizes = sorted({s for s in RECALL_SIZES if s < len(ranking)} | {len(circuit), len(ranking)})
    found = np.cumsum([name in circuit.kept for name in ranking]) / max(1, len(circuit))
    return tuple((size, float(found[size - 1])) for size in sizes if 0 < size <= len(ranking))


def _ordered(circuit: Circuit, parts: Iterable[str]) -> tuple[str, ...]:
    chosen = frozenset(parts)
    return tuple(p for p in circuit.universe if p in chosen)
