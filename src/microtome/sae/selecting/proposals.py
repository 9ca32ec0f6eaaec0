"""Candidates from estimates in bytes: which entries of a block of codes may be among the largest.

The ``k``-th largest of a row is at least the ``k``-th largest maximum of any groups of its latents.
So a little beyond ``k`` maxima give a level that enough entries reach, and not many more; what
reaches it is found eight entries at a time, as most words of eight have none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from microtome.sae.kernels import Entries

SPARE = 0.25
"""Candidates beyond what is kept, as a share of it, where they come from estimates."""

WORD = 8
"""Codes that are looked at as one number."""


def spared(count: int) -> int:
    """Return how many candidates are taken where some are to be kept."""
    return count + max(8, round(SPARE * count))


def grouping(width: int, k: int) -> tuple[int, int] | None:
    """Return into how many groups a row is cut, and the rank of a maximum among them.

    About as many entries reach that maximum as are to be candidates, at least as many as the rank.

    Args:
        width: Latents of a row.
        k: Latents that are kept.

    Returns:
        Both numbers; None if the width cannot be cut so.
    """
    groups = 1 << max(4, (4 * k - 1).bit_length())
    if width % groups or width < 4 * groups:
        return None
    return groups, math.ceil(groups * (1 - math.exp(-spared(k) / groups)))


def row_levels(codes: Tensor, groups: int, rank: int) -> Tensor:
    """Return for each row of codes a level ``[row, 1]`` that at least ``rank`` entries reach."""
    maxima = codes.view(len(codes), -1, groups).amax(1)
    return maxima.topk(rank, dim=1, sorted=False).values.amin(1, keepdim=True)


def batch_level(codes: Tensor, count: int) -> int:
    """Return the highest level, 1 or more, that at least ``count`` entries of a block reach."""
    reached = torch.bincount(codes.view(-1), minlength=256).flip(0).cumsum(0).flip(0)
    return max(1, int((reached >= count).sum()) - 1)


def reaching(codes: Tensor, level: Tensor | int, flags: Tensor) -> Tensor:
    """Return the flat numbers of the entries that reach a level, growing.

    Args:
        codes: ``[row, latent]``, uint8, a multiple of eight latents.
        level: One for all, or for each row ``[row, 1]``.
        flags: Memory of the shape and type of the codes, overwritten.
    """
    flat = torch.ge(codes, level, out=flags).view(-1)
    words = flat.view(torch.int64).nonzero().squeeze(1)
    inside = flat.view(-1, WORD)[words].view(-1).nonzero().squeeze(1)
    return words[inside // WORD] * WORD + inside % WORD


def largest(values: Tensor, count: int) -> Tensor:
    """Return which of the values are the largest, as a mask in their own order."""
    mark = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    mark[values.topk(count, sorted=False).indices] = True
    return mark


def largest_of_bags(entries: Entries, keys: Tensor, k: int) -> Tensor:
    """Return the numbers of the entries with the ``k`` largest keys of each bag, bag by bag.

    Args:
        entries: The entries, at least ``k`` in each bag.
        keys: One for each ``[entry]``.
        k: How many.
    """
    first = entries.offsets
    widest = int(torch.bincount(entries.bags, minlength=entries.n_bags).max())
    number = torch.arange(len(keys), device=keys.device)
    if widest == k:
        return number
    table = keys.new_full((entries.n_bags, widest), -torch.inf)
    table[entries.bags, number - first[entries.bags]] = keys
    return (table.topk(k, dim=1, sorted=False).indices + first[:, None]).view(-1)
