"""Coders that were not trained: what sparsity alone and coordinates can do."""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.sae.architecture import Architecture
from microtome.sae.coder import SAE
from microtome.sae.encoding import pre_activations

RANDOM_STREAM = "baseline"


@torch.no_grad()
def random_dictionary(
    coder: SAE, k: int, *, mean: Tensor, source_mean: Tensor, seed: int = 0
) -> SAE:
    """Return a coder with random directions of norm 1 that keeps ``k`` latents of a row.

    It reads inputs less their mean and adds the targets' mean, whatever the coder does, so that
    it is no worse than it has to be.

    Args:
        coder: The coder whose widths and sites it shares.
        k: Latents kept.
        mean: Mean of the targets ``[d_out]``, its bias.
        source_mean: Mean of the inputs ``[d_in]``.
        seed: Seed of the directions.
    """
    made = coder.architecture
    make = Architecture(
        made.d_in,
        made.d_sae,
        d_out=made.d_out,
        activation="topk",
        k=min(max(1, k), made.d_sae),
        sources=made.sources,
        targets=made.targets,
        reach=made.reach,
        center=made.center,
    )
    baseline = SAE(make, seed=seed, origin=coder.origin)
    baseline.weights["b_dec"].copy_(mean)
    if not make.center:
        at_mean = pre_activations(make, baseline.weights, source_mean.float()[None])[0]
        baseline.weights["b_enc"].copy_(-at_mean)
    return baseline.to(coder.weights["b_dec"])


@torch.no_grad()
def fit_scale(coder: SAE, inputs: Tensor, targets: Tensor) -> None:
    """Give a coder's decoder the one factor that makes its squared error on rows least, in place.

    Directions that are not orthogonal add up to too much, and those of a transcoder that knows
    nothing had better write nothing: the mean is then what is left.

    Args:
        coder: The coder.
        inputs: ``[row, d_in]``.
        targets: ``[row, d_out]``.
    """
    bias, decoder = coder.weights["b_dec"], coder.weights["W_dec"]
    made = coder.decode(coder.encode(inputs.to(bias))) - bias
    size = float(made.double().square().sum())
    if size > 0:
        factor = float(((targets.to(bias) - bias) * made).double().sum()) / size
        decoder *= max(factor, 0.0)


@torch.no_grad()
def coordinates(coder: SAE, k: int, *, mean: Tensor) -> SAE:
    """Return the coder that keeps the ``k`` coordinates of a row that are farthest from the mean.

    At a site of neurons these are the neurons themselves.

    Args:
        coder: An SAE, whose width and sites it shares.
        k: Coordinates kept.
        mean: Mean of the values ``[d_in]``.
    """
    width = coder.d_in
    make = Architecture(width, width, activation="abstopk", k=min(max(1, k), width), encoder="tied")
    weights = {"W_dec": torch.eye(width), "b_dec": mean.float().clone()}
    weights["b_enc"] = torch.zeros(width)
    return SAE(make, origin=coder.origin, weights=weights).to(coder.weights["b_dec"])
