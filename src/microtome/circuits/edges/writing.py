"""What every source writes to the residual stream, and what it would write instead.

Heads write z times their rows of the output projection; the projection's bias belongs to no source.
Differences are taken in z and only then projected, so no head's write is kept for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from microtome.circuits.edges.reading import Reading, Stage
from microtome.errors import ModelSupportError
from microtome.models import hf

Values = Mapping[str, torch.Tensor]
"""Values of sites by name; one that is missing counts as zero."""


def write_sites(reading: Reading) -> list[str]:
    """Return the sites that hold what all sources write: the first stream, z, MLP outputs."""
    found = [reading.stages[0].stream]
    for stage in reading.stages:
        if len(stage.heads):
            found.append(f"blocks.{stage.layer}.attn.z")
        if stage.mlp_source is not None:
            found.append(f"blocks.{stage.layer}.mlp.out")
    return found


def differences(reading: Reading, now: Values, instead: Values, *, stop: int) -> torch.Tensor:
    """Return by how much the first sources write something else than they would instead.

    Args:
        reading: The model.
        now: Values of the write sites ``[batch, pos, ...]``.
        instead: What they would be, of the same shape or broadcasting to it.
        stop: Up to which block.

    Returns:
        ``now - instead`` as written to the stream ``[batch, source, pos, d_model]``, of the
        embedding and the sources of the blocks before ``stop``.
    """
    stages = reading.stages[:stop]
    first = reading.stages[0].stream
    embed = _difference(first, now, instead)
    batch, width, size = embed.shape
    count = 1 + sum(len(s.heads) + (s.mlp_source is not None) for s in stages)
    table = embed.new_empty(batch, count, width, size)
    table[:, 0] = embed
    for stage in stages:
        if len(stage.heads):
            change = _difference(f"blocks.{stage.layer}.attn.z", now, instead)
            table[:, stage.heads.start : stage.heads.stop] = head_writes(reading, stage, change)
        if stage.mlp_source is not None:
            table[:, stage.mlp_source] = _difference(f"blocks.{stage.layer}.mlp.out", now, instead)
    return table


def ablated_streams(reading: Reading, instead: Values) -> dict[str, torch.Tensor]:
    """Return the stream that every norm would read if all sources wrote what they do ablated.

    Args:
        reading: The model.
        instead: What ablated sources give, by site; missing ones give nothing.

    Returns:
        By the site where it is read: ``attn_read`` and ``mlp_read`` of every block, and the last
        stream; ``[batch, pos, d_model]``, or of size 1 where it is the same everywhere.
    """
    first = reading.stages[0].stream
    weights = next(reading.model.module.parameters())
    stream = instead.get(first, weights.new_zeros(1, 1, reading.anatomy.d_model)).detach()
    found = {}
    for stage in reading.stages:
        before = stream
        if len(stage.heads):
            found[stage.attn_read] = before
            stream = stream + _attention_write(reading, stage, instead)
        if stage.mlp_target is not None:
            parallel = stage.mlp_stream == stage.stream
            found[stage.mlp_read] = before if parallel else stream
            mlp = instead.get(f"blocks.{stage.layer}.mlp.out")
            stream = stream if mlp is None else stream + mlp
    found[reading.last_stream] = stream
    return found


def _attention_write(reading: Reading, stage: Stage, instead: Values) -> torch.Tensor:
    """Return what a block's attention writes ablated: its heads', and the projection's bias."""
    attention = reading.anatomy.blocks[stage.layer].attention
    if attention is None or attention.out_proj is None:
        raise ModelSupportError(f"Block {stage.layer} has no heads whose writes could be formed.")
    projection = reading.module(attention.out_proj)
    size = hf.projection_weight(projection)
    z = instead.get(f"blocks.{stage.layer}.attn.z")
    joined = size.new_zeros(1, 1, len(size)) if z is None else z.flatten(2)
    with torch.no_grad():
        written: torch.Tensor = projection.forward(joined.contiguous()) * attention.scale
    return written


def head_writes(
    reading: Reading, stage: Stage, z: torch.Tensor, heads: Sequence[int] | None = None
) -> torch.Tensor:
    """Return what heads of a block write for given z, without the output projection's bias.

    Args:
        reading: The model.
        stage: The block.
        z: ``[batch, pos, head, d_head]`` of the chosen heads.
        heads: Which heads of the block; all by default.

    Returns:
        ``[batch, head, pos, d_model]``.
    """
    attention = reading.anatomy.blocks[stage.layer].attention
    if attention is None or attention.out_proj is None:
        raise ModelSupportError(f"Block {stage.layer} has no heads whose writes could be formed.")
    projection = hf.projection_weight(reading.module(attention.out_proj)).detach()
    weight = projection.unflatten(0, (attention.n_heads, -1))
    if heads is not None:
        weight = weight[list(heads)]
    batch, width = z.shape[:2]
    flat = z.permute(2, 0, 1, 3).reshape(len(weight), batch * width, -1)
    written: torch.Tensor = torch.bmm(flat, weight.to(flat.dtype)) * attention.scale
    each: torch.Tensor = written.unflatten(1, (batch, width))
    return each.transpose(0, 1)


def _difference(site: str, now: Values, instead: Values) -> torch.Tensor:
    value = now[site]
    return value - instead[site].to(value) if site in instead else value
