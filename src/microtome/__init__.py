"""microtome: open a network, find the mechanism behind a behavior, test it, edit it."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

__version__ = "0.1.0"

_NAMES = {
    "Behavior": "microtome.behaviors.behavior:Behavior",
    "Circuit": "microtome.circuits.results:Circuit",
    "Dissection": "microtome.dissection.results:Dissection",
    "DissectionConfig": "microtome.dissection.config:Config",
    "Examples": "microtome.behaviors.examples:Examples",
    "Intervention": "microtome.tracing.interventions:Intervention",
    "Interval": "microtome.core.intervals:Interval",
    "Model": "microtome.tracing.model:Model",
    "Plan": "microtome.sweeps.plans:Plan",
    "Provenance": "microtome.core.provenance:Provenance",
    "Result": "microtome.store.results:Result",
    "Site": "microtome.tracing.sites:Site",
    "Sweep": "microtome.sweeps.results:Sweep",
    "Trace": "microtome.tracing.trace:Trace",
    "at": "microtome.tracing.sites:at",
    "attribution": "microtome.attribution",
    "attribution_patching": "microtome.attribution.patching:attribution_patching",
    "behaviors": "microtome.behaviors",
    "circuits": "microtome.circuits",
    "direct_logit_attribution": "microtome.attribution.direct:direct_logit_attribution",
    "dissect": "microtome.dissection.running:dissect",
    "errors": "microtome.errors",
    "input_attribution": "microtome.attribution.inputs:input_attribution",
    "load": "microtome.tracing.opening:load",
    "logit_lens": "microtome.attribution.lens:logit_lens",
    "maximize": "microtome.attribution.maximization:maximize",
    "metric": "microtome.behaviors.metrics:metric",
    "pair": "microtome.behaviors.pairs:pair",
    "plan": "microtome.sweeps.planning:plan",
    "sae": "microtome.sae",
    "sweep": "microtome.sweeps.planning:sweep",
    "sweeps": "microtome.sweeps",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
