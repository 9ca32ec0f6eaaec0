"""From inputs to latents: pre-activations and activations, dense and differentiable.

These are the definitions. Training computes the same numbers from the kept entries only and is
tested against them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from microtome.sae.architecture import Architecture

Weights = Mapping[str, Tensor]


def pre_activations(make: Architecture, weights: Weights, inputs: Tensor) -> Tensor:
    """Return what enters the activation ``[..., d_sae]`` for inputs ``[..., d_in]``.

    Gated coders have two biases of their own behind it, so theirs carry none.
    """
    if make.center:
        inputs = inputs - weights["b_dec"]
    if make.kronecker is not None:
        return _kronecker(make.kronecker, weights, inputs)
    if make.reach == "all":
        encoder = weights["W_dec"] if make.encoder == "tied" else weights["W_enc"]
        pre = inputs @ encoder.T
    else:
        parts = [
            inputs[..., source] @ weights["W_enc"][latents, : source.stop - source.start].T
            for source, latents in zip(make.source_slices, make.latent_slices, strict=True)
        ]
        pre = torch.cat(parts, dim=-1)
    return pre if make.activation == "gated" else pre + weights["b_enc"]


def _kronecker(shape: tuple[int, int, int], weights: Weights, inputs: Tensor) -> Tensor:
    """Return the geometric mean of two units where both are positive, else 0 (arXiv 2505.22255)."""
    heads, left, right = shape
    p = (inputs @ weights["W_left"].T + weights["b_left"]).unflatten(-1, (heads, left, 1))
    q = (inputs @ weights["W_right"].T + weights["b_right"]).unflatten(-1, (heads, 1, right))
    product = p.relu() * q.relu()
    positive = product > 0
    return torch.where(positive, product.where(positive, product.new_ones(())).sqrt(), 0).flatten(
        -3
    )


def kronecker_latents(
    shape: tuple[int, int, int], weights: Weights, inputs: Tensor, latents: Tensor
) -> Tensor:
    """Return the pre-activations of some latents of a Kronecker encoder ``[row, latent]``.

    Args:
        shape: Heads, left and right units of a head.
        weights: The coder's weights.
        inputs: ``[row, d_in]``, centered.
        latents: Numbers of the latents.
    """
    _, left, right = shape
    heads = latents // (left * right)
    sides = []
    for side, units in (("left", latents // right), ("right", heads * right + latents % right)):
        bias, matrix = (weights[f"{name}_{side}"].index_select(0, units) for name in "bW")
        sides.append(torch.addmm(bias[:, None], matrix, inputs.T).relu())
    product = sides[0] * sides[1]
    positive = product > 0
    return torch.where(positive, product.where(positive, product.new_ones(())).sqrt(), 0).T


def activate(make: Architecture, weights: Weights, pre: Tensor) -> Tensor:
    """Return latents ``[..., d_sae]`` from pre-activations ``[..., d_sae]``, as at inference.

    BatchTopK keeps what exceeds its threshold, so a row does not depend on the others.
    """
    if make.activation == "topk":
        return keep_largest(pre.relu(), pre, make.k)
    if make.activation == "abstopk":
        return keep_largest(pre, pre.abs(), make.k)
    if make.activation == "gated":
        gate = pre + weights["b_gate"]
        return (pre * weights["r_mag"].exp() + weights["b_mag"]).relu() * (gate > 0)
    if make.activation in ("jumprelu", "batchtopk"):
        return pre.relu() * (pre > weights["threshold"])
    return pre.relu()


def keep_largest(values: Tensor, rank: Tensor, k: int) -> Tensor:
    """Return ``values`` where ``rank`` is among the ``k`` largest of its row, 0 elsewhere."""
    kept = torch.zeros_like(values, dtype=torch.bool)
    kept.scatter_(-1, rank.topk(k, dim=-1).indices, True)
    return values * kept
