"""The component graph: what writes to the residual stream, what reads from it, who reaches whom.

Sources are the embedding, every head and every MLP; targets are the q, k and v port of every head
(k and v of every key/value head where queries share them), the input of every MLP, and the logits.
An edge ``u->v`` is the part of v's input that u wrote; ``u->v@subject`` is that part at the
positions of one role, ``u->v@3`` at one position. Everything is held in arrays; which edges are
possible follows from the order of the blocks and is computed, not stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from microtome.circuits.connectivity import connected
from microtome.errors import UnknownNameError, nearest
from microtome.tracing.catalog import require_anatomy, require_sums

if TYPE_CHECKING:
    from microtome.tracing.model import Model

EMBED, LOGITS = "embed", "logits"

Port = Literal["q", "k", "v", "in", "logits"]

_TARGET = re.compile(r"(?:(?P<node>a\d+\.[hg]\d+)<(?P<port>[qkv])>|(?P<mlp>m\d+))(?:@.+)?|logits")


@dataclass(frozen=True, eq=False)
class ComponentGraph:
    """Sources and targets of a model's residual stream, in the order of computation.

    Attributes:
        sources: ``embed``, then per block its heads ``a0.h0`` and its MLP ``m0``.
        targets: Per block the ports ``a0.h0<q>``, ``a0.h0<k>`` and ``a0.h0<v>`` of its heads
            (``a0.g0<k>`` and ``a0.g0<v>`` of key/value groups where several heads share one), its
            MLP ``m0``; last ``logits``.
        source_order: When each source writes ``[source]``.
        target_order: When each target reads ``[target]``; it sees what was written before.
        group_size: Query heads for each key/value head, by block (0 without attention).
        places: Places by which targets are told apart, ``a0.h0<q>@subject``; none by default. The
            logits read at the prompt's end only and are not told apart.
        ordered: Whether the places are positions, first to last.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    source_order: np.ndarray
    target_order: np.ndarray
    group_size: tuple[int, ...]
    places: tuple[str, ...] = ()
    ordered: bool = False

    @staticmethod
    def of(model: Model) -> ComponentGraph:
        """Return the graph of a model.

        Raises:
            ModelSupportError: If it is not a transformer, or what its parts write is not added to
                one residual stream as it is.
        """
        anatomy = require_anatomy(model.anatomy, "A component graph")
        sources, targets, groups = [EMBED], [], []
        written, read = [-1], []
        for layer, block in enumerate(anatomy.blocks):
            require_sums(block, "a component graph", instead="use circuits of nodes")
            when = 2 * layer
            heads, kv_heads = 0, 0
            if block.attention is not None:
                heads, kv_heads = block.attention.n_heads, block.attention.n_kv_heads
            sources += [f"a{layer}.h{head}" for head in range(heads)]
            written += [when] * heads
            letter = "h" if heads == kv_heads else "g"
            targets += [f"a{layer}.h{head}<q>" for head in range(heads)]
            targets += [f"a{layer}.{letter}{g}<{port}>" for port in "kv" for g in range(kv_heads)]
            read += [when] * (heads + 2 * kv_heads)
            groups.append(heads // kv_heads if kv_heads else 0)
            if block.mlp is not None:
                late = when + int(block.placement == "sequential")
                sources.append(f"m{layer}")
                targets.append(f"m{layer}")
                written.append(late)
                read.append(late)
        return ComponentGraph(
            tuple(sources),
            (*targets, LOGITS),
            np.array(written),
            np.array([*read, 2 * anatomy.n_layers]),
            tuple(groups),
        )

    def at_places(self, places: Sequence[str], *, ordered: bool = False) -> ComponentGraph:
        """Return the graph with every target but the logits told apart by place.

        Args:
            places: Names of roles, or numbers of positions.
            ordered: Whether they are positions, first to last.
        """
        targets = [f"{t}@{place}" for t in self.targets[:-1] for place in places]
        return replace(
            self,
            targets=(*targets, LOGITS),
            target_order=np.append(
                self.target_order[:-1].repeat(len(places)), self.target_order[-1]
            ),
            places=tuple(places),
            ordered=ordered,
        )

    @cached_property
    def place_number(self) -> dict[str, int]:
        """Number of each place by its name."""
        return {place: i for i, place in enumerate(self.places)}

    @cached_property
    def place_numbers(self) -> np.ndarray:
        """Number of each target's place, -1 where it has none ``[target]``."""
        return np.array([self.place_number.get(t.partition("@")[2], -1) for t in self.targets])

    @cached_property
    def possible(self) -> np.ndarray:
        """Whether a source can reach a target directly ``[source, target]``."""
        return np.asarray(self.source_order[:, None] < self.target_order[None, :])

    @cached_property
    def pairs(self) -> np.ndarray:
        """Source and target number of every possible edge ``[edge, 2]``, sources outermost."""
        return np.argwhere(self.possible)

    @cached_property
    def edges(self) -> tuple[str, ...]:
        """Names of all possible edges, ``a0.h1->m2``, in the order of ``pairs``."""
        return tuple(f"{self.sources[u]}->{self.targets[v]}" for u, v in self.pairs)

    @cached_property
    def _neurons(self) -> dict[str, tuple[str, ...]]:
        """Sources that an MLP is told apart into, by its name."""
        found: dict[str, tuple[str, ...]] = {}
        for source in self.sources:
            owner, dot, _ = source.partition(".")
            if owner[0] == "m" and dot:
                found[owner] = (*found.get(owner, ()), source)
        return found

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.edges)}

    @property
    def n_edges(self) -> int:
        """Number of possible edges."""
        return len(self.pairs)

    def readers(self, target: str) -> tuple[str, ...]:
        """Return the sources whose input a target is, ``("logits",)`` for the logits."""
        if target == LOGITS:
            return (LOGITS,)
        node = target.split("@")[0].split("<")[0]
        if ".g" not in node:
            return self._neurons.get(node, (node,))
        layer, group = int(node[1 : node.index(".")]), int(node.split(".g")[1])
        size = self.group_size[layer]
        return tuple(f"a{layer}.h{group * size + n}" for n in range(size))

    def mask(self, edges: Iterable[str]) -> np.ndarray:
        """Return which edges are among the given ones ``[source, target]``.

        Raises:
            UnknownNameError: If one is not an edge of the model.
        """
        kept = np.zeros(self.possible.shape, dtype=bool)
        chosen = self.pairs[self.numbers(edges)]
        kept[chosen[:, 0], chosen[:, 1]] = True
        return kept

    def numbers(self, edges: Iterable[str]) -> np.ndarray:
        """Return the places of edges in ``edges`` and ``pairs``.

        Raises:
            UnknownNameError: If one is not an edge of the model.
        """
        found = []
        for edge in edges:
            if edge not in self._numbers:
                raise UnknownNameError(f"No edge {edge!r}{nearest(edge, self._numbers)}.")
            found.append(self._numbers[edge])
        return np.array(found, dtype=int)

    def named(self, mask: np.ndarray) -> tuple[str, ...]:
        """Return the names of the possible edges that a mask ``[source, target]`` keeps."""
        keep = mask[self.pairs[:, 0], self.pairs[:, 1]]
        return tuple(self.edges[i] for i in np.flatnonzero(keep))

    def connected(self, mask: np.ndarray) -> np.ndarray:
        """Return the mask without edges that lie on no path from the embedding to the logits."""
        return connected(self, mask)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield source and target of every possible edge."""
        return ((self.sources[u], self.targets[v]) for u, v in self.pairs)


def split_edge(edge: str) -> tuple[str, str]:
    """Return source and target of an edge's name.

    Raises:
        UnknownNameError: If it has no arrow.
    """
    source, arrow, target = edge.partition("->")
    if not arrow:
        raise UnknownNameError(f"{edge!r} is no edge; expected a name such as a0.h1->m2.")
    return source, target


def port_of(target: str) -> Port:
    """Return the port of a target: ``q``, ``k`` or ``v`` of a head, ``in``, or ``logits``.

    Raises:
        UnknownNameError: If it is not the name of a target.
    """
    match = _TARGET.fullmatch(target)
    if match is None:
        raise UnknownNameError(
            f"{target!r} is no target; expected a name such as a0.h1<q>, m2 or logits."
        )
    port = match.group("port")
    if port in ("q", "k", "v"):
        return port  # type: ignore[return-value]
    return "logits" if target == LOGITS else "in"


def nodes_on(edges: Sequence[str], graph: ComponentGraph) -> tuple[str, ...]:
    """Return the heads and MLPs that some edges leave or enter, in the graph's order."""
    touched: set[str] = set()
    for edge in edges:
        source, target = split_edge(edge)
        touched |= {source, *graph.readers(target)}
    return tuple(s for s in graph.sources if s in touched and s != EMBED)
