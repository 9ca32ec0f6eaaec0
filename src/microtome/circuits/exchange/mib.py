"""The graph JSON of EAP-IG and of the MIB benchmark's circuit track, both ways.

``cfg`` holds layers, heads, whether blocks are parallel, and the width; ``nodes`` and ``edges`` map
names to ``in_graph`` and, for edges, ``score``. Their names are ``input`` (our ``embed``),
``a0.h1``, ``m0`` and ``logits``; an edge into a head ends in ``<q>``, ``<k>`` or ``<v>``.

That format knows no key/value groups. On export an edge into a group becomes one edge into every
head of it, each with an equal part of the score, so that sums stay what they were; on import the
parts are added again. An edge that a file does not mention is not in the circuit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from microtome.circuits.exchange.files import LIMIT_BYTES, field, read_json
from microtome.circuits.exchange.scored import ScoredCircuit
from microtome.circuits.exchange.shape import Shape, graph_of
from microtome.circuits.graph import EMBED, LOGITS, ComponentGraph, split_edge
from microtome.circuits.results import Circuit
from microtome.errors import FormatError, nearest
from microtome.store.atomic import write_text

INPUT = "input"


def mib_document(scored: ScoredCircuit, *, d_model: int) -> dict[str, Any]:
    """Return the document of an edge circuit, as the MIB leaderboard takes it.

    Args:
        scored: An edge circuit with its scores; edges without a score get 0.
        d_model: Width of the model's residual stream.

    Returns:
        ``cfg``, ``nodes`` and ``edges``: for the shape of GPT-2 small 158 nodes and 32,491 edges.

    Raises:
        FormatError: If the universe is not all edges of a model whose blocks are alike, each with
            attention and an MLP; the format has no word for others.
    """
    graph = graph_of(scored.circuit)
    shape = Shape.of(scored.circuit)
    kinds = {(b.heads, b.mlp, b.parallel) for b in shape.blocks} if shape else set()
    heads, mlp, parallel = next(iter(kinds), (0, False, False))
    if shape is None or len(kinds) != 1 or not heads or not mlp:
        raise FormatError(
            "the MIB format holds models of equal blocks with attention and an MLP; "
            f"these differ: {sorted(kinds)} (heads, MLP, parallel)"
        )
    kept = scored.circuit.kept
    edges: dict[str, dict[str, Any]] = {}
    for edge in graph.edges:
        copies = list(_copies(edge, graph))
        share = float(scored.scores.get(edge, 0.0)) / len(copies)
        edges |= {name: {"score": share, "in_graph": edge in kept} for name in copies}
    touched = {INPUT, LOGITS}
    for name, entry in edges.items():
        if entry["in_graph"]:
            source, target = split_edge(name)
            touched |= {source, target.split("<")[0]}
    nodes = [INPUT, *graph.sources[1:], LOGITS]
    cfg = {
        "n_layers": len(shape.blocks),
        "n_heads": heads,
        "parallel_attn_mlp": parallel,
        "d_model": int(d_model),
    }
    return {
        "cfg": cfg,
        "nodes": {name: {"in_graph": name in touched} for name in nodes},
        "edges": edges,
    }


def write_mib(path: str | Path, scored: ScoredCircuit, *, d_model: int) -> Path:
    """Write an edge circuit as the graph JSON of EAP-IG and MIB (see ``mib_document``).

    Raises:
        FormatError: If the format has no word for the model.
        OutputError: If the file cannot be written.
    """
    return write_text(path, json.dumps(mib_document(scored, d_model=d_model), allow_nan=False))


def read_mib(
    path: str | Path,
    *,
    graph: ComponentGraph | None = None,
    model: str = "",
    limit_bytes: int = LIMIT_BYTES,
) -> ScoredCircuit:
    """Read a graph JSON of EAP-IG or MIB.

    Args:
        path: The file.
        graph: Graph of the model that it is about, against which every name is checked and whose
            key/value groups are formed again; built from the file's ``cfg`` if None.
        model: Fingerprint of that model, for the circuit.
        limit_bytes: Largest file that is read.

    Returns:
        The circuit with its scores; ``absent`` lists the edges that the file leaves out.

    Raises:
        FormatError: The file cannot be read, has another form, or is about another model.
    """
    where = str(path)
    document = read_json(path, limit_bytes=limit_bytes)
    own = _cfg_shape(field(document, "cfg", dict, where=where), where).graph()
    if graph is None:
        graph = own
    elif graph.sources != own.sources or list(graph.source_order) != list(own.source_order):
        raise FormatError(
            f"{where} is about a model of {len(own.group_size)} layers and {len(own.sources)} "
            f"sources (input, heads, MLPs), not about this one of {len(graph.group_size)} layers "
            f"and {len(graph.sources)} sources, or attention and MLP stand in another order"
        )
    _check_nodes(field(document, "nodes", dict, where=where), own, where)
    return _edges(field(document, "edges", dict, where=where), graph, where, model)


def _cfg_shape(cfg: Mapping[str, Any], where: str) -> Shape:
    inside = f"cfg in {where}"
    layers = field(cfg, "n_layers", int, where=inside)
    heads = field(cfg, "n_heads", int, where=inside)
    return Shape.uniform(
        layers, heads, parallel=field(cfg, "parallel_attn_mlp", bool, where=inside)
    )


def _check_nodes(nodes: Mapping[str, Any], own: ComponentGraph, where: str) -> None:
    known = {INPUT, LOGITS, *own.sources[1:]}
    for name, entry in nodes.items():
        if name not in known:
            raise FormatError(
                f"{where} has a node {name!r} that its cfg does not{_near(name, known)}"
            )
        field(entry, "in_graph", bool, where=f"node {name!r} in {where}")


def _edges(
    entries: Mapping[str, Any], graph: ComponentGraph, where: str, model: str
) -> ScoredCircuit:
    origin = {name: edge for edge in graph.edges for name in _copies(edge, graph)}
    sizes = Counter(origin.values())
    scores: dict[str, float] = {}
    seen: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for name, entry in entries.items():
        edge = origin.get(name)
        if edge is None:
            raise FormatError(f"{where} has an edge {name!r} that is not one{_near(name, origin)}")
        inside = f"edge {name!r} in {where}"
        score = field(entry, "score", float, where=inside)
        scores[edge] = scores.get(edge, 0.0) + score
        seen[edge] += 1
        kept[edge] += field(entry, "in_graph", bool, where=inside)
    circuit = Circuit(
        parts=tuple(e for e in graph.edges if kept[e]),
        universe=graph.edges,
        method=f"read from {Path(where).name}",
        level="edge",
        model=model,
    )
    return ScoredCircuit(
        circuit,
        {edge: scores[edge] for edge in graph.edges if edge in scores},
        absent=tuple(e for e in graph.edges if not seen[e]),
        partial=tuple(e for e in graph.edges if 0 < kept[e] < sizes[e]),
    )


def _copies(edge: str, graph: ComponentGraph) -> Iterator[str]:
    """Yield the names under which an edge of ours stands in their format."""
    source, target = split_edge(edge)
    source = INPUT if source == EMBED else source
    port = target[target.index("<") :] if "<" in target else ""
    for reader in graph.readers(target):
        yield f"{source}->{reader}{port}"


def _near(name: str, known: Any) -> str:
    # Close names are sought among those with the same beginning: difflib is slow on 30,000.
    head = name.split("->")[0]
    close = [k for k in known if k.startswith(head)][:500] or list(known)[:500]
    return nearest(name, close)
