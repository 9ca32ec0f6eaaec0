"""Random gates of edges that can be learned: hard-concrete, and uniform gradient sampling."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch

STRETCH = (-0.1, 1.1)
"""Interval that a hard-concrete gate is stretched to before it is clamped to 0 and 1."""

TEMPERATURE = 2.0 / 3.0
"""Temperature of a hard-concrete gate."""

EVEN = 0.5
"""Share of rows in which a gate that is kept half of the time is drawn uniformly."""


class Gates(ABC):
    """One gate for each edge, drawn anew for each example.

    Args:
        count: Number of edges.
        start: Logit that all gates start from.
        device: Where they live.
    """

    def __init__(self, count: int, start: float, device: torch.device) -> None:
        self.logits = torch.full((count,), start, device=device, requires_grad=True)

    @abstractmethod
    def drawn(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        """Return gates from 0 (ablated) to 1 (kept) ``[row, edge]``, differentiable."""

    @abstractmethod
    def kept(self) -> torch.Tensor:
        """Return how probable it is that each gate is not 0 ``[edge]``, differentiable."""

    def _uniform(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        found = torch.rand(rows, len(self.logits), generator=generator)
        return found.to(self.logits.device)


class HardConcrete(Gates):
    """A stretched, clamped concrete variable (Louizos, Welling and Kingma, 2018)."""

    def drawn(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        """Return gates ``[row, edge]``; gradients pass where a gate is neither 0 nor 1."""
        u = self._uniform(rows, generator).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((u.log() - (1 - u).log() + self.logits) / TEMPERATURE)
        low, high = STRETCH
        return (low + (high - low) * soft).clamp(0.0, 1.0)

    def kept(self) -> torch.Tensor:
        """Return the probability that each gate is not 0 ``[edge]``."""
        low, high = STRETCH
        return torch.sigmoid(self.logits - TEMPERATURE * math.log(-low / high))


class UniformSampling(Gates):
    """Gates that are 0 or 1, and uniform where the gradient is taken (Li and Janson, 2024).

    What keeping an edge gains is the integral of the gradient over its gate from 0 to 1. So in some
    rows the gate is drawn uniformly, and only its gradient there moves the probability of keeping;
    the more certain a gate is, the fewer.
    """

    def drawn(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        """Return gates ``[row, edge]`` whose gradient is an unbiased estimate."""
        kept = self.kept()
        share = (4 * EVEN * kept * (1 - kept)).detach()
        uniform = self._uniform(rows, generator) < share
        hard = self._uniform(rows, generator) < kept.detach()
        gate = torch.where(uniform, self._uniform(rows, generator), hard.float())
        weight = uniform / share.clamp(min=torch.finfo(share.dtype).tiny)
        return gate + weight * (kept - kept.detach())

    def kept(self) -> torch.Tensor:
        """Return the probability of keeping each edge ``[edge]``."""
        return torch.sigmoid(self.logits)
