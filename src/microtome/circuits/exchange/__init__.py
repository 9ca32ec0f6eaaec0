"""Circuits in the formats of other programs, both ways: one file per format."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_HOMES = {
    "circuit_tracer_circuits": ("attribution_graph", "circuit_of"),
    "circuit_tracer": (
        "AttributionGraph", "AttributionNode", "Link", "read_attribution_graph",
        "write_attribution_graph",
    ),
    "circuit_tracer_drawing": ("diagram_of",),
    "circuit_tracer_latents": ("graph_of_latents", "latents_as_graph"),
    "dot": ("dot_text", "read_dot", "write_dot"),
    "graphml": ("graphml_text", "read_graphml", "write_graphml"),
    "mib": ("mib_document", "read_mib", "write_mib"),
    "reading": ("format_of", "read_circuit", "read_scores", "write_circuit"),
    "scored": ("ScoredCircuit",),
    "shape": ("Block", "Shape"),
}  # fmt: skip
_PACKAGE = "microtome.circuits.exchange"
_NAMES = {name: f"{_PACKAGE}.{module}:{name}" for module, names in _HOMES.items() for name in names}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
