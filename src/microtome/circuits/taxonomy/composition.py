"""Pairs of heads told by composition: how much of what one writes another's q, k or v reads."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from microtome.circuits.taxonomy.detector import Detector, Scores
from microtome.circuits.taxonomy.material import Material, head_name
from microtome.errors import ModelSupportError

PORTS = ("q", "k", "v")


def composition(material: Material) -> Scores:
    """Score every pair of heads of different blocks by Frobenius norms, less a random baseline.

    The score is ``|W_O ... W_in| / (|OV| |W_in|)`` (Elhage 2021) less its size for matrices in
    random position to one another. For a rotation drawn evenly the squared score has mean ``1/d``
    and a variance that is known in closed form, so no random matrix is drawn.
    """
    heads, left_out = material.weight_heads()
    width = material.anatomy.d_model
    writes = {head: _writer(material, *head) for head in heads}
    reads = {
        (head, port): found
        for head in heads
        for port in PORTS
        if (found := _reader(material, *head, port)) is not None
    }
    rows = []
    for sender in heads:
        for (receiver, port), (matrix, square) in reads.items():
            if sender[0] >= receiver[0]:
                continue
            left, own = writes[sender]
            sizes = float(left.square().sum()) * float(matrix.square().sum())
            if sizes <= 0:
                continue
            name = f"{head_name(*sender)}->{head_name(*receiver)}<{port}>"
            share = float((left @ matrix).square().sum()) / sizes
            rows.append((name, share, _variance(own, square, width) / sizes**2))
    if not rows:
        raise ModelSupportError("no two heads in different blocks whose weights can be read")
    return _scored(rows, width, left_out)


def _scored(rows: list[tuple[str, float, float]], width: int, left_out: tuple[str, ...]) -> Scores:
    names, shares, variances = zip(*rows, strict=True)
    share, variance = np.array(shares), np.maximum(np.array(variances), 1e-18)
    mean = 1 / width
    # a gamma distribution with the known mean and variance: right for sums of squares
    p = stats.gamma.sf(share, mean**2 / variance, scale=variance / mean)
    baseline = np.full(len(share), mean**0.5)
    return Scores(
        tuple(names), np.sqrt(share) - baseline, np.zeros(len(share)),
        # of the root, by its slope at the mean
        np.sqrt(variance) / (2 * baseline), p, np.ones(len(share), dtype=bool), {}, left_out,
    )  # fmt: skip


def _variance(left: torch.Tensor, right: torch.Tensor, width: int) -> float:
    """Return the variance of ``tr(M R N R^T)`` over random rotations R of symmetric M and N.

    The parts of M and N without trace lie in an irreducible representation of dimension
    ``(d - 1)(d + 2) / 2``, so by Schur orthogonality the variance is the product of their squared
    norms over that.
    """
    free = float(left.square().sum() - left.trace() ** 2 / width)
    other = float(right.square().sum() - right.trace() ** 2 / width)
    return max(free, 0.0) * max(other, 0.0) * 2 / ((width - 1) * (width + 2))


def _writer(material: Material, layer: int, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix with the Gram matrix of OV ``[d_head, d_model]``, and a smaller twin of it.

    ``OV = W_V W_O``; with ``W_V = Q R`` the matrix ``R W_O`` has the same products with what reads.
    The second value is the Gram matrix of the rows, with the traces and norms of that of the
    columns.
    """
    weights = material.model.weights.view(fold_norm=True)
    value = weights.W_V(layer, head).detach().float().cpu()
    left = torch.linalg.qr(value).R @ weights.W_O(layer, head).detach().float().cpu()
    return left, left @ left.T


def _reader(
    material: Material, layer: int, head: int, port: str
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return what a port reads with ``[d_model, d_head]``, and its smaller Gram matrix."""
    attention = material.anatomy.blocks[layer].attention
    if attention is None or not {"q", "k"} <= set(attention.projections):
        return None
    weights = material.model.weights.view(fold_norm=True)
    first = {"q": weights.W_Q, "k": weights.W_K, "v": weights.W_V}[port](layer, head)
    inner = first.detach().float().cpu()
    if port == "v":
        outer = weights.W_O(layer, head).T
    else:
        outer = (weights.W_K if port == "q" else weights.W_Q)(layer, head)
    matrix = inner @ torch.linalg.qr(outer.detach().float().cpu()).R.T
    return matrix, matrix.T @ matrix


COMPOSITION = (
    Detector(
        "composition", "pair",
        "|OV W_in| / (|OV| |W_in|) of an earlier head's OV and a later head's QK (q and k) or OV "
        "(v), less its size for random positions to one another",
        "Elhage 2021", "weights", "random rotations between the two (mean and variance known)",
        composition,
    ),
)  # fmt: skip
"""The detector of composition."""
