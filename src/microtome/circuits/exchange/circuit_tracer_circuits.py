"""Edge circuits of heads and MLPs as attribution graphs, and attribution graphs as circuits.

Heads and MLPs become nodes of types of their own. Links know no ports: the scores of a head's ports
are added, and an extra key ``ports`` keeps them apart. An edge into a key/value group becomes a
link to every head of it, each with an equal part of the score, so that sums stay what they were.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from microtome.circuits.exchange.circuit_tracer import (
    EMBEDDING,
    HEAD,
    LOGIT,
    MLP,
    AttributionGraph,
    AttributionNode,
    Link,
)
from microtome.circuits.exchange.files import checked, field
from microtome.circuits.exchange.scored import ScoredCircuit
from microtome.circuits.exchange.shape import Shape, graph_of
from microtome.circuits.graph import EMBED, LOGITS, ComponentGraph, split_edge
from microtome.circuits.results import Circuit
from microtome.core.hashing import sha256_json
from microtome.errors import FormatError, ShapeError

EVERYWHERE = "(summed over positions)"
_OWN = "microtome"


def attribution_graph(
    scored: ScoredCircuit,
    *,
    slug: str = "circuit",
    model_name: str = "",
    prompt_tokens: Sequence[str] = (),
    position: int | None = None,
) -> AttributionGraph:
    """Return an edge circuit as an attribution graph.

    Args:
        scored: The circuit with scores; an edge without one gets weight 0. Scores of edges outside
            the circuit have no place in the format and are left out.
        slug: Name of the graph.
        model_name: Name of the model; its fingerprint otherwise.
        prompt_tokens: Tokens of an example prompt to show; without them one place stands for all,
            because the circuit's scores are sums over positions.
        position: Place at which the nodes stand; the last by default.

    Raises:
        FormatError: If it is no edge circuit of all edges of a model.
        ShapeError: If the position is outside the prompt.
    """
    graph = graph_of(scored.circuit)
    shape = Shape.of(scored.circuit)
    tokens = tuple(prompt_tokens) or (EVERYWHERE,)
    place = len(tokens) - 1 if position is None else position
    if shape is None or not 0 <= place < len(tokens):
        raise ShapeError(f"position {place} is outside a prompt of {len(tokens)} tokens")
    links = _links(scored, graph, place)
    used = {name for link in links for name in (link.source, link.target)}
    layers = len(shape.blocks)
    ends = [_node(EMBED, layers, place), _node(LOGITS, layers, place)]
    inner = [_node(name, layers, place) for name in graph.sources[1:]]
    own = {
        "version": 1,
        "shape": shape.to_plain(),
        "method": scored.circuit.method,
        "model": scored.circuit.model,
        "scored": sorted(set(scored.scores) & scored.circuit.kept),
    }
    return AttributionGraph(
        slug=slug,
        scan=model_name or scan_of(scored.circuit),
        nodes=(ends[0], *(n for n in inner if n.node_id in used), ends[1]),
        links=links,
        prompt="".join(tokens) if prompt_tokens else "",
        prompt_tokens=tokens,
        extra={_OWN: own},
    )


def scan_of(circuit: Circuit) -> str:
    """Return a name for a circuit's model that is the same in every process: a SHA-256."""
    digest = circuit.model or sha256_json(list(circuit.universe))
    return f"microtome-{hashlib.sha256(digest.encode()).hexdigest()[:16]}"


def circuit_of(graph: AttributionGraph) -> ScoredCircuit:
    """Return the edge circuit that ``attribution_graph`` wrote.

    Raises:
        FormatError: If the graph is another one: of latents, or of another program; draw it with
            ``diagram_of`` instead.
    """
    own = graph.extra.get(_OWN)
    if not isinstance(own, dict):
        raise FormatError(
            f"{graph.slug!r} is no circuit of heads and MLPs that microtome wrote: its metadata "
            "lack 'microtome'; it can be drawn (diagram_of), but not turned into a circuit"
        )
    where = f"'microtome' of {graph.slug!r}"
    component = Shape.from_plain(field(own, "shape", list, where=where), where=where).graph()
    names = {node.node_id: node.clerp for node in graph.nodes}
    origin = {copy: edge for edge in component.edges for copy in _copies(edge, component)}
    scores: dict[str, float] = defaultdict(float)
    for link in graph.links:
        for port, weight in (link.ports or {"": link.weight}).items():
            key = names[link.source], names[link.target], port
            if key not in origin:
                raise FormatError(f"{graph.slug!r} has a link {key} that is no edge of its model")
            scores[origin[key]] += weight
    scored = {checked(x, str, where=where) for x in field(own, "scored", list, where=where)}
    circuit = Circuit(
        parts=tuple(e for e in component.edges if e in scores),
        universe=component.edges,
        method=field(own, "method", str, where=where),
        level="edge",
        model=field(own, "model", str, where=where),
    )
    return ScoredCircuit(circuit, {e: s for e, s in scores.items() if e in scored})


Copy = tuple[str, str, str]
"""Source, head or MLP, and port of one link's share of an edge."""


def _copies(edge: str, graph: ComponentGraph) -> list[Copy]:
    source, target = split_edge(edge)
    port = target.split("<")[1][0] if "<" in target else ""
    return [(source, reader, port) for reader in graph.readers(target)]


def _links(scored: ScoredCircuit, graph: ComponentGraph, place: int) -> tuple[Link, ...]:
    layers = len(graph.group_size)
    weights: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for edge in scored.circuit.parts:
        copies = _copies(edge, graph)
        for source, reader, port in copies:
            weights[source, reader][port] = float(scored.scores.get(edge, 0.0)) / len(copies)
    links = []
    for (source, target), ports in weights.items():
        first, last = (_node(name, layers, place).node_id for name in (source, target))
        links.append(Link(first, last, sum(ports.values()), {} if "" in ports else ports))
    return tuple(links)


def _node(name: str, layers: int, place: int) -> AttributionNode:
    common: dict[str, Any] = {"ctx_idx": place, "clerp": name}
    if name == EMBED:
        return AttributionNode(
            f"E_0_{place}", place, "E", feature_type=EMBEDDING, js_node_id=f"E_0-{place}", **common
        )
    if name == LOGITS:
        layer = str(layers + 1)
        return AttributionNode(
            f"{layer}_0_{place}", 0, layer, feature_type=LOGIT, is_target_logit=True,
            js_node_id=f"L_0-{place}", **common,
        )  # fmt: skip
    layer, _, head = name[1:].partition(".h")
    part, number, kind = (f"h{head}", int(head), HEAD) if head else ("mlp", 0, MLP)
    return AttributionNode(
        f"{layer}_{part}_{place}", number, layer, feature_type=kind,
        js_node_id=f"{layer}_{part}-0", **common,
    )  # fmt: skip
