"""Sparse coders: SAEs, transcoders, crosscoders; trained, evaluated, read, used in the model."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "Architecture": "microtome.sae.architecture:Architecture",
    "FORMATS": "microtome.sae.saving:FORMATS",
    "Origin": "microtome.sae.coder:Origin",
    "Reconstruction": "microtome.sae.reconstruction:Reconstruction",
    "SAE": "microtome.sae.coder:SAE",
    "SparseLatents": "microtome.sae.latents:SparseLatents",
    "load": "microtome.sae.saving:load",
    "reconstruct": "microtome.sae.reconstruction:reconstruct",
    "save": "microtome.sae.saving:save",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
