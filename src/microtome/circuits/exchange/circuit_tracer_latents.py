"""Attribution graphs of latents in the form of circuit-tracer, and back.

A latent's ``feature`` is the Cantor pairing of its block and number, as circuit-tracer has it. What
it calls the error of block ``b`` at position ``p``, ``0_b_p``, is also the name of latent ``b`` of
block 0 there; where both are in a graph the error is named ``0_error_b_p``. Readers go by the type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from microtome.circuits.exchange.circuit_tracer import (
    EMBEDDING,
    ERROR,
    LATENT,
    LOGIT,
    AttributionGraph,
    AttributionNode,
    Link,
)
from microtome.circuits.exchange.files import checked
from microtome.circuits.latent_graphs.results import KINDS, LatentGraph
from microtome.errors import FormatError

_OWN = "microtome_latents"
_TYPES = {EMBEDDING: "embedding", ERROR: "error", LATENT: "latent", LOGIT: "logit"}


def cantor(first: int, second: int) -> int:
    """Return the one number that stands for a pair of numbers of 0 or more."""
    return (first + second) * (first + second + 1) // 2 + second


def uncantor(number: int) -> tuple[int, int]:
    """Return the pair that a number stands for."""
    total = (math.isqrt(8 * number + 1) - 1) // 2
    second = number - total * (total + 1) // 2
    return total - second, second


def latents_as_graph(
    graph: LatentGraph, *, slug: str = "graph", scan: str = ""
) -> AttributionGraph:
    """Return an attribution graph of latents as circuit-tracer and Neuronpedia store it.

    Nodes without an edge are left out, but for embeddings and logits.

    Args:
        graph: The graph, as a rule pruned: the viewer is slow beyond some thousand edges.
        slug: Name of the graph.
        scan: Name of the model or the set of transcoders that the viewer knows; otherwise the
            model's name and the one the transcoders were attached under.
    """
    names = _ids(graph)
    rows, columns = np.nonzero(graph.effects)
    links = tuple(
        Link(names[s], names[graph.targets[t]], float(graph.effects[t, s]))
        for t, s in zip(rows, columns, strict=True)
    )
    used = {end for link in links for end in (link.source, link.target)}
    ends = graph.of_kind("embedding") | graph.of_kind("logit")
    shown = [n for n in range(len(graph)) if ends[n] or names[n] in used]
    # a graph that another program wrote says less: what is NaN stays unsaid
    biases = dict(zip(graph.targets.tolist(), graph.bias.tolist(), strict=True))
    there = set(shown)
    own = {
        "version": 1,
        "n_blocks": graph.n_blocks,
        "name": graph.names,
        "active": graph.active,
        "followed": graph.followed,
        "replacement": _said(graph.replacement),
        "completeness": _said(graph.completeness),
        "unsummed": _said(graph.unsummed),
        "pruned_edges": graph.pruned_edges,
        "transcoders": dict(graph.transcoders),
        "labels": dict(graph.labels),
        "bias": {names[n]: b for n, b in biases.items() if n in there and not math.isnan(b)},
        "values": {
            names[n]: float(graph.activations[n])
            for n in np.flatnonzero(graph.of_kind("logit") & ~np.isnan(graph.activations))
        },
    }
    return AttributionGraph(
        slug=slug,
        scan=scan or "-".join(part for part in (graph.model, graph.names) if part) or "microtome",
        nodes=tuple(_node(graph, n, names[n]) for n in shown),
        links=links,
        prompt=graph.prompt,
        prompt_tokens=graph.tokens,
        transcoder_list=tuple(graph.transcoders),
        node_threshold=graph.pruned_nodes,
        extra={_OWN: own},
    )


def _said(value: float) -> float | None:
    return None if math.isnan(value) else value


def _ids(graph: LatentGraph) -> list[str]:
    """Return the names of all nodes in the file."""
    found = []
    for n, kind in enumerate(graph.kinds):
        block, number, place = graph.blocks[n], graph.numbers[n], graph.positions[n]
        if KINDS[kind] == "embedding":
            found.append(f"E_{number}_{place}")
        elif KINDS[kind] == "logit":
            found.append(f"{block + 1}_{number}_{place}")
        elif KINDS[kind] == "latent":
            found.append(f"{block}_{number}_{place}")
        else:
            found.append(f"0_{block}_{place}")
    latents = {name for n, name in enumerate(found) if graph.of_kind("latent")[n]}
    errors = graph.of_kind("error")
    return [
        name.replace("0_", "0_error_", 1) if errors[n] and name in latents else name
        for n, name in enumerate(found)
    ]


def _node(graph: LatentGraph, n: int, name: str) -> AttributionNode:
    kind = KINDS[graph.kinds[n]]
    block, number = int(graph.blocks[n]), int(graph.numbers[n])
    place = int(graph.positions[n])
    common: dict[str, Any] = {"node_id": name, "ctx_idx": place}
    if kind != "logit":
        common["influence"] = float(graph.influence[n])
    if kind == "embedding":
        text = f'Emb: "{graph.tokens[place]}"'
        return AttributionNode(
            feature=place, layer="E", feature_type=EMBEDDING, clerp=text,
            js_node_id=f"E_{number}-{place}", **common,
        )  # fmt: skip
    if kind == "error":
        return AttributionNode(
            feature=-1, layer=str(block), feature_type=ERROR, clerp="Err: mlp",
            js_node_id=f"{block}_error-{place}", **common,
        )  # fmt: skip
    if kind == "latent":
        return AttributionNode(
            feature=cantor(block, number), layer=str(block), feature_type=LATENT,
            activation=_said(float(graph.activations[n])), clerp=graph.label(n),
            js_node_id=f"{block}_{number}-0", **common,
        )  # fmt: skip
    chance = float(graph.probabilities[n])
    first = graph.of_kind("logit") & (graph.probabilities >= graph.probabilities[n])
    return AttributionNode(
        feature=number, layer=str(block + 1), feature_type=LOGIT, token_prob=chance,
        is_target_logit=int(first.sum()) == 1,
        clerp=f'Output "{graph.logit_text(n)}" (p={chance:.3f})',
        js_node_id=f"L_{number}-{place}", **common,
    )  # fmt: skip


def graph_of_latents(document: AttributionGraph) -> LatentGraph:
    """Return the attribution graph of latents that a file holds, whoever wrote it.

    What the file does not say is NaN: biases, values of logits, scores.

    Args:
        document: The graph as it was read.

    Raises:
        FormatError: If a node is of another type than latents, errors, embeddings and logits, or a
            latent's name and number disagree.
    """
    order = sorted(
        document.nodes, key=lambda node: list(_TYPES).index(_type(node, document.slug))
    )  # embeddings, errors, latents, logits
    places = {node.node_id: n for n, node in enumerate(order)}
    kinds = np.array([KINDS.index(_TYPES[n.feature_type]) for n in order], dtype=np.int8)
    own = document.extra.get(_OWN)
    own = own if isinstance(own, dict) else {}
    blocks = np.array([_block(node) for node in order], dtype=np.int32)
    entered = {link.target for link in document.links}
    entered |= {n.node_id for n in order if n.feature_type == LOGIT}
    targets = [places[n.node_id] for n in order if n.node_id in entered]
    rows = {n: row for row, n in enumerate(targets)}
    effects = np.zeros((len(targets), len(order)), dtype=np.float32)
    for link in document.links:
        effects[rows[places[link.target]], places[link.source]] += link.weight
    values, biases = _figures(own, "values"), _figures(own, "bias")
    return LatentGraph(
        prompt=document.prompt,
        tokens=document.prompt_tokens,
        kinds=kinds,
        blocks=blocks,
        positions=np.array([n.ctx_idx for n in order], dtype=np.int32),
        numbers=np.array([_number(n, document.slug) for n in order], dtype=np.int32),
        activations=np.array(
            [values.get(n.node_id, math.nan) if n.activation is None else n.activation
             for n in order], dtype=np.float32,
        ),
        probabilities=np.array([n.token_prob for n in order], dtype=np.float32),
        influence=np.array([n.influence or 0.0 for n in order]),
        targets=np.array(targets, dtype=np.int64),
        effects=effects,
        bias=np.array([biases.get(order[n].node_id, math.nan) for n in targets], dtype=np.float32),
        unsummed=_figure(own, "unsummed"),
        replacement=_figure(own, "replacement"),
        completeness=_figure(own, "completeness"),
        n_blocks=_count(own, "n_blocks", _n_blocks(order)),
        active=_count(own, "active", int((kinds == KINDS.index("latent")).sum())),
        followed=_count(own, "followed", len(targets)),
        model=document.scan,
        transcoders={str(k): str(v) for k, v in _mapping(own, "transcoders").items()},
        names=str(own.get("name", "")),
        texts=tuple(_text(n) for n in order if n.feature_type == LOGIT),
        pruned_nodes=document.node_threshold,
        pruned_edges=own.get("pruned_edges"),
        labels=_labels(order, own, document.slug),
    )  # fmt: skip


def _type(node: AttributionNode, slug: str) -> str:
    if node.feature_type not in _TYPES:
        raise FormatError(
            f"node {node.node_id!r} of {slug!r} is a {node.feature_type!r}; a graph of latents has "
            f"{', '.join(_TYPES)}. Circuits of heads and MLPs are read by circuit_of"
        )
    return node.feature_type


def _block(node: AttributionNode) -> int:
    if node.feature_type == EMBEDDING:
        return -1
    return int(node.layer) - (node.feature_type == LOGIT)


def _number(node: AttributionNode, slug: str) -> int:
    """Return a node's latent or token."""
    if node.feature_type == ERROR:
        return -1
    named = re.fullmatch(r"(?:E|\d+)_(\d+)_\d+", node.node_id)
    if named is None:
        raise FormatError(
            f"node {node.node_id!r} of {slug!r}: expected a name such as 3_1204_7 (block, latent "
            "or token, position)"
        )
    number = int(named.group(1))
    if node.feature_type == LATENT and uncantor(node.feature) != (int(node.layer), number):
        raise FormatError(
            f"node {node.node_id!r} of {slug!r} has 'feature' {node.feature}; expected "
            f"{cantor(int(node.layer), number)} for latent {number} of block {node.layer}"
        )
    return number


