"""Gradients of a metric at what every target reads, contracted with what sources write.

Shapes: b examples, s sources, t targets, p positions, d the width of the stream, k of a head, and
where edges are told apart, q places. The
gradient at a port's own copy of the stream is formed from the gradient at the projection's output,
through the head's columns and through the norm, block by block; it is contracted at once and freed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.circuits.edges.reading import Norm, Ports, Reading
from microtome.circuits.edges.writing import write_sites
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.behaviors.metrics import LastTokenMetric
    from microtome.circuits.graph import ComponentGraph
    from microtome.tracing.gradients import Gradients
    from microtome.tracing.interventions import Intervention

TABLE = 256 * 2**20
"""Bytes of the table of differences of one batch at most."""


def port_gradients(
    reading: Reading,
    chosen: LastTokenMetric,
    chunk: Examples,
    *,
    changes: Sequence[Intervention] = (),
    prompts: Sequence[tuple[int, ...]] | None = None,
) -> Gradients:
    """Run the model forward and backward, keeping what :func:`edge_products` needs.

    Args:
        reading: The model.
        chosen: The metric.
        chunk: The examples.
        changes: Interventions.
        prompts: What is run; the clean prompts by default.
    """
    apart = [
        at(f"blocks.{stage.layer}.mlp.in").apply(_apart)
        for stage in reading.stages
        if stage.mlp_target is not None
        # without a norm between them, what the MLP reads is the very tensor that goes on
        and (not stage.mlp_norm or stage.mlp_stream == stage.stream)
    ]
    return reading.model.gradients(
        lambda logits, lengths: chosen(logits, lengths, chunk),
        _sites(reading),
        chunk.clean if prompts is None else prompts,
        interventions=[*apart, *changes],
        logits="last",
    )


def edge_products(
    reading: Reading,
    found: Gradients,
    table: torch.Tensor,
    *,
    rows: range | None = None,
    first: int = 0,
    where: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return for every edge the product of what the source writes with the target's gradient.

    Args:
        reading: The model.
        found: Gradients of :func:`port_gradients`.
        table: What sources write, or by how much that differs ``[b, s, p, d]``.
        rows: Numbers of the sources in the table; all by default.
        first: First block whose targets count.
        where: Whether a position belongs to a place ``[b, p, q]``, to keep the places apart.

    Returns:
        ``[b, s, t]``, 0 where a target does not see a source; with places ``[b, s, t, q]``.
    """
    rows = range(len(reading.graph.sources)) if rows is None else rows
    batch = table.shape[0]
    flat = table.flatten(2)
    shape = batch, len(rows), len(reading.graph.targets)
    products = torch.zeros(
        shape if where is None else (*shape, where.shape[2]),
        dtype=torch.float32,
        device=table.device,
    )

    for gradient, targets, seen in target_gradients(reading, found, first=first):
        count = max(0, min(seen, rows.stop) - rows.start)
        if count and where is not None:
            written, slopes = table[:, :count].float(), gradient.float()
            each = torch.einsum("bspd,tbpd->bpst", written, slopes)
            products[:, :count, targets] = torch.einsum("bpst,bpq->bstq", each, where.to(each))
        elif count:
            slopes = gradient.transpose(0, 1).reshape(batch, gradient.shape[0], -1)
            products[:, :count, targets] = torch.bmm(
                flat[:, :count].float(), slopes.float().transpose(1, 2)
            )
    return products


def target_gradients(
    reading: Reading, found: Gradients, *, first: int = 0
) -> Iterator[tuple[torch.Tensor, slice, int]]:
    """Yield gradients at what targets read before their norm, block by block, the logits last.

    Args:
        reading: The model.
        found: Gradients of :func:`port_gradients`.
        first: First block whose targets count.

    Yields:
        Gradients ``[t, b, p, d]``, the numbers of their targets, and how many sources these see.
    """
    for stage in reading.stages[first:]:
        if stage.ports:
            slopes = torch.cat([_at_columns(reading, found, ports) for ports in stage.ports])
            norm = reading.norm(stage.attn_norm)
            gradient = _pulled_back(norm, _laid_out(found, stage.attn_read), slopes)
            span = slice(stage.ports[0].targets.start, stage.ports[-1].targets.stop)
            yield gradient, span, stage.seen
        if stage.mlp_target is not None:
            slopes = found[f"blocks.{stage.layer}.mlp.in"].unsqueeze(0)
            norm = reading.norm(stage.mlp_norm)
            gradient = _pulled_back(norm, _laid_out(found, stage.mlp_read), slopes)
            yield gradient, slice(stage.mlp_target, stage.mlp_target + 1), stage.mlp_seen
    last = len(reading.graph.targets)
    logits = found[reading.last_stream].unsqueeze(0)
    yield logits, slice(last - 1, last), len(reading.graph.sources)


