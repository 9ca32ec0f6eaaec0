"""Motifs of a circuit's edges: hubs, feed-forward loops and chains, against random edges."""

from __future__ import annotations

import numpy as np
from scipy import stats

from microtome.circuits.graph import EMBED, LOGITS, ComponentGraph
from microtome.circuits.results import Circuit
from microtome.circuits.taxonomy.detector import Detector, Scores
from microtome.circuits.taxonomy.material import Material
from microtome.core.seeds import rng
from microtome.errors import ModelSupportError

DRAWS = 200
"""Random circuits of the same size."""


def _edges(material: Material) -> tuple[Circuit, ComponentGraph]:
    circuit = material.inputs.circuit
    if circuit is None:
        raise ModelSupportError(material.inputs.missing["circuit"])
    if circuit.level != "edge":
        raise ModelSupportError(
            f"the circuit is one of {circuit.level}s; fans and chains need whole edges"
        )
    if not circuit.parts:
        raise ModelSupportError("the circuit has no edges")
    return circuit, ComponentGraph.of(material.model)


def fan_in(material: Material) -> Scores:
    """Score how many edges enter a node, against as many edges drawn evenly."""
    return _fans(material, entering=True)


def fan_out(material: Material) -> Scores:
    """Score how many edges leave a node, against as many edges drawn evenly."""
    return _fans(material, entering=False)


def _fans(material: Material, *, entering: bool) -> Scores:
    circuit, graph = _edges(material)
    adjacency, names = _between_nodes(graph, graph.mask(circuit.parts))
    possible, _ = _between_nodes(graph, graph.possible)
    axis = 0 if entering else 1
    kept, room = adjacency.sum(axis), possible.sum(axis)
    used = np.flatnonzero(kept > 0)
    # the number of marked balls in a draw without replacement
    law = stats.hypergeom(int(possible.sum()), room[used], int(adjacency.sum()))
    parts = tuple(names[i] for i in used)
    details = {names[i]: f"{kept[i]} of {room[i]} possible" for i in used}
    return Scores(
        parts, kept[used].astype(float), law.mean(), np.maximum(law.std(), 1e-9),
        law.sf(kept[used] - 1), np.ones(len(used), dtype=bool), details,
    )  # fmt: skip


def _between_nodes(graph: ComponentGraph, mask: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return which nodes act on which ``[node, node]``, ports joined, and the nodes' names."""
    names = (*graph.sources, LOGITS)
    number = {name: i for i, name in enumerate(names)}
    joined = np.zeros((len(names), len(names)), dtype=bool)
    for column, target in enumerate(graph.targets):
        for reader in graph.readers(target):
            joined[: len(graph.sources), number[reader]] |= mask[:, column]
    return joined, names


def chains(material: Material) -> Scores:
    """Score the number of chains and of feed-forward loops, against random circuits."""
    circuit, graph = _edges(material)
    size = len(circuit.parts)
    stream = rng(material.inputs.seed, "motifs")
    own = _motifs(*_between_nodes(graph, graph.mask(circuit.parts)))
    drawn = []
    for _ in range(DRAWS):
        chosen = graph.pairs[stream.choice(graph.n_edges, size, replace=False)]
        mask = np.zeros_like(graph.possible)
        mask[chosen[:, 0], chosen[:, 1]] = True
        drawn.append(_motifs(*_between_nodes(graph, mask)))
    table = np.array(drawn, dtype=float)
    score = np.array(own, dtype=float)
    mean, sd = table.mean(0), np.maximum(table.std(0, ddof=1), 0.5)
    p = (1 + (table >= score).sum(0)) / (1 + DRAWS)
    return Scores(
        ("chains of two edges", "feed-forward loops"),
        score, mean, sd, p, np.ones(2, dtype=bool), {},
    )  # fmt: skip


def _motifs(joined: np.ndarray, names: tuple[str, ...]) -> tuple[int, int]:
    """Return the numbers of ``a -> b -> c`` and of those with ``a -> c`` too, between parts."""
    inner = np.array([n not in (EMBED, LOGITS) for n in names])
    inside = joined[np.ix_(inner, inner)].astype(int)
    paths = inside @ inside
    return int(paths.sum()), int((paths * inside).sum())


DRAWN = "as many edges drawn evenly from the possible ones"

MOTIFS = (
    Detector(
        "fan-in", "motif", "edges that enter a node of the circuit", "Milo 2002", "circuit",
        DRAWN, fan_in, nulls=("shuffle",),
    ),
    Detector(
        "fan-out", "motif", "edges that leave a node of the circuit", "Milo 2002", "circuit",
        DRAWN, fan_out, nulls=("shuffle",),
    ),
    Detector(
        "feed-forward", "motif",
        "chains a->b->c between parts of the circuit, and loops that have a->c too",
        "Milo 2002", "circuit", DRAWN, chains, nulls=("shuffle",),
    ),
)  # fmt: skip
"""Detectors of motifs."""
