"""Logit lens, direct logit attribution, attribution patching, and attribution to inputs."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "ComponentScores": "microtome.attribution.results:ComponentScores",
    "DirectAttribution": "microtome.attribution.results:DirectAttribution",
    "InputAttribution": "microtome.attribution.results:InputAttribution",
    "LogitLens": "microtome.attribution.results:LogitLens",
    "attribution_patching": "microtome.attribution.patching:attribution_patching",
    "component_names": "microtome.attribution.patching:component_names",
    "direct_logit_attribution": "microtome.attribution.direct:direct_logit_attribution",
    "input_attribution": "microtome.attribution.inputs:input_attribution",
    "logit_lens": "microtome.attribution.lens:logit_lens",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
