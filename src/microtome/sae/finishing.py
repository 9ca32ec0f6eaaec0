"""The end of a training run: the threshold set, the coder measured, the scales folded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microtome.sae.architecture import Architecture
from microtome.sae.coder import SAE
from microtome.sae.config import Config
from microtome.sae.metrics import Tally
from microtome.sae.passing import forward
from microtome.sae.scaling import Scaling
from microtome.sae.selecting.selection import Selector

if TYPE_CHECKING:
    from microtome.sae.activations import Activations


@dataclass(frozen=True)
class Measured:
    """Figures of a finished coder; see ``TrainingSummary``."""

    fvu: float
    l0: float
    alive_share: float
    eval_rows: int


@torch.no_grad()
def finish(
    coder: SAE,
    selector: Selector,
    scaling: Scaling,
    config: Config,
    activations: Activations,
    sources: Sequence[str],
    targets: Sequence[str],
) -> Measured:
    """Set a BatchTopK coder's threshold, measure the coder and fold the scales, in place.

    The threshold is the mean over batches of the smallest value that BatchTopK keeps with the final
    weights. An average over training would lag behind weights that still move, and its start would
    weigh on short runs.
    """
    make, weights = coder.architecture, coder.weights
    count = max(1, round(config.eval_rows / config.batch_size))
    sites = tuple(dict.fromkeys((*sources, *targets)))
    stream = activations.batches(
        config.batch_size, seed=config.stream_seed("evaluation"), sites=sites
    )
    with contextlib.closing(stream):
        pairs = (
            (
                scaling.inputs(batch, sources, config.device),
                scaling.outputs(batch, targets, config.device),
            )
            for batch in stream
        )
        if make.activation == "batchtopk":
            weights["threshold"].fill_(_threshold(make, coder, selector, islice(pairs, count)))
        means = {site: activations.mean(site).float()[None] for site in targets}
        mean = scaling.outputs(means, targets, config.device)[0]
        measured = _measure(coder, islice(pairs, count), mean)
    scaling.fold(make, weights)
    return measured


def _threshold(
    make: Architecture, coder: SAE, selector: Selector, pairs: Iterator[tuple[Tensor, Tensor]]
) -> float:
    """Return the mean over batches of the smallest kept value; negative ones count as 0."""
    found = []
    for inputs, _ in pairs:
        selector.select(make, coder.weights, inputs)
        found.append(max(selector.threshold or 0.0, 0.0))
    return sum(found) / len(found)


def _measure(coder: SAE, pairs: Iterator[tuple[Tensor, Tensor]], mean: Tensor) -> Measured:
    make = coder.architecture
    if make.activation == "batchtopk":  # at inference it is what exceeds the threshold
        make = replace(make, activation="jumprelu", k=0)
    tally, selector = Tally(), Selector()
    alive = torch.zeros(coder.d_sae, dtype=torch.bool, device=mean.device)
    for inputs, targets in pairs:
        passed = forward(make, coder.weights, inputs, selector)
        alive |= passed.form.fired(passed.values)
        tally.add(targets, targets - passed.outputs[-1], mean)
        tally.add_active(passed.values)
    return Measured(tally.fvu, tally.l0, float(alive.double().mean()), tally.rows)
