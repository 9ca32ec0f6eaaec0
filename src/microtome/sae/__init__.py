"""Sparse coders: SAEs, transcoders, crosscoders; trained, evaluated, read, used in the model."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "Architecture": "microtome.sae.architecture:Architecture",
    "ActivationStore": "microtome.sae.harvesting.store:ActivationStore",
    "Activations": "microtome.sae.activations:Activations",
    "Config": "microtome.sae.config:Config",
    "Origin": "microtome.sae.coder:Origin",
    "SAE": "microtome.sae.coder:SAE",
    "SparseLatents": "microtome.sae.latents:SparseLatents",
    "Training": "microtome.sae.results:Training",
    "train": "microtome.sae.training:train",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
