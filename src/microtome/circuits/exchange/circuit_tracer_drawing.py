"""Attribution graphs as layered diagrams: the strongest links and the nodes that they join."""

from __future__ import annotations

import math
from collections.abc import Mapping

from microtome.circuits.exchange.circuit_tracer import (
    EMBEDDING,
    ERROR,
    HEAD,
    LOGIT,
    MLP,
    AttributionGraph,
    AttributionNode,
)
from microtome.views import CircuitDiagram, Edge, Node, numbers
from microtome.views.circuit import Kind

_KINDS: Mapping[str, Kind] = {
    EMBEDDING: "embed", LOGIT: "logits", HEAD: "head", MLP: "mlp", ERROR: "neuron",
}  # fmt: skip


def diagram_of(graph: AttributionGraph, *, max_edges: int = 200) -> CircuitDiagram:
    """Return an attribution graph as a diagram; nodes of unknown types are drawn as latents.

    Errors of reconstruction are small squares. Tokens and positions stand in the labels.

    Args:
        graph: The graph.
        max_edges: How many links are drawn, the strongest; the rest is counted in a line.
    """
    links = sorted(
        (link for link in graph.links if link.source != link.target and link.weight),
        key=lambda link: (-abs(link.weight), link.source, link.target),
    )
    ends = {name for link in links[:max_edges] for name in (link.source, link.target)}
    inside = [link for link in links if link.source in ends and link.target in ends]
    note = (
        f"{numbers.count(len(ends))} of {numbers.count(len(graph.nodes))} nodes are drawn: the "
        "ends of these edges."
    )
    return CircuitDiagram(
        nodes=[_node(node, graph) for node in graph.nodes if node.node_id in ends],
        edges=[Edge(link.source, link.target, link.weight) for link in inside],
        max_edges=max_edges,
        strength_label="influence",
        left_out=[
            link.weight for link in links if link.source not in ends or link.target not in ends
        ],
        note=note if len(ends) < len(graph.nodes) else "",
    )


def _node(node: AttributionNode, graph: AttributionGraph) -> Node:
    kind = _KINDS.get(node.feature_type, "latent")
    token = graph.prompt_tokens[node.ctx_idx] if graph.prompt_tokens else ""
    place = f"{token}@{node.ctx_idx}"
    label = place if kind == "embed" else f"{node.clerp or node.node_id} {place}"
    return Node(
        node.node_id,
        kind,
        int(node.layer) if node.layer.isdigit() and kind != "logits" else 0,
        node.ctx_idx,
        label=node.clerp if kind == "logits" and node.clerp else label,
        strength=math.nan if node.influence is None else node.influence,
    )
