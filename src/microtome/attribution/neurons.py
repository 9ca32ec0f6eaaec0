"""The neurons that carry a behavior: all ranked by attribution, the first confirmed exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from microtome.attribution.confirmed import Confirmed, by_block, confirmed, prepared
from microtome.attribution.patching import integrated, single_row, slopes_of
from microtome.behaviors.behavior import Behavior
from microtome.behaviors.evaluate import batches
from microtome.behaviors.metrics import LastTokenMetric, Metric
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.errors import ConfigError, ModelSupportError
from microtome.sweeps.planning import sweep
from microtome.tracing.catalog import require_anatomy

if TYPE_CHECKING:
    import pandas as pd

    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model


@dataclass(frozen=True, eq=False, kw_only=True)
class NeuronEffects(Confirmed):
    """What the neurons with the largest attribution do when each of them alone is patched.

    Attributes:
        layers: Block of each neuron.
        neurons: Number of each neuron, strongest estimate first.
    """

    layers: tuple[int, ...]
    neurons: tuple[int, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each neuron: estimated and exact effect, with its interval."""
        import pandas as pd

        return pd.DataFrame({"layer": self.layers, "neuron": self.neurons, **self.effects()})


def neuron_attribution(
    model: Model,
    examples: Examples,
    *,
    metric: str | Metric = "logit_difference",
    base: Literal["clean", "corrupt"] = "clean",
    steps: int = 1,
    batch_size: int = 32,
) -> dict[int, np.ndarray]:
    """Estimate the effect of patching every neuron, as a mean over the examples.

    (Activation in the other run - activation in the base run) . gradient, summed over positions.

    Args:
        model: A transformer.
        examples: Examples prepared for it.
        metric: A metric that reads the prompt's end.
        base: The run that is patched; the other one is the source.
        steps: With more than 1, gradients are averaged over the way between the embeddings.
        batch_size: Examples per pass.

    Returns:
        By block, the mean change of the metric ``[neuron]``.

    Raises:
        ConfigError: If ``steps`` is not positive.
        ModelSupportError: If the model has no neurons whose activation is seen.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps}; expected at least 1.")
    chosen = single_row(metric, "Neuron attribution")
    anatomy = require_anatomy(model.anatomy, "Neuron attribution")
    seen = {layer: model.catalog.info("mlp.act", layer) for layer in range(anatomy.n_layers)}
    places = [(layer, info.name) for layer, info in seen.items() if info.readable and info.writable]
    if not places:
        raise ModelSupportError("No block shows the activations of its neurons (mlp.act).")
    return mean_effects(model, chosen, examples, places, base, steps, batch_size)


def mean_effects(
    model: Model,
    chosen: LastTokenMetric,
    examples: Examples,
    places: list[tuple[int, str]],
    base: str,
    steps: int,
    batch_size: int,
) -> dict[int, np.ndarray]:
    """Estimate the effect of patching every neuron or latent, as a mean over the examples.

    Args:
        model: A transformer.
        chosen: The metric.
        examples: Examples prepared for it.
        places: Block and site of neurons or latents.
        base: The run that is patched.
        steps: Steps of integrated gradients, 1 for plain gradients.
        batch_size: Examples per pass.

    Returns:
        By block, the mean change of the metric ``[unit]``.
    """
    totals = {layer: np.zeros(0) for layer, _ in places}
    for chunk in (examples.take(p) for p in batches(examples, batch_size, model=model)):
        for layer, effects in _effects(model, chosen, chunk, places, base, steps).items():
            totals[layer] = totals[layer] + effects if totals[layer].size else effects
    return {layer: total / len(examples) for layer, total in totals.items()}


def _effects(
    model: Model,
    chosen: LastTokenMetric,
    chunk: Examples,
    places: list[tuple[int, str]],
    base: str,
    steps: int,
) -> dict[int, np.ndarray]:
    """Return the summed effects of some examples by block ``[neuron]``."""
    here, there = (chunk.clean, chunk.corrupt) if base == "clean" else (chunk.corrupt, chunk.clean)
    sites = [site for _, site in places]
    slopes = slopes_of(model, chosen, chunk, sites, here)
    if steps > 1:
        slopes = integrated(model, chosen, chunk, slopes, here, there, steps)
    other = model.trace(there, capture=sites, logits=None)
    return {
        layer: ((other.value(site) - slopes.value(site)) * slopes[site])
        .double()
        .sum((0, 1))
        .cpu()
        .numpy()
        for layer, site in places
    }


def top_neurons(
    model: Model,
    behavior: Behavior | Examples,
    *,
    top: int = 32,
    metric: str | Metric = "logit_difference",
    base: Literal["clean", "corrupt"] = "clean",
    steps: int = 1,
    seed: int = 0,
    progress: Progress = quiet,
) -> NeuronEffects:
    """Rank all neurons by attribution and patch each of the strongest exactly.

    Args:
        model: A transformer.
        behavior: A behavior, or examples prepared for the model.
        top: How many are confirmed.
        metric: A metric that reads the prompt's end.
        base: The run that is patched; the other one is the source.
        steps: Steps of integrated gradients for the ranking, 1 for plain gradients.
        seed: For the certificate's sample.
        progress: Told while the exact sweep runs.

    Raises:
        ConfigError: If ``top`` or ``steps`` is not positive.
        ModelSupportError: If the model has no neurons whose activation is seen.
    """
    if top < 1:
        raise ConfigError(f"top={top}; expected at least 1.")
    examples = prepared(model, behavior)
    estimates = neuron_attribution(model, examples, metric=metric, base=base, steps=steps)
    named = [(layer, n) for layer, found in estimates.items() for n in range(len(found))]
    strength = np.concatenate(list(estimates.values()))
    order = np.argsort(-np.abs(strength), kind="stable")[:top]
    chosen = [named[int(i)] for i in order]
    exact = sweep(
        model, examples, "mlp.act", over="neuron", base=base, metric=metric,
        neurons=by_block(chosen), seed=seed, progress=progress,
    )  # fmt: skip
    settings = {"top": top, "base": base, "steps": steps}
    return NeuronEffects(
        layers=tuple(layer for layer, _ in chosen),
        neurons=tuple(n for _, n in chosen),
        considered=len(named),
        provenance=collect(model, settings, seed=seed),
        **confirmed(exact, chosen, strength[order], axis="neuron", steps=steps),
    )
