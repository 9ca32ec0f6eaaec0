"""Finders that search or learn a circuit, split activations, or combine other finders."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "PATENT_NOTICE": "microtome.circuits.search.relevance:PATENT_NOTICE",
    "Stable": "microtome.circuits.search.ensembles:Stable",
    "acdc": "microtome.circuits.search.acdc:acdc",
    "contextual_decomposition": "microtome.circuits.search.contextual:contextual_decomposition",
    "edge_pruning": "microtome.circuits.search.masks:edge_pruning",
    "rank_ensemble": "microtome.circuits.search.ensembles:rank_ensemble",
    "relevance_propagation": "microtome.circuits.search.relevance:relevance_propagation",
    "stable_edges": "microtome.circuits.search.ensembles:stable_edges",
    "uniform_gradients": "microtome.circuits.search.masks:uniform_gradients",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
