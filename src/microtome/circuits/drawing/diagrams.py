"""Circuits as diagrams: nodes and edges of a view from the names of parts and their scores.

Edges told apart by place are drawn as one, with the sum of their scores, unless the places are to
be shown: then every head and MLP stands there once for each place at which it reads or writes.

An edge into a key/value group is drawn to each of the group's heads that the circuit uses otherwise
(to all of them if there is none), each with an equal share of the score.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from microtome.circuits.graph import LOGITS, split_edge
from microtome.circuits.parts import Part, Scores, part, scores_by_name
from microtome.errors import ConfigError, UnknownNameError
from microtome.views import CircuitDiagram, Edge, Node, numbers
from microtome.views.circuit import Port

if TYPE_CHECKING:
    from microtome.circuits.results import Circuit

MOST_NODES = 400
"""More nodes than this are refused: nobody could tell them apart."""

PLAIN = "edge of the circuit"

Pairs = Mapping[tuple[str, str], float]
"""Weights of pairs of nodes, as ``connections`` gives them."""


def diagram(
    circuit: Circuit,
    scores: Scores | None = None,
    *,
    classes: Mapping[str, str] | None = None,
    connections: Pairs | None = None,
    max_edges: int = 200,
    unit: str = "",
    by_place: bool = False,
) -> CircuitDiagram:
    """Return a circuit as a layered diagram.

    Args:
        circuit: A circuit of edges or of nodes.
        scores: Scores of its parts: the edges' width, sign and color. Nodes of an edge circuit take
            the sum over their outgoing edges in the circuit.
        classes: Named class of nodes, drawn as a ring; ``.collapsed()`` of the diagram draws the
            nodes of one class, layer and kind as one.
        connections: Edges to draw between the nodes of a node circuit, with their weights.
        max_edges: How many edges are drawn, the strongest; the rest is counted in a line.
        unit: Unit of the scores.
        by_place: Whether a head or MLP is drawn once for each role or position of its edges, in
            place of once for all. What is written to the logits stands at the prompt's end. Without
            ``classes`` nodes of one place are a class.

    Raises:
        ConfigError: If more nodes would be drawn than can be told apart.
        UnknownNameError: If a part has no name that says where it stands.
    """
    found = Drawn(circuit, scores, classes=classes, connections=connections, by_place=by_place)
    return found.diagram(max_edges=max_edges, unit=unit)


class Drawn:
    """A circuit's nodes and edges, ready to be drawn.

    Attributes:
        circuit: The circuit.
        edges: Edges of the diagram by part of the circuit, the strongest part first.
        nodes: Ends of the edges, or the parts of a node circuit, by name.
    """

    def __init__(
        self,
        circuit: Circuit,
        scores: Scores | None = None,
        *,
        classes: Mapping[str, str] | None = None,
        connections: Pairs | None = None,
        groups: Mapping[str, str] | None = None,
        by_place: bool = False,
    ) -> None:
        """Read the names of the parts; ``groups`` gives named classes of edges."""
        self.circuit = circuit
        self.by_place = by_place and circuit.level in ("role-edge", "position-edge")
        self.scores = scores_by_name(scores)
        self.classes = classes or {}
        self.groups = groups or {}
        self.layers, self.heads, self.has_mlp = _extent(circuit)
        self.edges = self._edges() if circuit.of_edges else _pairs(connections or {})
        self.nodes = self._nodes()

    def _edges(self) -> dict[str, tuple[Edge, ...]]:
        sizes = _group_sizes(self.circuit)
        ends = {name: self._ends(name) for name in self.circuit.parts}
        named = {u.node for u, _ in ends.values()}
        named |= {v.node for _, v in ends.values() if v.kind != "group"}
        known = bool(self.scores)
        # edges that differ in what is not drawn, their place, are one
        weights: dict[tuple[str, str, Port, str], float] = defaultdict(float)
        drawn: dict[str, list[tuple[str, str, Port, str]]] = {}
        for name, (source, target) in ends.items():
            readers = _readers(target, sizes, named)
            group = self.groups.get(name, "" if known else PLAIN)
            drawn[name] = [(source.node, reader, _port(target), group) for reader in readers]
            for key in drawn[name]:
                weights[key] += self.scores.get(name, 0.0) / len(readers) if known else 1.0
        if not known:
            weights = defaultdict(lambda: 1.0)
        found = {
            name: tuple(Edge(s, t, weights[s, t, port, g], port, g) for s, t, port, g in keys)
            for name, keys in drawn.items()
        }
        return dict(sorted(found.items(), key=lambda item: -sum(abs(e.weight) for e in item[1])))

    def _ends(self, edge: str) -> tuple[Part, Part]:
        """Return the ends of an edge as they are drawn."""
        source, target = (part(end) for end in split_edge(edge))
        if self.by_place:
            place = target.place or self._end
            return replace(source, node=f"{source.node}@{place}", place=place), target
        return source, replace(target, node=target.node.partition("@")[0], place="")

    @cached_property
    def _end(self) -> str:
        """The place at which the logits read: the role of that name, or the last position."""
        if self.circuit.level == "role-edge":
            return "end"
        return max((e.partition("@")[2] or "0" for e in self.circuit.universe), key=int)

    def drawn_edges(self) -> list[Edge]:
        """Return every edge of the diagram once, the strongest first."""
        return list(dict.fromkeys(edge for edges in self.edges.values() for edge in edges))

    def _nodes(self) -> dict[str, Node]:
        names = dict.fromkeys(() if self.circuit.of_edges else self.circuit.parts)
        strength: dict[str, float] = defaultdict(float)
        for edge in self.drawn_edges():
            names |= {edge.source: None, edge.target: None}
            strength[edge.source] += edge.weight
        if not self.circuit.of_edges:
            strength = defaultdict(lambda: math.nan, self.scores)
        elif not self.scores:
            strength = defaultdict(lambda: math.nan)
        return {
            name: self._node(part(name), math.nan if name == LOGITS else strength[name])
            for name in names
        }

    def _node(self, one: Part, strength: float) -> Node:
        if one.kind == "group":
            raise UnknownNameError(f"{one.node} is a key/value group, not a node; name its heads")
        label = "" if one.label == one.node else one.label
        place = one.place if self.by_place and not self.classes else ""
        group = self.classes.get(one.node, self.classes.get(one.node.split("@")[0], place))
        return Node(one.node, one.kind, one.layer, one.index, label, strength, group)

    def diagram(
        self, *, max_edges: int, unit: str = "", marks: bool = True, groups: Sequence[str] = ()
    ) -> CircuitDiagram:
        """Return the diagram; of many edges the strongest, and the nodes that they join.

        Args:
            max_edges: How many edges are drawn.
            unit: Unit of the scores.
            marks: Whether all heads of the model stand beside it as small marks.
            groups: Order of the classes, for their colors.
        """
        edges = self.drawn_edges()
        nodes, note = list(self.nodes.values()), ""
        whole = len(edges) <= max_edges or not self.circuit.of_edges
        if not whole:
            ends = {name for edge in edges[:max_edges] for name in (edge.source, edge.target)}
            nodes = [n for n in nodes if n.name in ends or n.kind in ("embed", "logits")]
            note = (
                f"{numbers.count(len(nodes))} of {numbers.count(len(self.nodes))} nodes of the "
                "circuit are drawn: the ends of these edges."
            )
        check_nodes(len(nodes))
        shown = {node.name for node in nodes}
        inside = [edge for edge in edges if edge.source in shown and edge.target in shown]
        outside = [e.weight for e in edges if not (e.source in shown and e.target in shown)]
        marks = marks and whole and all(node.kind not in ("neuron", "latent") for node in nodes)
        marks = marks and not any("@" in node.name for node in nodes)
        of_node = not self.circuit.of_edges
        return CircuitDiagram(
            nodes=nodes,
            edges=inside,
            n_layers=self.layers,
            n_heads=self.heads if marks and self.heads else None,
            has_mlp=self.has_mlp,
            max_edges=max_edges,
            unit=unit,
            strength_label="score of the part" if of_node else "sum over the edges that leave it",
            groups=groups,
            left_out=outside,
            note=note,
        )


def check_nodes(count: int) -> None:
    """Refuse more nodes than can be told apart.

    Raises:
        ConfigError: If there are more than 400.
    """
    if count > MOST_NODES:
        raise ConfigError(
            f"a diagram of {count} nodes cannot be read; at most {MOST_NODES} are drawn. Draw a "
            "smaller circuit, lower max_edges, or collapse its nodes by class"
        )


def _extent(circuit: Circuit) -> tuple[int, int, bool]:
    """Return layers, most heads in a layer, and whether there are MLPs, of the whole model."""
    names: Iterable[str] = circuit.universe
    if circuit.of_edges:
        names = _all_ends(circuit)
    parts = [part(name) for name in names]
    inner = [p for p in parts if p.kind not in ("embed", "logits")]
    layers = 1 + max((p.layer for p in inner), default=-1)
    heads = 1 + max((p.index for p in inner if p.kind == "head"), default=-1)
    return layers, heads, any(p.kind == "mlp" for p in inner)


def _all_ends(circuit: Circuit) -> set[str]:
    """Return the ends of all edges of a model, places left aside."""
    return {end for edge in circuit.universe for end in edge.partition("@")[0].split("->")}


def _group_sizes(circuit: Circuit) -> dict[int, int]:
    """Return query heads for each key/value group, by layer."""
    heads: dict[int, int] = defaultdict(int)
    groups: dict[int, int] = defaultdict(int)
    for name in _all_ends(circuit):
        one = part(name)
        if one.kind in ("head", "group"):
            counts = heads if one.kind == "head" else groups
            counts[one.layer] = max(counts[one.layer], one.index + 1)
    return {layer: max(1, heads[layer] // count) for layer, count in groups.items()}


def _readers(target: Part, sizes: Mapping[int, int], named: set[str]) -> list[str]:
    """Return the nodes at which an edge to a target ends."""
    if target.kind != "group":
        return [target.node]
    size = sizes.get(target.layer, 1)
    place = f"@{target.place}" if target.place else ""
    heads = [
        f"a{target.layer}.h{head}{place}"
        for head in range(target.index * size, (target.index + 1) * size)
    ]
    return [head for head in heads if head in named] or heads


def _port(target: Part) -> Port:
    return target.port if target.port in ("q", "k", "v") else ""  # type: ignore[return-value]


def _pairs(connections: Pairs) -> dict[str, tuple[Edge, ...]]:
    ranked = sorted(connections.items(), key=lambda item: -abs(item[1]))
    return {f"{s}->{t}": (Edge(s, t, float(weight)),) for (s, t), weight in ranked}