def _n_blocks(nodes: list[AttributionNode]) -> int:
    logits = [int(n.layer) - 1 for n in nodes if n.feature_type == LOGIT]
    return max([*logits, *(int(n.layer) + 1 for n in nodes if n.layer != "E")], default=0)


def _text(node: AttributionNode) -> str:
    """Return the text of a logit's token from its label."""
    found = re.fullmatch(r'Output "(.*)" \(p=[0-9.]+\)', node.clerp, re.DOTALL)
    return found.group(1) if found else node.clerp


def _labels(nodes: list[AttributionNode], own: Mapping[str, Any], slug: str) -> dict[str, str]:
    found = {str(k): str(v) for k, v in _mapping(own, "labels").items()}
    for node in nodes:
        if node.feature_type == LATENT and node.clerp:
            found.setdefault(f"{node.layer}/{_number(node, slug)}", node.clerp)
    return found


def _mapping(own: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = own.get(name)
    return {} if found is None else checked(found, dict, where=f"{name!r} of {_OWN!r}")


def _figures(own: Mapping[str, Any], name: str) -> dict[str, float]:
    where = f"a number of {name!r} of {_OWN!r}"
    return {str(k): checked(v, float, where=where) for k, v in _mapping(own, name).items()}


def _count(own: Mapping[str, Any], name: str, default: int) -> int:
    found = own.get(name)
    return default if found is None else checked(found, int, where=f"{name!r} of {_OWN!r}")


def _figure(own: Mapping[str, Any], name: str) -> float:
    found = own.get(name)
    return math.nan if found is None else checked(found, float, where=f"{name!r} of {_OWN!r}")
