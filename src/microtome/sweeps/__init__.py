"""Sweeps: plans of many interventions, their cost, certification and execution."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "Cost": "microtome.sweeps.cost:Cost",
    "PairEffects": "microtome.sweeps.pair_effects:PairEffects",
    "PathEffects": "microtome.sweeps.paths:PathEffects",
    "Plan": "microtome.sweeps.plans:Plan",
    "RULES": "microtome.sweeps.rules:RULES",
    "Sweep": "microtome.sweeps.results:Sweep",
    "pair_patching": "microtome.sweeps.pairs:pair_patching",
    "path_patching": "microtome.sweeps.paths:path_patching",
    "plan": "microtome.sweeps.planning:plan",
    "sweep": "microtome.sweeps.planning:sweep",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
