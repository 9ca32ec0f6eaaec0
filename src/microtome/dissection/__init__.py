"""The main job: from a behavior to a report, in steps with fixed rules."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "Config": "microtome.dissection.config:Config",
    "Dissection": "microtome.dissection.results:Dissection",
    "dissect": "microtome.dissection.running:dissect",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