def on_edges(
    reading: Reading, products: torch.Tensor, graph: ComponentGraph | None = None
) -> np.ndarray:
    """Return products ``[b, s, t]`` as numbers of the possible edges ``[b, edge]``.

    Args:
        reading: The model.
        products: Of :func:`edge_products`; with places ``[b, s, t, q]``.
        graph: The graph whose edges are asked for, told apart by place if the products are.
    """
    pairs = (graph or reading.graph).pairs
    if products.ndim == 4:
        # the logits come last and read at one place only
        logits = products[:, :, -1:].sum(3)
        products = torch.cat([products[:, :, :-1].flatten(2), logits], 2)
    values = products.detach().cpu().numpy()[:, pairs[:, 0], pairs[:, 1]]
    return np.asarray(values, dtype=np.float64)


def moved(table: torch.Tensor, where: torch.Tensor | None = None) -> np.ndarray:
    """Return whether anything of a source differs in a table ``[b, s, p, d]``.

    Args:
        table: Differences of what sources write.
        where: Whether a position belongs to a place ``[b, p, q]``.

    Returns:
        ``[s]``, or at each place ``[s, q]``.
    """
    if where is None:
        return np.asarray((table.flatten(2).abs().amax((0, 2)) > 0).cpu().numpy())
    differs = (table.abs().amax(3) > 0).float()
    return np.asarray((torch.einsum("bsp,bpq->sq", differs, where.to(differs)) > 0).cpu().numpy())


def batch_size(reading: Reading, examples: Examples, *, places: int = 0) -> int:
    """Return how many examples fit in a table of differences, and in one of products by place."""
    longest = max((len(e.clean) for e in examples), default=1)
    row = max(longest * reading.anatomy.d_model, places * len(reading.graph.targets))
    return max(1, TABLE // (len(reading.graph.sources) * row * 4))


def _sites(reading: Reading) -> list[str]:
    sites = dict.fromkeys(write_sites(reading))
    for stage in reading.stages:
        if stage.ports:
            sites[stage.attn_read] = None
            sites.update(dict.fromkeys(_output(ports) for ports in stage.ports))
        if stage.mlp_target is not None:
            sites[stage.mlp_read] = None
            sites[f"blocks.{stage.layer}.mlp.in"] = None
    return [*sites, reading.last_stream]


def _output(ports: Ports) -> str:
    return f"module:{ports.columns.path}:out"


def _apart(value: torch.Tensor) -> torch.Tensor:
    """Return a value as a tensor of its own, so that its gradient is that of its reader alone."""
    return value.view_as(value)


def _at_columns(reading: Reading, found: Gradients, ports: Ports) -> torch.Tensor:
    """Return the gradient at the input of a projection, for each head alone ``[head, b, p, d]``."""
    batch = len(found.lengths)
    slopes = found[_output(ports)]
    slopes = slopes.reshape(batch, -1, slopes.shape[-1])
    columns = torch.as_tensor(ports.columns.columns, device=slopes.device)
    heads = slopes[:, :, columns].permute(2, 0, 1, 3)
    weight = reading.weight(ports).to(slopes.dtype)
    flat = torch.bmm(heads.flatten(1, 2), weight.transpose(1, 2))
    heads_in: torch.Tensor = flat.unflatten(1, (batch, -1))
    return heads_in


def _laid_out(found: Gradients, site: str) -> torch.Tensor:
    """Return the value of a site as ``[b, p, d]``."""
    value = found.value(site)
    return value.reshape(len(found.lengths), -1, value.shape[-1])


def _pulled_back(norm: Norm, stream: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """Return gradients at a norm's output as gradients at its input ``[t, b, p, d]``."""
    with torch.enable_grad():
        # one copy for each target: a norm acts on every position alone
        copies = stream.detach().expand_as(slopes).flatten(0, 1).clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(norm(copies), copies, slopes.flatten(0, 1))
    pulled: torch.Tensor = gradient.unflatten(0, slopes.shape[:2])
    return pulled
