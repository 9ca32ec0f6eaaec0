"""Stepping: what feeds a place of the forward pass directly, and what it feeds, part by part."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "Link": "microtome.circuits.stepping.results:Link",
    "Step": "microtome.circuits.stepping.results:Step",
    "Steps": "microtome.circuits.stepping.results:Steps",
    "step": "microtome.circuits.stepping.walking:step",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
