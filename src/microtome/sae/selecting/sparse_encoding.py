"""Active latents at inference without their zeros: what ``activate`` keeps, and no more."""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.sae.architecture import Architecture
from microtome.sae.encoding import Weights, activate, pre_activations
from microtome.sae.latents import SparseLatents
from microtome.sae.selecting.ranking import top_latents


@torch.no_grad()
def active_latents(make: Architecture, weights: Weights, inputs: Tensor) -> SparseLatents:
    """Return the active latents of inputs ``[row, d_in]``.

    Counted activations rank groups before latents and touch the kept entries only; thresholds need
    one comparison. Where two latents of a row tie for the last place, either may be kept.

    Args:
        make: The coder's architecture.
        weights: Its weights by name.
        inputs: A block of rows; its pre-activations are held at once.
    """
    pre = pre_activations(make, weights, inputs)
    if make.activation in ("topk", "abstopk"):
        signed = make.activation == "abstopk"
        kept = top_latents(pre.abs() if signed else pre, make.k).sort(dim=1).values
        values = pre.gather(1, kept)
        values = values if signed else values.relu()
        active = values != 0
        offsets = torch.zeros(len(pre) + 1, dtype=torch.int64, device=pre.device)
        torch.cumsum(active.sum(1), 0, out=offsets[1:])
        return SparseLatents(offsets, kept[active], values[active], make.d_sae)
    if make.activation in ("jumprelu", "batchtopk"):
        active = pre > weights["threshold"].clamp_min(0).to(pre.dtype)
        rows, indices = active.nonzero(as_tuple=True)
        offsets = torch.zeros(len(pre) + 1, dtype=torch.int64, device=pre.device)
        torch.cumsum(torch.bincount(rows, minlength=len(pre)), 0, out=offsets[1:])
        return SparseLatents(offsets, indices, pre[rows, indices], make.d_sae)
    return SparseLatents.of(activate(make, weights, pre))
