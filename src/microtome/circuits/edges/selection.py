"""Choosing a circuit from scores of edges: the first n, all above a threshold, or grown outward."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.graph import LOGITS, ComponentGraph
from microtome.circuits.results import Circuit
from microtome.errors import ConfigError

if TYPE_CHECKING:
    from microtome.circuits.edges.scores import EdgeScores


def select(
    scores: EdgeScores,
    *,
    edges: int | None = None,
    threshold: float | None = None,
    connected: bool = False,
    signed: bool = False,
) -> Circuit:
    """Return a circuit by one of the ways of this module.

    Args:
        scores: Scores of edges.
        edges: How many edges to take.
        threshold: Or: the strength from which on edges are taken.
        connected: Grow outward from the logits (with ``edges``), or leave out what lies on no path
            from the embedding to the logits (with ``threshold``).
        signed: Go by value, not by magnitude.

    Raises:
        ConfigError: If not exactly one of ``edges`` and ``threshold`` is given, or that is NaN.
    """
    if (edges is None) == (threshold is None):
        raise ConfigError(f"edges={edges} and threshold={threshold}: expected exactly one of them.")
    if threshold is not None:
        if np.isnan(threshold):
            raise ConfigError(f"threshold={threshold}; expected a number.")
        found = above(scores, threshold, signed=signed)
        return pruned(found, scores.graph) if connected else found
    if connected:
        return grown(scores, edges or 0, signed=signed)
    return strongest(scores, edges or 0, signed=signed)


def strongest(scores: EdgeScores, n: int, *, signed: bool = False) -> Circuit:
    """Return the circuit of the ``n`` strongest edges.

    Raises:
        ConfigError: If there are not so many.
    """
    _check(scores, n)
    order = np.argsort(-scores.strength(signed=signed), kind="stable")[:n]
    return _circuit(scores, order, f"{_way(signed)} {n}")


def above(scores: EdgeScores, threshold: float, *, signed: bool = False) -> Circuit:
    """Return the circuit of all edges whose strength is at least a threshold."""
    chosen = np.flatnonzero(scores.strength(signed=signed) >= threshold)
    return _circuit(scores, chosen, f"{_way(signed)} from {threshold:g} on")


def grown(scores: EdgeScores, n: int, *, signed: bool = False) -> Circuit:
    """Return ``n`` edges grown outward from the logits, the strongest reachable edge first.

    An edge can be taken once the part it leads to feeds the logits through edges taken before
    (Hanna et al., 2024). Fewer edges come back where no more can be reached.

    Raises:
        ConfigError: If there are not so many edges.
    """
    _check(scores, n)
    graph = scores.graph
    incoming = _incoming(graph)
    strength = scores.strength(signed=signed)
    heap: list[tuple[float, int]] = []
    opened: set[str] = set()

    def open_part(part: str) -> None:
        if part not in opened:
            opened.add(part)
            for number in incoming.get(part, ()):
                if number not in queued:
                    queued.add(number)
                    heapq.heappush(heap, (-float(strength[number]), number))

    queued: set[int] = set()
    open_part(LOGITS)
    chosen: list[int] = []
    while heap and len(chosen) < n:
        _, number = heapq.heappop(heap)
        chosen.append(number)
        open_part(graph.sources[graph.pairs[number, 0]])
    return _circuit(scores, np.array(chosen, dtype=int), f"{_way(signed)} {n}, grown from logits")


def pruned(circuit: Circuit, graph: ComponentGraph) -> Circuit:
    """Return a circuit without edges that lie on no path from the embedding to the logits."""
    kept = graph.named(graph.connected(graph.mask(circuit.parts)))
    return Circuit(
        parts=kept,
        universe=circuit.universe,
        method=f"{circuit.method}, connected",
        level=circuit.level,
        model=circuit.model,
        provenance=circuit.provenance,
    )


def _incoming(graph: ComponentGraph) -> dict[str, list[int]]:
    """Return the numbers of the edges into each head, MLP and the logits."""
    found: dict[str, list[int]] = {}
    readers = [graph.readers(target) for target in graph.targets]
    for number, (_, target) in enumerate(graph.pairs):
        for reader in readers[target]:
            found.setdefault(reader, []).append(number)
    return found


def _check(scores: EdgeScores, n: int) -> None:
    if not 0 <= n <= len(scores.universe):
        raise ConfigError(f"{n} edges were asked for; expected 0 to {len(scores.universe)}.")


def _way(signed: bool) -> str:
    return "largest" if signed else "strongest"


def _circuit(scores: EdgeScores, chosen: np.ndarray, how: str) -> Circuit:
    return Circuit(
        parts=tuple(scores.universe[int(i)] for i in np.sort(chosen)),
        universe=scores.universe,
        method=f"{scores.method}, {how}",
        level=scores.level,
        model=scores.model,
        provenance=scores.provenance,
    )
