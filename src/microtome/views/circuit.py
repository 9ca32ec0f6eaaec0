"""Circuit diagrams: embeddings below, logits above, one band per layer.

Example::

    Node(name="a2.h3", kind="head", layer=2, index=3, strength=0.8, group="quote finder")
    Edge(source="embed", target="a2.h3", weight=0.4, port="k")
    CircuitDiagram(nodes, edges, n_layers=4, n_heads=8, max_edges=200, unit="logits")

Heads are discs, MLPs rounded squares, neurons small squares, latents hexagons. The width of an
edge is its strength and its dash its sign; the fill of a node is its signed strength, its ring
its group. Heads and MLPs that are not in the circuit are small gray marks. What is not drawn is
counted in a line.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from microtome.errors import ShapeError, UnknownNameError, nearest
from microtome.views import numbers
from microtome.views.circuit_drawing import CircuitDrawing
from microtome.views.markup import Markup
from microtome.views.table import Cell, Table
from microtome.views.view import NARROW, WIDE, Drawing

Kind = Literal["embed", "head", "mlp", "neuron", "latent", "logits"]
Port = Literal["", "q", "k", "v"]

CROWDED = 40
"""With more edges than this, one layout serves all widths."""

MOST_ROWS = 1000
"""Rows of the table behind the picture at most, for edges."""


@dataclass(frozen=True)
class Node:
    """A part of the circuit.

    Attributes:
        name: Unique name, such as ``a2.h3`` or ``m1``.
        kind: What it is.
        layer: Its layer; ignored for embeddings and logits.
        index: Head or neuron number, for the order within its layer.
        label: What is written beside it; the name if "".
        strength: Signed effect, or NaN if it is not known.
        group: Named class it belongs to, or "".
    """

    name: str
    kind: Kind
    layer: int = 0
    index: int = 0
    label: str = ""
    strength: float = math.nan
    group: str = ""

    @property
    def text(self) -> str:
        """What is written beside the node."""
        return self.label or self.name


@dataclass(frozen=True)
class Edge:
    """A connection from an earlier node to a later one.

    Attributes:
        source: Name of the node it leaves.
        target: Name of the node it enters.
        weight: Signed strength.
        port: Port of a head that it enters, or "" if that is not known.
        group: Named class it belongs to, which then gives color and dash instead of the sign.
    """

    source: str
    target: str
    weight: float
    port: Port = ""
    group: str = ""


@dataclass(frozen=True, eq=False)
class CircuitDiagram(Drawing):
    """A circuit drawn in layers.

    Attributes:
        nodes: The parts of the circuit.
        edges: Their connections; those that are not finite are left out and counted.
        n_layers: Number of layers of the model; as many as the nodes need if None.
        n_heads: Number of heads per layer, for the gray marks; none are drawn if None.
        has_mlp: Whether each layer has an MLP, for the gray marks.
        max_edges: How many edges are drawn, the strongest first.
        unit: Unit of the weights.
        strength_label: What the fill of a node shows.
        limit: Strength of the full color; the largest magnitude if None.
        groups: Order of the groups, for their colors; first come, first served if empty.
        left_out: Weights of further edges, whose nodes are not drawn either; they are counted.
        note: A sentence behind the line that counts what is not drawn.

    Raises:
        ShapeError: Two nodes of one name, a layer or head outside the model, a node of
            unknown kind, or an edge from a node to itself.
        UnknownNameError: An edge names a node that does not exist.
    """

    nodes: Sequence[Node]
    edges: Sequence[Edge] = ()
    n_layers: int | None = None
    n_heads: int | None = None
    has_mlp: bool = True
    max_edges: int = 200
    unit: str = ""
    strength_label: str = "effect of the part"
    limit: float | None = None
    groups: Sequence[str] = ()
    left_out: Sequence[float] = ()
    note: str = ""

    def __post_init__(self) -> None:
        """Check names, layers and kinds."""
        counted = Counter(node.name for node in self.nodes)
        twice = sorted(name for name, count in counted.items() if count > 1)
        if twice:
            raise ShapeError(f"two nodes share a name: {', '.join(twice)}; give each its own")
        for node in self.nodes:
            self._check_node(node)
        for edge in self.edges:
            for name in (edge.source, edge.target):
                if name not in counted:
                    raise UnknownNameError(
                        f"edge {edge.source} to {edge.target}: no node {name!r}"
                        f"{nearest(name, counted)}"
                    )
            if edge.source == edge.target:
                raise ShapeError(f"an edge leads from {edge.source} to itself; leave it out")

    def _check_node(self, node: Node) -> None:
        if node.kind not in get_args(Kind):
            kinds = ", ".join(get_args(Kind))
            raise ShapeError(f"node {node.name!r} is of kind {node.kind!r}; choose one of {kinds}")
        if node.kind in ("embed", "logits"):
            return
        for word, number, total in (
            ("layer", node.layer, self.n_layers),
            ("head", node.index if node.kind == "head" else 0, self.n_heads),
        ):
            if number < 0 or (total is not None and number >= total):
                raise ShapeError(
                    f"node {node.name!r} is {word} {number}, but there are {total}; "
                    f"number them from 0"
                )

    @property
    def layers(self) -> int:
        """Number of layers."""
        if self.n_layers is not None:
            return self.n_layers
        inner = [node.layer for node in self.nodes if node.kind not in ("embed", "logits")]
        return max(inner, default=-1) + 1

    @cached_property
    def drawn(self) -> list[Edge]:
        """The edges that are drawn, the strongest first."""
        usable = [edge for edge in self.edges if math.isfinite(edge.weight) and edge.weight]
        ranked = sorted(usable, key=lambda e: (-abs(e.weight), e.source, e.target, e.port))
        return ranked[: self.max_edges]

    @cached_property
    def group_names(self) -> list[str]:
        """The groups of nodes and of drawn edges, in the order of their colors."""
        named = [*(node.group for node in self.nodes), *(edge.group for edge in self.drawn)]
        used = dict.fromkeys(group for group in named if group)
        return [*(g for g in self.groups if g in used), *(g for g in used if g not in self.groups)]

    def remark(self) -> str:
        """Return the line that counts what is not drawn, or "" if everything is."""
        drawn, parts = self.drawn, []
        weights = [*(edge.weight for edge in self.edges), *self.left_out]
        if len(weights) > len(drawn):
            finite = [abs(weight) for weight in weights if math.isfinite(weight)]
            share = 1 - sum(abs(edge.weight) for edge in drawn) / (sum(finite) or 1.0)
            parts.append(
                f"{numbers.count(len(drawn))} of {numbers.count(len(weights))} edges are drawn, "
                f"the strongest; the others carry {numbers.percent(max(0.0, share))} of the summed "
                "strength."
            )
        for kind, word, total in self._universe():
            inside = sum(node.kind == kind for node in self.nodes)
            if 0 <= inside <= total:
                parts.append(
                    f"{numbers.count(inside)} of {numbers.count(total)} {word} in the circuit."
                )
        return " ".join([*parts, *filter(None, (self.note,))])

    def _universe(self) -> list[tuple[str, str, int]]:
        if self.n_heads is None:
            return []
        heads = ("head", "heads", self.layers * self.n_heads)
        return [heads, ("mlp", "MLPs", self.layers)] if self.has_mlp else [heads]

    def collapsed(self) -> CircuitDiagram:
        """Return the diagram with the nodes of one group, layer and kind drawn as one named node.

        Strengths and weights of what is joined are added; edges inside a joined node vanish.
        """
        members: dict[tuple[str, int, str], list[Node]] = defaultdict(list)
        for node in self.nodes:
            key = (node.group, node.layer, node.kind) if node.group else (node.name, -1, "")
            members[key].append(node)
        renamed: dict[str, str] = {}
        nodes = []
        for group in members.values():
            first = group[0]
            if len(group) > 1:
                text = f"{first.group} ×{len(group)}"
                total = math.fsum(node.strength for node in group)
                first = replace(first, name=f"{text} {first.layer}", label=text, strength=total)
            nodes.append(first)
            renamed |= {node.name: first.name for node in group}
        weights: dict[tuple[str, str, Port, str], float] = defaultdict(float)
        for edge in self.edges:
            source, target = renamed[edge.source], renamed[edge.target]
            if source != target:
                weights[source, target, edge.port, edge.group] += edge.weight
        edges = tuple(Edge(s, t, weight, port, g) for (s, t, port, g), weight in weights.items())
        return replace(self, nodes=tuple(nodes), edges=edges, n_heads=None, n_layers=self.layers)

    def draw(self, width: int) -> Markup:
        """Return the diagram as SVG."""
        wide = len(self.drawn) > CROWDED and width < WIDE
        return CircuitDrawing(self, WIDE if wide else max(NARROW, width)).draw()

    def table(self) -> Table:
        """Return nodes and edges, the strongest first."""
        rows: list[list[Cell]] = [
            [node.kind, node.text, "", node.strength, node.group]
            for node in sorted(self.nodes, key=lambda n: (-abs(n.strength or 0.0), n.name))
        ]
        ranked = sorted(self.edges, key=lambda e: (-abs(e.weight), e.source, e.target))
        rows += [
            ["edge", e.source, e.target, e.weight, ", ".join(filter(None, (e.port, e.group)))]
            for e in ranked[:MOST_ROWS]
        ]
        caption = ""
        if len(ranked) > MOST_ROWS:
            caption = (
                f"The {numbers.count(MOST_ROWS)} strongest of {numbers.count(len(ranked))} edges."
            )
        return Table(("kind", "from", "to", "strength", "group or port"), rows, caption)
