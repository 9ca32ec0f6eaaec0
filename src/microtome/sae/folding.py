"""Folding of scales into weights, so that a coder takes and gives values as the model has them."""

from __future__ import annotations

import torch

from microtome.errors import ConfigError
from microtome.sae.coder import SAE


@torch.no_grad()
def fold_scale(coder: SAE, scale: float, *, output_scale: float | None = None) -> None:
    """Make a coder of scaled values one of unscaled values, in place.

    Before, it maps ``scale * x`` to ``output_scale * y``; behind, ``x`` to ``y``. Latents keep
    their values, so their thresholds stay as they are; encoder rows, both biases, decoder rows and
    the skip connection change.

    Args:
        coder: The coder.
        scale: What inputs were multiplied by.
        output_scale: What targets were multiplied by, ``scale`` unless given.

    Raises:
        ConfigError: A scale is not positive, a centered coder is given two different ones, or the
            encoder is the decoder's transpose.
    """
    out = scale if output_scale is None else output_scale
    if not (scale > 0 and out > 0):
        raise ConfigError(f"scales are {scale} and {out}; expected positive numbers")
    if coder.architecture.center and out != scale:
        raise ConfigError(
            f"scales are {scale} and {out}; a coder that subtracts its decoder's bias from the "
            "input has one"
        )
    if coder.architecture.encoder == "tied":
        raise ConfigError("a tied encoder cannot be scaled apart from its decoder; untie it first")
    weights = coder.weights
    for name in ("W_enc", "W_left", "W_right"):
        if name in weights:
            weights[name] *= scale
    weights["W_dec"] /= out
    weights["b_dec"] /= out
    if "W_skip" in weights:
        weights["W_skip"] *= scale / out


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
