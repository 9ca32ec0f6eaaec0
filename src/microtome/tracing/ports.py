"""The per-head input ports q, k and v: what one head reads, changed for that head alone."""

from __future__ import annotations

import torch
from torch import nn

from microtome.models import hf
from microtome.models.anatomy import HeadColumns
from microtome.tracing.call import Call, Point
from microtome.tracing.interventions import Selection


def port_output(
    point: Point,
    projection: nn.Module,
    columns: HeadColumns,
    received: torch.Tensor,
    produced: torch.Tensor,
    call: Call,
) -> torch.Tensor:
    """Return a projection's output with the selected heads reading a changed input.

    Only the changed rows, positions and heads are recomputed; all others keep their bits.

    Args:
        point: The port with its interventions.
        projection: The projection whose columns are the head's query, key or value.
        columns: Which columns belong to which head.
        received: The projection's input ``[batch, pos, d_model]``.
        produced: Its output ``[batch, pos, columns]``.
        call: The forward pass.
    """
    heads = torch.as_tensor(columns.columns, device=produced.device)
    batch = call.positions.batch
    full = received.reshape(batch, -1, received.shape[-1])
    output = produced.reshape(batch, -1, produced.shape[-1])
    port = full.unsqueeze(2).expand(-1, -1, heads.shape[0], -1)
    changed, touched = port, torch.zeros(port.shape[:3], dtype=torch.bool, device=port.device)
    for intervention in point.interventions:
        changed = intervention.on(changed, point.axes, call.positions, point.name)
        selection = Selection.of(intervention, touched, point.axes[:3], call.positions, point.name)
        touched = selection.put(touched, torch.ones_like(selection.take(touched)))
    where = touched.nonzero(as_tuple=True)
    weight = hf.projection_weight(projection)[:, heads]
    values = torch.einsum("nd,dnk->nk", changed[where], weight[:, where[2]])
    bias = getattr(projection, "bias", None)
    if isinstance(bias, torch.Tensor):
        values = values + bias[heads][where[2]]
    columns_of = heads[where[2]]
    index = (where[0].unsqueeze(1), where[1].unsqueeze(1), columns_of)
    return output.index_put(index, values.to(output.dtype)).reshape(produced.shape)
