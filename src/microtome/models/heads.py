"""Which columns of the query, key and value projections belong to which head, found by value."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from microtome.models import hf
from microtome.models.anatomy import HeadColumns
from microtome.models.probe import AttentionCall, Call, Recording

_NAMES = {
    "q": ("q_proj", "query", "q", "q_lin", "wq", "query_proj"),
    "k": ("k_proj", "key", "k", "k_lin", "wk", "key_proj"),
    "v": ("v_proj", "value", "v", "v_lin", "wv", "value_proj"),
}


def head_columns(
    module: nn.Module, recording: Recording, block: str, entry: AttentionCall
) -> dict[str, HeadColumns]:
    """Find the projection columns of each head's query, key and value.

    Values are compared at all positions for v, and at position 0 for q and k, where a rotary
    embedding is the identity. Where a norm stands between projection and head, the name and the
    size of the projection decide and ``exact`` is false.

    Args:
        module: The whole model.
        recording: Its recorded forward pass.
        block: Path of the block.
        entry: What reached the attention entry in this block.

    Returns:
        Columns for ``"q"``, ``"k"`` and ``"v"`` where found.
    """
    projections = [
        call
        for call in recording.below(block)
        if hf.is_projection(module.get_submodule(call.path)) and call.result is not None
    ]
    scaling = entry.kwargs.get("scaling")
    found: dict[str, HeadColumns] = {}
    for name, heads in (("q", entry.q), ("k", entry.k), ("v", entry.v)):
        matched = None
        positions = slice(None) if name == "v" else slice(0, 1)
        scales = [1.0] if name != "q" or not scaling else [1.0, float(entry.q.shape[-1]) ** -0.5]
        for call in projections:
            for scale in scales:
                matched = matched or _match(call, heads[:, :, positions], positions, scale)
        matched = matched or _by_name(projections, name, heads)
        if matched is not None:
            found[name] = matched
    return found


def _match(call: Call, heads: torch.Tensor, positions: slice, scale: float) -> HeadColumns | None:
    """Match head values ``[batch, head, pos, d_head]`` with output columns of a projection."""
    if call.result is None or call.result.ndim != 3 or call.result.shape[0] != heads.shape[0]:
        return None
    produced = call.result[:, positions].flatten(0, 1).double() * scale
    wanted = heads.transpose(1, 2).flatten(0, 1).flatten(1).double()
    if produced.shape[0] != wanted.shape[0] or produced.shape[1] < wanted.shape[1]:
        return None
    distance = torch.cdist(wanted.T.contiguous(), produced.T.contiguous(), p=2)
    best, columns = distance.min(dim=1)
    limit = 1e-5 * float(wanted.abs().max()) * max(1, wanted.shape[0]) ** 0.5
    distinct = columns.unique().numel() == columns.numel()
    if not distinct or float(best.max()) > limit:
        return None
    shape = (heads.shape[1], heads.shape[3])
    return HeadColumns(call.path, columns.reshape(shape).cpu().numpy().astype(np.int64), scale)


def _by_name(projections: list[Call], name: str, heads: torch.Tensor) -> HeadColumns | None:
    size = heads.shape[1] * heads.shape[3]
    for call in projections:
        last = call.path.rsplit(".", 1)[-1]
        if call.result is not None and last in _NAMES[name] and call.result.shape[-1] == size:
            columns = np.arange(size).reshape(heads.shape[1], heads.shape[3])
            return HeadColumns(call.path, columns, exact=False)
    return None
