"""microtome: open a network, find the mechanism behind a behavior, test it, edit it."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

__version__ = "0.1.0"

_NAMES = {
    "load": "microtome.tracing.opening:load",
    "at": "microtome.tracing.sites:at",
    "Model": "microtome.tracing.model:Model",
    "Trace": "microtome.tracing.trace:Trace",
    "Site": "microtome.tracing.sites:Site",
    "Intervention": "microtome.tracing.interventions:Intervention",
    "errors": "microtome.errors",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
