"""Sparse coders: SAEs, transcoders, crosscoders; trained, evaluated, read, used in the model."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "ActivationStore": "microtome.sae.harvesting.store:ActivationStore",
    "Activations": "microtome.sae.activations:Activations",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
