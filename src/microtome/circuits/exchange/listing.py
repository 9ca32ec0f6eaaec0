"""A circuit as lists of nodes and edges with attributes, as GraphML and DOT hold it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microtome.circuits.exchange.files import checked, field
from microtome.circuits.exchange.scored import ScoredCircuit
from microtome.circuits.exchange.shape import Shape
from microtome.circuits.results import Circuit, Level
from microtome.errors import FormatError

Record = Mapping[str, str]


@dataclass(frozen=True)
class Listing:
    """A graph as text records.

    Attributes:
        info: What the records do not say, as JSON in ASCII: level, method, model, and the shape
            if the universe is all parts of a model.
        nodes: ``id`` and ``kind``; for node circuits also ``kept`` and ``score``.
        edges: ``source``, ``target``, ``port``, ``kept``, ``score``.
    """

    info: str
    nodes: Sequence[Record]
    edges: Sequence[Record]


def listing_of(scored: ScoredCircuit) -> Listing:
    """Return the records of a circuit: parts that are kept or scored, and all if need be.

    Raises:
        FormatError: If it is one of neurons, or of edges told apart by place.
    """
    circuit, scores = scored.circuit, scored.scores
    if circuit.level not in ("node", "edge"):
        raise FormatError(
            f"the format has no place for {circuit.level}s; write the circuit that "
            "microtome.circuits.coarsen(circuit) gives, or keep it as microtome's own file"
        )
    shape = Shape.of(circuit)
    ordered = shape is not None and shape.universe(circuit.level) == circuit.universe
    info = {
        "level": circuit.level,
        "method": circuit.method,
        "model": circuit.model,
        "shape": shape.to_plain() if shape is not None and ordered else None,
    }
    kept = circuit.kept
    listed = [p for p in circuit.universe if not ordered or p in kept or p in scores]
    records = {part: _values(part, kept, scores) for part in listed}
    if circuit.level == "node":
        nodes = [{"id": p, "kind": kind_of(p), **values} for p, values in records.items()]
        return Listing(json.dumps(info), nodes, ())
    edges = [_ends(part) | values for part, values in records.items()]
    ends = dict.fromkeys(e[end] for e in edges for end in ("source", "target"))
    return Listing(json.dumps(info), [{"id": e, "kind": kind_of(e)} for e in ends], edges)


def scored_of(listing: Listing, *, where: str) -> ScoredCircuit:
    """Return the circuit that records hold.

    Raises:
        FormatError: If a record lacks something or contradicts the rest.
    """
    info = _info(listing.info, where)
    level: Level = info["level"] if info else ("edge" if listing.edges else "node")
    records = listing.edges if level == "edge" else listing.nodes
    parts: dict[str, tuple[bool, float | None]] = {}
    for number, record in enumerate(records):
        inside = f"{level} {number} of {where}"
        name = _edge_name(record, inside) if level == "edge" else record["id"]
        if name in parts:
            raise FormatError(f"{where} has the {level} {name!r} twice; leave one out")
        parts[name] = _flag(record, inside), _score(record, inside)
    universe = tuple(parts)
    if info and info["shape"] is not None:
        shape = Shape.from_plain(info["shape"], where=f"the shape in {where}")
        universe = shape.universe(level)
    known = frozenset(universe)
    if unknown := next((p for p in parts if p not in known), None):
        raise FormatError(f"{where} has the {level} {unknown!r}, which its model does not have")
    circuit = Circuit(
        parts=tuple(p for p in universe if p in parts and parts[p][0]),
        universe=universe,
        method=info["method"] if info else f"read from {where}",
        level=level,
        model=info["model"] if info else "",
    )
    scores = {p: score for p, (_, score) in parts.items() if score is not None}
    return ScoredCircuit(circuit, {p: scores[p] for p in universe if p in scores})


def kind_of(name: str) -> str:
    """Return what a node is: ``embed``, ``logits``, ``head``, ``kv group``, ``mlp`` or ``part``."""
    if name in ("embed", "logits"):
        return name
    if name.startswith("a") and ".h" in name:
        return "head"
    if name.startswith("a") and ".g" in name:
        return "kv group"
    return "mlp" if name[:1] == "m" and name[1:].isdigit() else "part"


def _values(part: str, kept: frozenset[str], scores: Mapping[str, float]) -> dict[str, str]:
    values = {"kept": "true" if part in kept else "false"}
    return values | ({"score": repr(float(scores[part]))} if part in scores else {})


def _ends(edge: str) -> dict[str, str]:
    source, _, target = edge.partition("->")
    node, _, port = target.partition("<")
    return {"source": source, "target": node} | ({"port": port[:-1]} if port else {})


def _edge_name(record: Record, where: str) -> str:
    for end in ("source", "target"):
        if not record.get(end):
            raise FormatError(f"{where} lacks its {end}")
    port = record.get("port", "")
    if port not in ("", "q", "k", "v"):
        raise FormatError(f"{where} has the port {port!r}; expected q, k, v or none")
    return f"{record['source']}->{record['target']}" + (f"<{port}>" if port else "")


def _flag(record: Record, where: str) -> bool:
    # Graphs of other programs say nothing of membership: what they list belongs to them.
    text = record.get("kept", "true").strip().lower()
    if text not in ("true", "false", "1", "0"):
        raise FormatError(f"'kept' of {where} is {text!r}; expected true or false")
    return text in ("true", "1")


def _score(record: Record, where: str) -> float | None:
    text = record.get("score", record.get("weight"))
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FormatError(f"'score' of {where} is {text[:40]!r}; expected a finite number")
    return value


def _info(text: str, where: str) -> dict[str, Any] | None:
    if not text:
        return None
    inside = f"'info' of {where}"
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{inside} is not JSON ({error}); export it again") from error
    for name in ("level", "method", "model"):
        field(found, name, str, where=inside)
    if found["level"] not in ("node", "edge"):
        raise FormatError(f"{inside} has level {found['level']!r}; expected node or edge")
    if found.get("shape") is not None:
        checked(found["shape"], list, where=f"'shape' of {inside}")
    return {"shape": None} | dict(found)
