"""The largest of a row or of a batch, exactly, with less work than sorting.

The ``k`` largest of a row lie in the ``k`` groups of latents with the largest maxima, and those
groups are found in the same way among their maxima: some cheap passes and small sorts replace a
sort of all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.sae.selecting.products import Encoding
from microtome.sae.selecting.proposals import spared

FAN = 8
"""Latents of a group."""


def top_latents(key: Tensor, k: int) -> Tensor:
    """Return the latents ``[row, k]`` of the largest keys of each row, exactly, in any order."""
    width = key.shape[1]
    if width % FAN or width < FAN * k:
        return key.topk(k, sorted=False).indices
    groups = width // FAN
    members = key.view(len(key), FAN, groups)  # latent = member * groups + group
    group = top_latents(members.amax(1), k)
    candidates = members.gather(2, group[:, None, :].expand(-1, FAN, -1)).flatten(1)
    place = candidates.topk(k, sorted=False).indices
    return place // k * groups + group.gather(1, place % k)


def rank_all(encoding: Encoding, wanted: int) -> tuple[Tensor, Tensor]:
    """Return the largest of all entries, merged block by block, in the order of their places."""
    wanted = spared(wanted) if encoding.estimated else wanted
    place = torch.empty(0, dtype=torch.int64, device=encoding.inputs.device)
    value = encoding.inputs.new_empty(0)
    start = 0
    for block in encoding.blocks():
        top = block.flatten().topk(min(wanted, block.numel()), sorted=False)
        place = torch.cat([place, top.indices + start])
        value = torch.cat([value, top.values.to(value.dtype)])
        best = value.topk(min(wanted, len(value)), sorted=False)
        place, value = place[best.indices], best.values
        start += block.numel()
    place, order = place.sort()
    return place, value[order]


def sortable(values: Tensor) -> Tensor:
    """Return keys in the values' order above 0: bfloat16 as whole numbers, which compare faster."""
    return values.view(torch.int16) if values.dtype == torch.bfloat16 else values
