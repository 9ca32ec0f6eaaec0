"""Exact edge patching: every possible edge ablated alone, many in one pass, started late."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from microtome.attribution.patching import single_row
from microtome.circuits.edges.ablation import EdgeAblator
from microtome.circuits.edges.tally import Tally

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.behaviors.metrics import Metric
    from microtome.circuits.edges.scores import EdgeScores
    from microtome.circuits.places import Split
    from microtome.circuits.references import Ablation
    from microtome.tracing.model import Model

MEANING = (
    "Support for the behavior: how much of the metric is lost when this edge alone is ablated."
)


def exact_edges(
    model: Model,
    examples: Examples,
    *,
    metric: str | Metric = "logit_difference",
    ablation: Ablation = "resample",
    reference: Examples | None = None,
    split: Split | None = None,
) -> EdgeScores:
    """Score every edge by ablating it alone.

    The oracle that estimates are compared with. It costs one row of a partial pass for each edge
    and example: a second for a hundred edges, an hour for tens of thousands.

    Args:
        model: A transformer whose parts write to one residual stream.
        examples: Where to look.
        metric: A metric that reads the prompt's end.
        ablation: What the ablated edge carries.
        reference: Examples over which means are taken.
        split: Tell edges apart by ``role`` or ``position``: each is ablated at one alone. Effects
            of single places need not add up to that of the edge.
    """
    chosen = single_row(metric, "Exact edge patching")
    ablator = EdgeAblator(model, examples, ablation=ablation, reference=reference, split=split)
    cuts = [np.array([], dtype=int), *np.arange(ablator.graph.n_edges)[:, None]]
    found = ablator.run_cuts(cuts, [chosen])[chosen.name]
    clusters = examples.clusters.tolist()
    tally = Tally(ablator.graph, clusters)
    tally.add((found[:1] - found[1:]).T, clusters)
    return tally.scores(
        model,
        method="exact-edges",
        metric=chosen.name,
        ablation=ablation,
        meaning=MEANING,
        gradient=False,
        level=ablator.level,
    )
