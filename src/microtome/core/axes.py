"""The names of array axes: one fixed vocabulary, kept in this one place."""

from __future__ import annotations

AXES: tuple[str, ...] = (
    "batch",
    "pos",
    "d_model",
    "head",
    "kv_head",
    "d_head",
    "layer",
    "neuron",
    "latent",
    "expert",
    "vocab",
    "query",
    "key",
    "component",
    "example",
)
