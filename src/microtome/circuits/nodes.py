"""The nodes of the first, node-level circuits: heads ``a3.h1`` and MLPs ``m3``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from microtome.errors import UnknownNameError, nearest
from microtome.models.anatomy import Anatomy


def check_nodes(nodes: Iterable[str], universe: Sequence[str]) -> frozenset[str]:
    """Return nodes as a set.

    Raises:
        UnknownNameError: If one is not a node of the model.
    """
    found = frozenset(nodes)
    wrong = sorted(found - set(universe))
    if wrong:
        raise UnknownNameError(f"No node {wrong[0]!r}{nearest(wrong[0], universe)}.")
    return found


def masks(
    circuits: Sequence[frozenset[str]], anatomy: Anatomy
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """Return which heads and MLPs each circuit keeps.

    Returns:
        For each layer ``[circuit, head]`` and ``[circuit]``, 1 where kept.
    """
    heads, mlps = {}, {}
    for layer, block in enumerate(anatomy.blocks):
        if block.attention is not None:
            kept = [
                [f"a{layer}.h{h}" in c for h in range(block.attention.n_heads)] for c in circuits
            ]
            heads[layer] = torch.tensor(kept)
        if block.mlp is not None:
            mlps[layer] = torch.tensor([f"m{layer}" in c for c in circuits])
    return heads, mlps
