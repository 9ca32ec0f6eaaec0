"""Sparse coders: SAEs, transcoders, crosscoders; trained, evaluated, read, used in the model."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "Absorption": "microtome.sae.evaluation.absorption:Absorption",
    "ActivationStore": "microtome.sae.harvesting.store:ActivationStore",
    "Activations": "microtome.sae.activations:Activations",
    "Architecture": "microtome.sae.architecture:Architecture",
    "Config": "microtome.sae.config:Config",
    "Disentanglement": "microtome.sae.evaluation.disentanglement:Disentanglement",
    "FORMATS": "microtome.sae.saving:FORMATS",
    "LatentIndex": "microtome.sae.reading.index:LatentIndex",
    "Origin": "microtome.sae.coder:Origin",
    "Reconstruction": "microtome.sae.reconstruction:Reconstruction",
    "Recovery": "microtome.sae.evaluation.results:Recovery",
    "SAE": "microtome.sae.coder:SAE",
    "SAEEvaluation": "microtome.sae.evaluation.results:SAEEvaluation",
    "SparseLatents": "microtome.sae.latents:SparseLatents",
    "TrainingSummary": "microtome.sae.results:TrainingSummary",
    "absorption": "microtome.sae.evaluation.absorption:absorption",
    "agreement": "microtome.sae.evaluation.dictionaries:agreement",
    "disentanglement": "microtome.sae.evaluation.disentanglement:disentanglement",
    "evaluate": "microtome.sae.evaluation.evaluating:evaluate",
    "harvest": "microtome.sae.harvesting.running:harvest",
    "index": "microtome.sae.reading.indexing:index",
    "load": "microtome.sae.saving:load",
    "Stability": "microtome.sae.evaluation.stability:Stability",
    "reconstruct": "microtome.sae.reconstruction:reconstruct",
    "save": "microtome.sae.saving:save",
    "stability": "microtome.sae.evaluation.stability:stability",
    "train": "microtome.sae.training:train",
    "train_twin": "microtome.sae.evaluation.twins:train_twin",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
