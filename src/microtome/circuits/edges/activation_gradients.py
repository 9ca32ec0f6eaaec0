"""EAP-IG on activations: a source's outgoing edges by gradients with that source interpolated.

For each group of sources that write at once (the embedding, the heads of a block, an MLP) their
output is moved from its clean to its ablated value, and the gradients at the targets are averaged
over midpoints (Hanna et al., 2024). Only edges that leave the interpolated sources are scored from
those passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from microtome.attribution.patching import single_row
from microtome.behaviors.evaluate import batches
from microtome.circuits.edges.attribution import MEANING, midpoints
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
from microtome.circuits.references import References
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from microtome.behaviors.examples import Examples
    from microtome.behaviors.metrics import LastTokenMetric, Metric
    from microtome.circuits.edges.scores import EdgeScores
    from microtome.circuits.references import Ablation
    from microtome.tracing.model import Model


def activation_gradients(
    model: Model,
    examples: Examples,
    *,
    steps: int = 5,
    metric: str | Metric = "logit_difference",
    ablation: Ablation = "resample",
    reference: Examples | None = None,
) -> EdgeScores:
    """Score every edge by gradients averaged over interpolations of its source's output.

    It costs ``steps`` forward and backward passes for each block's attention, each MLP and the
    embedding.

    Args:
        model: A transformer whose parts write to one residual stream.
        examples: Where to look.
        steps: Midpoints for each group of sources.
        metric: A metric that reads the prompt's end.
        ablation: What an ablated edge carries.
        reference: Examples over which means are taken.

    Raises:
        ConfigError: If ``steps`` is not positive.
    """
    chosen = single_row(metric, "Edge attribution")
    shares = midpoints(steps)
    reading = Reading.of(model)
    sites = write_sites(reading)
    references = References(model, examples, sites, ablation=ablation, reference=reference)
    tally = Tally(reading.graph, examples.clusters.tolist())
    for places in batches(examples, batch_size(reading, examples), model=model):
        chunk = examples.take(places)
        instead = references.of(chunk)
        trace = model.trace(chunk.clean, capture=sites, logits=None)
        now = {site: trace.value(site) for site in sites}
        table = differences(reading, now, instead, stop=len(reading.stages))
        total = table.new_zeros(len(chunk), *reading.graph.possible.shape, dtype=torch.float32)
        for site, rows, block in _groups(reading):
            for share in shares:
                found = _products(
                    reading, chosen, chunk, instead, table, (site, rows, block), share
                )
                total[:, rows.start : rows.stop] += found / len(shares)
        tally.add(on_edges(reading, total), chunk.clusters.tolist(), moved(table))
    return tally.scores(
        model,
        method=f"eap-ig-activations, {steps} steps",
        metric=chosen.name,
        ablation=ablation,
        meaning=MEANING,
        config={"shares": list(shares)},
    )


def _groups(reading: Reading) -> Iterator[tuple[str, range, int]]:
    """Yield site, source numbers and first reading block of the sources that write at once."""
    yield reading.stages[0].stream, range(0, 1), 0
    for stage in reading.stages:
        if len(stage.heads):
            yield f"blocks.{stage.layer}.attn.z", stage.heads, stage.layer
        if stage.mlp_source is not None:
            rows = range(stage.mlp_source, stage.mlp_source + 1)
            yield f"blocks.{stage.layer}.mlp.out", rows, stage.layer + 1


def _products(
    reading: Reading,
    chosen: LastTokenMetric,
    chunk: Examples,
    instead: Mapping[str, torch.Tensor],
    table: torch.Tensor,
    group: tuple[str, range, int],
    share: float,
) -> torch.Tensor:
    """Return the products of a group's edges with its output moved a share of the way."""
    site, rows, block = group
    change = at(site).apply(_moved(instead.get(site), share))
    found = port_gradients(reading, chosen, chunk, changes=[change])
    return edge_products(reading, found, table[:, rows.start : rows.stop], rows=rows, first=block)


def _moved(goal: torch.Tensor | None, share: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(value: torch.Tensor) -> torch.Tensor:
        end = torch.zeros_like(value) if goal is None else goal.to(value)
        return value + share * (end - value)

    return change
