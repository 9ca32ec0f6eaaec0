"""The divisor of a normalization: what a value is divided by before the weight is applied."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from microtome.tracing.call import Call, Point
from microtome.tracing.layouts import Plain


def centers(norm: nn.Module, width: int | None = None) -> bool:
    """Return whether a norm subtracts the mean (LayerNorm) or not (RMSNorm), found by trying.

    Args:
        norm: The norm.
        width: Size of its input, where it has no weight that tells.
    """
    if isinstance(norm, nn.LayerNorm):
        return True
    weight = getattr(norm, "weight", None)
    size = weight.shape[-1] if isinstance(weight, torch.Tensor) else width
    if size is None:
        return False
    probe = _probe(norm, size)
    with torch.no_grad():
        # forward, not call: hooks may be on the norm
        moved = norm.forward(probe + 5.0) - norm.forward(probe)
    return float(moved.abs().max()) < 0.05


def divides(norm: nn.Module, width: int) -> bool:
    """Return whether a module divides by the size of its input, as every norm does.

    What stands in a norm's place need not: models without norms often keep an identity there.

    Args:
        norm: The module.
        width: Size of its input, where it has no weight that tells.
    """
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        return True
    weight = getattr(norm, "weight", None)
    probe = _probe(norm, weight.shape[-1] if isinstance(weight, torch.Tensor) else width)
    with torch.no_grad():
        none, once, fourfold = (norm.forward(factor * probe) for factor in (0.0, 1.0, 4.0))
    # a norm gives the same for both, a linear map three times the input's share more
    return float((fourfold - once).abs().max()) < 1.5 * float((once - none).abs().max())


def _probe(norm: nn.Module, size: int) -> torch.Tensor:
    """Return an input of a norm that is neither centered nor of unit size ``[1, size]``."""
    weight = getattr(norm, "weight", None)
    like = weight if isinstance(weight, torch.Tensor) else torch.zeros(1)
    return torch.linspace(-2.0, 1.0, size, device=like.device, dtype=like.dtype).unsqueeze(0)


def epsilon(norm: nn.Module) -> float:
    """Return the small number a norm adds to the variance."""
    for name in ("eps", "variance_epsilon", "epsilon", "layer_norm_eps"):
        value = getattr(norm, name, None)
        if isinstance(value, float):
            return value
    return 1e-5


def divisor(norm: nn.Module, value: torch.Tensor) -> torch.Tensor:
    """Return the divisor ``[batch, pos, 1]`` of a norm for its input, in float32.

    It is 1 for a module in a norm's place that does not divide.
    """
    x = value.float()
    if not divides(norm, x.shape[-1]):
        return torch.ones_like(x[..., :1])
    if centers(norm, x.shape[-1]):
        x = x - x.mean(-1, keepdim=True)
    return (x.pow(2).mean(-1, keepdim=True) + epsilon(norm)).sqrt()


def norm_scale(point: Point, norm: nn.Module) -> Callable[[Call, torch.Tensor], torch.Tensor]:
    """Return a hook body that captures a norm's divisor and leaves its input alone."""

    def run(call: Call, raw: torch.Tensor) -> torch.Tensor:
        call.through(point, divisor(norm, raw), Plain())
        return raw

    return run
