"""The shape of a component graph, found from the names of its parts and built without a model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.circuits.exchange.files import LIMIT_EDGES, checked
from microtome.circuits.graph import EMBED, LOGITS, ComponentGraph
from microtome.errors import FormatError

if TYPE_CHECKING:
    from microtome.circuits.results import Circuit, Level

_PART = re.compile(r"(?:a(\d{1,6})\.([hg])(\d{1,6})|m(\d{1,6}))(?:<[qkv]>)?")


@dataclass(frozen=True)
class Block:
    """What one block of a model holds.

    Attributes:
        heads: Query heads; 0 without attention.
        kv_heads: Key/value heads.
        mlp: Whether it has an MLP.
        parallel: Whether attention and MLP read the same stream.
    """

    heads: int
    kv_heads: int
    mlp: bool = True
    parallel: bool = False


@dataclass(frozen=True)
class Shape:
    """The blocks of a model, as far as a component graph depends on them.

    Attributes:
        blocks: The blocks from first to last.
    """

    blocks: tuple[Block, ...]

    @staticmethod
    def uniform(
        layers: int, heads: int, *, kv_heads: int | None = None, parallel: bool = False
    ) -> Shape:
        """Return the shape of a model of equal blocks.

        Raises:
            FormatError: If its graph would have more than 5 million edges, or no part.
        """
        if layers < 1 or heads < 1:
            raise FormatError(f"{layers} layers of {heads} heads; expected at least one of each")
        if layers * (heads + 1) * layers * (3 * heads + 1) > 2 * LIMIT_EDGES:
            raise FormatError(
                f"{layers} layers of {heads} heads have more than {LIMIT_EDGES} edges; check the "
                "file's cfg"
            )
        block = Block(heads, kv_heads or heads, parallel=parallel)
        return Shape((block,) * layers)

    @staticmethod
    def of(circuit: Circuit) -> Shape | None:
        """Return the shape whose parts are a circuit's universe, None if there is none."""
        found = _shape(circuit.universe, circuit.level)
        if found is None or set(found.universe(circuit.level)) != set(circuit.universe):
            return None
        return found

    @staticmethod
    def from_plain(rows: Any, *, where: str) -> Shape:
        """Return the shape that ``to_plain`` wrote.

        Raises:
            FormatError: If it is none, or too large.
        """
        blocks = []
        for row in checked(rows, list, where=where):
            numbers = [checked(x, int, where=where) for x in checked(row, list, where=where)]
            if len(numbers) != 4 or min(numbers) < 0 or max(numbers) > 10_000:
                raise FormatError(f"{where} holds {row!r}; expected heads, kv heads, mlp, parallel")
            heads, kv_heads, mlp, parallel = numbers
            if (heads % kv_heads if kv_heads else heads) != 0:
                raise FormatError(f"{where}: {heads} heads do not share {kv_heads} key/value heads")
            blocks.append(Block(heads, kv_heads, bool(mlp), bool(parallel)))
        sources = sum(b.heads + 1 for b in blocks) + 1
        if sources * sum(3 * b.heads + 1 for b in blocks) / 2 > LIMIT_EDGES:
            raise FormatError(f"{where} describes more than {LIMIT_EDGES} edges")
        return Shape(tuple(blocks))

    def to_plain(self) -> list[list[int]]:
        """Return heads, key/value heads, MLP and parallel of every block, as numbers."""
        return [[b.heads, b.kv_heads, int(b.mlp), int(b.parallel)] for b in self.blocks]

    def universe(self, level: Level) -> tuple[str, ...]:
        """Return all parts: the edges, or the heads and MLPs."""
        graph = self.graph()
        return graph.edges if level == "edge" else graph.sources[1:]

    def graph(self) -> ComponentGraph:
        """Return the component graph, equal to that of a model of this shape."""
        sources, targets, written, read = [EMBED], [], [-1], []
        for layer, block in enumerate(self.blocks):
            when = 2 * layer
            letter = "h" if block.heads == block.kv_heads else "g"
            sources += [f"a{layer}.h{head}" for head in range(block.heads)]
            targets += [f"a{layer}.h{head}<q>" for head in range(block.heads)]
            targets += [
                f"a{layer}.{letter}{g}<{port}>" for port in "kv" for g in range(block.kv_heads)
            ]
            written += [when] * block.heads
            read += [when] * (block.heads + 2 * block.kv_heads)
            if block.mlp:
                late = when + int(not block.parallel)
                sources.append(f"m{layer}")
                targets.append(f"m{layer}")
                written.append(late)
                read.append(late)
        sizes = tuple(b.heads // b.kv_heads if b.kv_heads else 0 for b in self.blocks)
        order = np.array([*read, 2 * len(self.blocks)])
        return ComponentGraph(tuple(sources), (*targets, LOGITS), np.array(written), order, sizes)


def graph_of(circuit: Circuit) -> ComponentGraph:
    """Return the component graph of which an edge circuit's universe is all edges.

    Raises:
        FormatError: If the circuit is one of nodes, or its universe is not all edges of a model.
    """
    shape = Shape.of(circuit) if circuit.level == "edge" else None
    if shape is None:
        raise FormatError(
            f"the circuit's universe of {len(circuit.universe)} {circuit.level}s is not all edges "
            "between the heads and MLPs of a model; give an edge circuit of a ComponentGraph"
        )
    return shape.graph()


def _shape(universe: Sequence[str], level: Level) -> Shape | None:
    names = set(universe)
    found = _counts(_ends(names) if level == "edge" else names)
    if found is None:
        return None
    heads, groups, mlps = found
    layers = 1 + max([*heads, *mlps], default=-1)
    blocks = []
    for layer in range(layers):
        own = heads.get(layer, 0)
        both = own > 0 and layer in mlps and level == "edge"
        parallel = both and f"a{layer}.h0->m{layer}" not in names
        blocks.append(Block(own, groups.get(layer, own), layer in mlps, parallel))
    if any(b.kv_heads and b.heads % b.kv_heads for b in blocks):
        return None
    return Shape(tuple(blocks))


def _ends(edges: Iterable[str]) -> set[str]:
    return {end for edge in edges for end in edge.split("->")}


def _counts(names: Iterable[str]) -> tuple[dict[int, int], dict[int, int], set[int]] | None:
    """Return heads and key/value groups by layer and the layers with an MLP."""
    heads: dict[int, int] = defaultdict(int)
    groups: dict[int, int] = defaultdict(int)
    mlps: set[int] = set()
    for name in names:
        match = _PART.fullmatch(name)
        if match is None:
            if name in (EMBED, LOGITS):
                continue
            return None
        layer, letter, number, mlp = match.groups()
        if mlp is not None:
            mlps.add(int(mlp))
        else:
            counts = heads if letter == "h" else groups
            counts[int(layer)] = max(counts[int(layer)], int(number) + 1)
    total = 1 + max([*heads, *groups, *mlps], default=-1)
    if total > 10_000 or sum(heads.values()) > 100_000:
        return None
    return heads, groups, mlps
