"""Norms whose divisor is held fixed: linear in the stream, with the value of the real norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from microtome.circuits.edges.reading import Norm, Reading
from microtome.tracing.norms import centers, divisor
from microtome.tracing.weights import norm_gain

if TYPE_CHECKING:
    from microtome.circuits.graph import ComponentGraph


class HeldReading(Reading):
    """How targets read the stream, with the divisor of every norm held at its value."""

    @staticmethod
    def like(reading: Reading) -> HeldReading:
        """Return the same reading with held norms."""
        graph: ComponentGraph = reading.graph
        return HeldReading(reading.model, graph, reading.stages)

    def norm(self, path: str) -> Norm:
        """Return a norm whose gradient is that of a linear map; the identity for ``""``."""
        if not path:
            return super().norm(path)
        norm = self.module(path)
        linear = HeldNorm(norm)

        def held(value: torch.Tensor) -> torch.Tensor:
            return linear.at(value, norm.forward(value))

        return held


class HeldNorm:
    """The linear part of a norm: centering where it centers, a fixed divisor, the gain.

    Args:
        norm: A LayerNorm or RMSNorm.
    """

    def __init__(self, norm: nn.Module) -> None:
        self._norm = norm
        weight = getattr(norm, "weight", None)
        self._gain = norm_gain(norm) if isinstance(weight, torch.Tensor) else torch.ones(())

    def part(self, value: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
        """Return what a part of a stream gives behind the norm, the bias not counted.

        Args:
            value: The part ``[..., pos, d]``.
            stream: The whole stream, which sets the divisor ``[..., pos, d]``.
        """
        scale = divisor(self._norm, stream).detach()
        centered = value
        if centers(self._norm, value.shape[-1]):
            centered = value - value.mean(-1, keepdim=True)
        gain = self._gain.detach().to(value)
        return centered / scale.to(value) * gain

    def at(self, stream: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
        """Return the norm's own output with the gradient of the linear map."""
        linear = self.part(stream, stream)
        return normed.detach() + linear - linear.detach()
