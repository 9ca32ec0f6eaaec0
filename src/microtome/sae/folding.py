"""Folding of scales into weights, so that a coder takes and gives values as the model has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microtome.errors import ConfigError
from microtome.sae.architecture import Architecture

if TYPE_CHECKING:
    from microtome.sae.coder import SAE
    from microtome.sae.encoding import Weights


@torch.no_grad()
def fold_scales(
    make: Architecture,
    weights: Weights,
    sources: Sequence[float],
    targets: Sequence[float],
    *,
    gain: float = 1.0,
) -> None:
    """Make a coder of scaled values one of unscaled values, in place.

    Before, it maps ``c * x`` to ``d * y``; behind, ``x`` to ``y``, with latents ``gain`` times as
    large. Encoder rows, biases, thresholds, decoder rows and the skip connection change.

    Args:
        make: The coder's make.
        weights: Its weights by name.
        sources: What the values of each source were multiplied by.
        targets: What those of each target were multiplied by.
        gain: Factor of the latents. ``1 / d`` keeps the norms of the decoder's rows.
    """
    reads = _columns(weights["b_dec"], make.sources, sources)
    writes = _columns(weights["b_dec"], make.targets, targets)
    for name in ("W_enc", "W_left", "W_right"):
        if name in weights and make.reach == "all":
            weights[name].mul_(reads * gain)
    if make.reach != "all":
        for factor, latents in zip(sources, make.latent_slices, strict=True):
            weights["W_enc"][latents] *= factor * gain
    for name in ("b_enc", "b_left", "b_right", "b_gate", "b_mag", "threshold"):
        if name in weights:
            weights[name].mul_(gain)
    weights["W_dec"].div_(writes * gain)
    weights["b_dec"].div_(writes)
    if make.skip:
        weights["W_skip"].mul_(reads).div_(writes[:, None])


def fold_scale(coder: SAE, scale: float, *, output_scale: float | None = None) -> None:
    """Fold one scale of all inputs, and one of all targets, into a coder that was read, in place.

    Latents keep their values, so their thresholds stay as they are; see :func:`fold_scales`.

    Args:
        coder: The coder.
        scale: What inputs were multiplied by.
        output_scale: What targets were multiplied by, ``scale`` unless given.

    Raises:
        ConfigError: A scale is not positive, a centered coder is given two different ones, or the
            encoder is the decoder's transpose.
    """
    make = coder.architecture
    out = scale if output_scale is None else output_scale
    if not (scale > 0 and out > 0):
        raise ConfigError(f"scales are {scale} and {out}; expected positive numbers")
    if make.center and out != scale:
        raise ConfigError(
            f"scales are {scale} and {out}; a coder that subtracts its decoder's bias from the "
            "input has one"
        )
    if make.encoder == "tied":
        raise ConfigError("a tied encoder cannot be scaled apart from its decoder; untie it first")
    fold_scales(make, coder.weights, [scale] * len(make.sources), [out] * len(make.targets))


@torch.no_grad()
def unit_decoder(coder: SAE) -> None:
    """Give every decoder row norm 1 and its latent the scale instead, in place.

    The reconstruction stays; which latents are kept stays for activations that look at one latent
    at a time. With ``"topk"`` and ``"abstopk"`` the choice is then by contribution, that is, by
    activation times decoder norm.

    Raises:
        ConfigError: The encoder is not dense, so that its latents have no scale of their own.
    """
    if coder.architecture.encoder != "dense":
        raise ConfigError(
            f"encoder {coder.architecture.encoder!r} has no scale for each latent; only dense "
            "encoders can take the decoder's norms"
        )
    weights = coder.weights
    norms = weights["W_dec"].norm(dim=1).clamp_min(1e-12)
    weights["W_dec"] /= norms[:, None]
    weights["W_enc"] *= norms[:, None]
    for name in ("b_enc", "threshold", "b_gate", "b_mag"):
        if name in weights:
            weights[name] *= norms


def _columns(like: Tensor, widths: Sequence[int], factors: Sequence[float]) -> Tensor:
    """Return one factor for each column of sites side by side."""
    return torch.cat(
        [like.new_full((width,), factor) for width, factor in zip(widths, factors, strict=True)]
    )
