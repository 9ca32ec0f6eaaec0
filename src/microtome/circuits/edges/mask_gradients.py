"""Mask integrated gradients: the gradient of every edge's mask, at masks between kept and ablated.

With every edge's mask at m, a target reads the stream minus m times what all its sources write
beyond what they would write ablated; since that is the same for all targets of a norm, it is the
stream moved the share m of the way to the ablated sources' stream. The score of an edge is (what
its source writes there - ablated) . gradient at the target, averaged over masks; at m = 0 it is
edge attribution (Miller et al., 2024, arXiv 2407.08734; after Sundararajan et al., 2017).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from microtome.attribution.patching import single_row
from microtome.behaviors.evaluate import batches
from microtome.circuits.edges.attribution import midpoints
from microtome.circuits.edges.port_gradients import (
    batch_size,
    edge_products,
    moved,
    on_edges,
    port_gradients,
)
from microtome.circuits.edges.reading import Reading
from microtome.circuits.edges.tally import Tally
from microtome.circuits.edges.writing import ablated_streams, differences, write_sites
from microtome.circuits.references import References
from microtome.errors import ConfigError
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from collections.abc import Callable

    from microtome.behaviors.examples import Examples
    from microtome.behaviors.metrics import Metric
    from microtome.circuits.edges.scores import EdgeScores
    from microtome.circuits.references import Ablation
    from microtome.tracing.model import Model

Nodes = Literal["midpoints", "ends"]

MEANING = (
    "Estimated support for the behavior: the gradient of the edge's mask, averaged over masks "
    "between the whole model and everything ablated."
)


def mask_gradients(
    model: Model,
    examples: Examples,
    *,
    steps: int = 5,
    nodes: Nodes = "midpoints",
    metric: str | Metric = "logit_difference",
    ablation: Ablation = "resample",
    reference: Examples | None = None,
) -> EdgeScores:
    """Score every edge by the gradient of its mask, averaged over values of all masks.

    Args:
        model: A transformer whose parts write to one residual stream.
        examples: Where to look.
        steps: Number of parts of the way from kept to ablated.
        nodes: ``midpoints`` of the parts, or their ``ends``: ``steps + 1`` masks from 0 to 1
            inclusive, equally weighted, as auto-circuit takes them (it returns their sum, which is
            ``steps + 1`` times this mean).
        metric: A metric that reads the prompt's end.
        ablation: What an ablated edge carries.
        reference: Examples over which means are taken.

    Raises:
        ConfigError: If ``steps`` is not positive or ``nodes`` unknown.
    """
    chosen = single_row(metric, "Mask gradients")
    masks = mask_values(steps, nodes)
    reading = Reading.of(model)
    references = References(
        model, examples, write_sites(reading), ablation=ablation, reference=reference
    )
    tally = Tally(reading.graph, examples.clusters.tolist())
    for places in batches(examples, batch_size(reading, examples), model=model):
        chunk = examples.take(places)
        instead = references.of(chunk)
        streams = ablated_streams(reading, instead)
        total = torch.zeros(())
        for mask in masks:
            changes = [at(s).apply(_moved_to(v, mask)) for s, v in streams.items()] if mask else []
            found = port_gradients(reading, chosen, chunk, changes=changes)
            table = differences(reading, found.values, instead, stop=len(reading.stages))
            total = total + edge_products(reading, found, table)
        values = on_edges(reading, total / len(masks))
        tally.add(values, chunk.clusters.tolist(), moved(table))
    return tally.scores(
        model,
        method=f"mask-ig, {steps} steps",
        metric=chosen.name,
        ablation=ablation,
        meaning=MEANING,
        config={"masks": list(masks)},
    )


def mask_values(steps: int, nodes: str) -> tuple[float, ...]:
    """Return the values of the masks.

    Raises:
        ConfigError: If ``steps`` is not positive or ``nodes`` unknown.
    """
    if nodes not in ("midpoints", "ends"):
        raise ConfigError(f"nodes={nodes!r}; expected midpoints or ends.")
    middle = midpoints(steps)
    return middle if nodes == "midpoints" else tuple(k / steps for k in range(steps + 1))


def _moved_to(goal: torch.Tensor, share: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def moved_to(value: torch.Tensor) -> torch.Tensor:
        return value + share * (goal.to(value) - value)

    return moved_to
