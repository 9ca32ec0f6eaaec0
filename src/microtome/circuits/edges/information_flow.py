"""Information-flow routes: how near what a source writes is to the stream that a target reads.

Ferrando and Voita (2024, arXiv 2403.00824). Needs one forward pass of the clean prompts and no
corrupt prompt, gradient or metric; so it says nothing about one behavior in particular. Proximity
of a source that writes a to the stream y is ``max(0, |y| - |y - a|)`` in the L1 norm, taken as a
share of the sum over all sources that the target sees, and averaged over positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from microtome.behaviors.evaluate import batches
from microtome.circuits.edges.port_gradients import batch_size, on_edges
from microtome.circuits.edges.reading import Reading
from microtome.circuits.edges.tally import Tally
from microtome.circuits.edges.writing import differences, write_sites

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.circuits.edges.scores import EdgeScores
    from microtome.tracing.model import Model
    from microtome.tracing.trace import Trace

MEANING = (
    "Share of what the target reads that the source wrote (proximity in the L1 norm), averaged "
    "over positions; the logits read the prompt's end only."
)


def information_flow(model: Model, examples: Examples) -> EdgeScores:
    """Score every edge by how near its source's write is to the stream its target reads.

    The q, k and v ports of a block read the same stream, so their edges have the same score.

    Args:
        model: A transformer whose parts write to one residual stream.
        examples: Examples whose clean prompts are run.
    """
    reading = Reading.of(model)
    tally = Tally(reading.graph, examples.clusters.tolist())
    sites = dict.fromkeys([*write_sites(reading), reading.last_stream])
    for stage in reading.stages:
        sites |= dict.fromkeys([stage.stream, stage.mlp_stream])
    for places in batches(examples, batch_size(reading, examples), model=model):
        chunk = examples.take(places)
        trace = model.trace(chunk.clean, capture=list(sites), logits=None)
        tally.add(on_edges(reading, _routes(reading, trace)), chunk.clusters.tolist())
    return tally.scores(
        model,
        method="information-flow",
        metric="none",
        ablation="none",
        meaning=MEANING,
        gradient=False,
    )


def _routes(reading: Reading, trace: Trace) -> torch.Tensor:
    """Return the importance of every edge ``[batch, source, target]``."""
    now = {site: trace.value(site) for site in write_sites(reading)}
    table = differences(reading, now, {}, stop=len(reading.stages))
    real = trace.mask.to(table.device).float()
    average = real / real.sum(1, keepdim=True)
    ends = torch.zeros_like(real)
    ends[range(len(real)), reading.model.readout.positions(trace.lengths).tolist()] = 1.0
    shape = reading.graph.possible.shape
    found = table.new_zeros(len(table), *shape, dtype=torch.float32)
    for stage in reading.stages:
        if stage.ports:
            near = importance(table[:, : stage.seen], trace.value(stage.stream))
            span = slice(stage.ports[0].targets.start, stage.ports[-1].targets.stop)
            found[:, : stage.seen, span] = torch.einsum("bsp,bp->bs", near, average).unsqueeze(2)
        if stage.mlp_target is not None:
            stream = trace.value(stage.mlp_stream).reshape(len(table), *table.shape[2:])
            near = importance(table[:, : stage.mlp_seen], stream)
            found[:, : stage.mlp_seen, stage.mlp_target] = torch.einsum("bsp,bp->bs", near, average)
    near = importance(table, trace.value(reading.last_stream))
    found[:, :, -1] = torch.einsum("bsp,bp->bs", near, ends)
    return found


def importance(written: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
    """Return each source's share of the proximity to a stream ``[batch, source, pos]``.

    Args:
        written: What sources write ``[batch, source, pos, d_model]``.
        stream: The stream ``[batch, pos, d_model]``.
    """
    written, stream = written.float(), stream.float()
    whole = stream.abs().sum(-1).unsqueeze(1)
    rest = torch.stack([(w - stream).abs().sum(-1) for w in written.unbind(1)], 1)
    near = (whole - rest).clamp(min=0.0)
    total = near.sum(1, keepdim=True)
    return torch.where(total > 0, near / total.clamp(min=torch.finfo(near.dtype).tiny), near)
