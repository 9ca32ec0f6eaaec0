"""Tiny random models of transformers families, with every option of each family switched on."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "build": "microtome.models.families.construction:build",
    "family": "microtome.models.families.construction:family",
    "names": "microtome.models.families.construction:names",
    "Family": "microtome.models.families.table:Family",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
