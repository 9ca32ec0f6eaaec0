"""Edge attribution patching and its integrated forms: gradients at every port, one table of writes.

The score of an edge is (what the source writes - what it would write ablated) . gradient at the
target's input before its norm, per example: how much of the metric is lost, to first order, when
that edge alone is ablated (Syed et al., 2023, arXiv 2310.10348). The gradient is taken in the clean
run, at both ends, or averaged over midpoints of the straight line between the first streams of both
runs (Hanna et al., 2024, arXiv 2403.17806).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from microtome.attribution.patching import single_row
from microtome.behaviors.evaluate import batches
from microtome.circuits.edges.port_gradients import (
    batch_size,
    edge_products,
    moved,
    on_edges,
    port_gradients,
)
from microtome.circuits.edges.reading import Reading
from microtome.circuits.edges.tally import Tally
from microtome.circuits.edges.writing import differences, write_sites
from microtome.circuits.places import Places, edge_level
from microtome.circuits.references import References
from microtome.errors import ConfigError
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.behaviors.metrics import LastTokenMetric, Metric
    from microtome.circuits.edges.scores import EdgeScores
    from microtome.circuits.places import Split
    from microtome.circuits.references import Ablation
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model

MEANING = (
    "Estimated support for the behavior: how much of the metric is lost when this edge alone is "
    "ablated."
)


def edge_attribution(
    model: Model,
    examples: Examples,
    *,
    metric: str | Metric = "logit_difference",
    ablation: Ablation = "resample",
    reference: Examples | None = None,
    split: Split | None = None,
) -> EdgeScores:
    """Score every edge by its gradient in the clean run (EAP): two passes and a backward pass.

    In bfloat16 scores are off by up to 0.17 of the largest one, since gradients are rounded on
    their way back: load the model in float32 to tell weak edges apart.

    Args:
        model: A transformer whose parts write to one residual stream.
        examples: Where to look: the train split.
        metric: A metric that reads the prompt's end.
        ablation: What an ablated edge carries.
        reference: Examples over which means are taken; ``examples`` by default.
        split: Tell edges apart by ``role`` or ``position``; the scores add up to those without.

    Raises:
        ConfigError: If there is no such split, or more edges come of it than can be held.
        PairError: If the prompts do not share their roles, or their length.
        MetricError: If the metric needs several rows for an example.
        ModelSupportError: If edges are not defined in this model.
    """
    return _averaged(model, examples, metric, ablation, reference, "eap", (0.0,), split)


def integrated_edge_attribution(
    model: Model,
    examples: Examples,
    *,
    steps: int = 5,
    metric: str | Metric = "logit_difference",
    ablation: Ablation = "resample",
    reference: Examples | None = None,
    split: Split | None = None,
) -> EdgeScores:
    """Score every edge by gradients averaged over midpoints between the runs' first streams.

    EAP-IG (inputs) of Hanna et al. (2024), with midpoints, positions included.

    Args:
        model: A transformer whose parts write to one residual stream.
        examples: Where to look.
        steps: Number of midpoints.
        metric: A metric that reads the prompt's end.
        ablation: What an ablated edge carries.
        reference: Examples over which means are taken.
        split: Tell edges apart by ``role`` or ``position``.

    Raises:
        ConfigError: If ``steps`` is not positive.
    """
    return _averaged(
        model, examples, metric, ablation, reference, f"eap-ig, {steps} steps", midpoints(steps),
        split,
    )  # fmt: skip


def clean_corrupted(
    model: Model,
    examples: Examples,
    *,
    metric: str | Metric = "logit_difference",
    ablation: Ablation = "resample",
    reference: Examples | None = None,
    split: Split | None = None,
) -> EdgeScores:
    """Score every edge by the mean of its gradients in the clean and in the corrupt run.

    Args:
        model: A transformer whose parts write to one residual stream.
        examples: Where to look.
        metric: A metric that reads the prompt's end.
        ablation: What an ablated edge carries; the second gradient is taken with the first stream
            at that value.
        reference: Examples over which means are taken.
        split: Tell edges apart by ``role`` or ``position``.
    """
    return _averaged(
        model, examples, metric, ablation, reference, "clean-corrupted", (0.0, 1.0), split
    )


def midpoints(steps: int) -> tuple[float, ...]:
    """Return the midpoints of equal parts of the way from 0 to 1.

    Raises:
        ConfigError: If ``steps`` is not positive.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps}; expected at least 1.")
    return tuple((k + 0.5) / steps for k in range(steps))


def _averaged(
    model: Model,
    examples: Examples,
    metric: str | Metric,
    ablation: str,
    reference: Examples | None,
    method: str,
    shares: Sequence[float],
    split: Split | None,
) -> EdgeScores:
    chosen = single_row(metric, "Edge attribution")
    reading = Reading.of(model)
    sites = write_sites(reading)
    references = References(model, examples, sites, ablation=ablation, reference=reference)
    apart = None if split is None else Places.of(examples, split)
    graph = reading.graph if apart is None else apart.graph(model)
    tally = Tally(graph, examples.clusters.tolist())
    passes = {"forward": 0, "backward": 0}
    size = batch_size(reading, examples, places=len(graph.places))
    for places in batches(examples, size, model=model):
        chunk = examples.take(places)
        instead = references.of(chunk)
        where = None if apart is None else apart.mask(chunk).to(model.device)
        table, total = _batch(reading, chosen, chunk, instead, shares, where)
        values = on_edges(reading, total / len(shares), graph)
        tally.add(values, chunk.clusters.tolist(), moved(table, where))
        passes["forward"] += len(shares) + (0.0 not in shares) + (ablation == "resample")
        passes["backward"] += len(shares)
    return tally.scores(
        model,
        method=method,
        metric=chosen.name,
        ablation=ablation,
        meaning=MEANING,
        config={"shares": list(shares), "split": split},
        # at many places an edge cannot act at all, which is no saturation
        gradient=split is None,
        passes=passes,
        level=edge_level(split),
    )


def _batch(
    reading: Reading,
    chosen: LastTokenMetric,
    chunk: Examples,
    instead: Mapping[str, torch.Tensor],
    shares: Sequence[float],
    where: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the table of differences, and the products summed over the points of the way."""
    sites, layers = write_sites(reading), len(reading.stages)
    table = None
    if 0.0 not in shares:
        trace = reading.model.trace(chunk.clean, capture=sites, logits=None)
        clean = {site: trace.value(site) for site in sites}
        table = differences(reading, clean, instead, stop=layers)
        del clean, trace
    total = None
    for share in shares:
        changes = [_moved_stream(reading, instead, share)] if share else []
        found = port_gradients(reading, chosen, chunk, changes=changes)
        if table is None:
            table = differences(reading, found.values, instead, stop=layers)
        products = edge_products(reading, found, table, where=where)
        total = products if total is None else total.add_(products)
    if table is None or total is None:
        raise ConfigError("No point to take the gradient at was given; expected at least one.")
    return table, total


def _moved_stream(
    reading: Reading, instead: Mapping[str, torch.Tensor], share: float
) -> Intervention:
    """Return the change that moves the first stream a share of the way to its ablated value."""
    site = reading.stages[0].stream
    goal = instead.get(site)

    def moved_stream(value: torch.Tensor) -> torch.Tensor:
        end = torch.zeros_like(value) if goal is None else goal.to(value)
        return value + share * (end - value)

    return at(site).apply(moved_stream)
