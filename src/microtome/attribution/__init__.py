"""Attribution to components and to inputs, the logit lens, and activation maximization."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "ActivatingText": "microtome.attribution.maximization_results:ActivatingText",
    "ComponentScores": "microtome.attribution.results:ComponentScores",
    "CorpusActivations": "microtome.attribution.maximization_results:CorpusActivations",
    "DirectAttribution": "microtome.attribution.results:DirectAttribution",
    "InputAttribution": "microtome.attribution.results:InputAttribution",
    "LatentEffects": "microtome.attribution.latents:LatentEffects",
    "LogitLens": "microtome.attribution.results:LogitLens",
    "Maximization": "microtome.attribution.maximization_results:Maximization",
    "NeuronEffects": "microtome.attribution.neurons:NeuronEffects",
    "PixelMaximization": "microtome.attribution.maximization_results:PixelMaximization",
    "TokenOptimization": "microtome.attribution.maximization_results:TokenOptimization",
    "Unit": "microtome.attribution.units:Unit",
    "attribution_patching": "microtome.attribution.patching:attribution_patching",
    "component_names": "microtome.tracing.components:component_names",
    "direct_logit_attribution": "microtome.attribution.direct:direct_logit_attribution",
    "input_attribution": "microtome.attribution.inputs:input_attribution",
    "logit_lens": "microtome.attribution.lens:logit_lens",
    "maximize": "microtome.attribution.maximization:maximize",
    "neuron_attribution": "microtome.attribution.neurons:neuron_attribution",
    "optimize_pixels": "microtome.attribution.pixels:optimize_pixels",
    "optimize_tokens": "microtome.attribution.evolution:optimize_tokens",
    "search_corpus": "microtome.attribution.corpus:search_corpus",
    "support_at_both_ends": "microtome.attribution.patching:support_at_both_ends",
    "top_latents": "microtome.attribution.latents:top_latents",
    "top_neurons": "microtome.attribution.neurons:top_neurons",
    "unit": "microtome.attribution.units:unit",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
