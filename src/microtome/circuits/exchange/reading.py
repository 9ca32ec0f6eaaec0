"""Reading and writing circuits in whatever format a file has or is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

from microtome.circuits.edges.scores import EdgeScores
from microtome.circuits.exchange.circuit_tracer import (
    read_attribution_graph,
    write_attribution_graph,
)
from microtome.circuits.exchange.circuit_tracer_circuits import attribution_graph, circuit_of
from microtome.circuits.exchange.dot import read_dot, write_dot
from microtome.circuits.exchange.files import LIMIT_BYTES, read_json
from microtome.circuits.exchange.graphml import read_graphml, write_graphml
from microtome.circuits.exchange.mib import read_mib, write_mib
from microtome.circuits.exchange.scored import ScoredCircuit
from microtome.circuits.parts import scores_by_name
from microtome.circuits.results import Circuit
from microtome.errors import ConfigError, FormatError
from microtome.store.results import Result

Format = Literal["mib", "circuit-tracer", "graphml", "dot", "microtome"]
FORMATS: tuple[Format, ...] = get_args(Format)

ENDINGS: dict[str, Format] = {".graphml": "graphml", ".xml": "graphml", ".dot": "dot", ".gv": "dot"}
"""Formats that a file's ending tells."""


def format_of(path: str | Path, *, limit_bytes: int = LIMIT_BYTES) -> Format:
    """Return the format of a file, by its ending or, for JSON, by what it holds.

    Raises:
        FormatError: If it is none of the formats that are read.
    """
    by_ending = ENDINGS.get(Path(path).suffix.lower())
    if by_ending is not None:
        return by_ending
    keys = set(read_json(path, limit_bytes=limit_bytes))
    if "format" in keys:
        return "microtome"
    if {"cfg", "nodes", "edges"} <= keys:
        return "mib"
    if {"metadata", "nodes", "links"} <= keys:
        return "circuit-tracer"
    raise FormatError(
        f"{path} is none of the circuit formats that are read; its keys are "
        f"{json.dumps(sorted(keys)[:8])}. Expected {', '.join(FORMATS)}"
    )


def read_circuit(path: str | Path, *, limit_bytes: int = LIMIT_BYTES) -> ScoredCircuit:
    """Read a circuit from a file of any known format.

    Raises:
        FormatError: The file is damaged, or of no known format.
    """
    kind = format_of(path, limit_bytes=limit_bytes)
    if kind == "graphml":
        return read_graphml(path, limit_bytes=limit_bytes)
    if kind == "dot":
        return read_dot(path, limit_bytes=limit_bytes)
    if kind == "mib":
        return read_mib(path, limit_bytes=limit_bytes)
    if kind == "circuit-tracer":
        return circuit_of(read_attribution_graph(path, limit_bytes=limit_bytes))
    found = Result.load(path)
    if isinstance(found, ScoredCircuit):
        return found
    if isinstance(found, Circuit):
        return ScoredCircuit(found)
    raise FormatError(f"{path} holds a {found.schema!r}; expected a circuit")


def read_scores(path: str | Path, *, limit_bytes: int = LIMIT_BYTES) -> dict[str, float]:
    """Read scores by name of the part: ``EdgeScores``, or those of a circuit of any format.

    Raises:
        FormatError: The file is damaged, or holds no scores.
    """
    if format_of(path, limit_bytes=limit_bytes) == "microtome":
        found = Result.load(path)
        if isinstance(found, EdgeScores):
            return scores_by_name(found)
    scores = dict(read_circuit(path, limit_bytes=limit_bytes).scores)
    if not scores:
        raise FormatError(f"{path} holds no scores; expected scores of edges")
    return scores


def write_circuit(
    path: str | Path, scored: ScoredCircuit, *, to: str, d_model: int | None = None
) -> Path:
    """Write a circuit in a format.

    Args:
        path: The file.
        scored: The circuit with its scores.
        to: The format; ``microtome`` is the result file that ``ScoredCircuit.load`` reads.
        d_model: Width of the model, which the MIB format asks for.

    Raises:
        ConfigError: The format is unknown, or MIB is asked for without the width.
        FormatError: The format has no word for this circuit.
        OutputError: The file cannot be written.
    """
    if to not in FORMATS:
        raise ConfigError(f"format {to!r}; expected one of {', '.join(FORMATS)}")
    if to == "mib":
        if d_model is None:
            raise ConfigError(
                "the MIB format states the model's width; give d_model (--d-model, or --model)"
            )
        return write_mib(path, scored, d_model=d_model)
    if to == "circuit-tracer":
        slug = Path(path).stem if Path(path).suffix == ".json" else "circuit"
        return write_attribution_graph(path, attribution_graph(scored, slug=slug))
    if to == "graphml":
        return write_graphml(path, scored)
    return write_dot(path, scored) if to == "dot" else scored.save(path)
