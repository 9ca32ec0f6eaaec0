"""How the tensor at a seam of the model is laid out, and the site's value as a view of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


class Layout(Protocol):
    """Turns the model's tensor into the site's value and back."""

    def view(self, raw: torch.Tensor, batch: int) -> torch.Tensor:
        """Return the site's value."""

    def back(self, value: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        """Return the model's tensor for a new value of the site."""


@dataclass(frozen=True)
class Plain:
    """Batch first, or batch and position flattened into one axis (restored from the batch size)."""

    ndim: int = 3

    def view(self, raw: torch.Tensor, batch: int) -> torch.Tensor:
        """Return ``[batch, pos, ...]``."""
        return raw if raw.ndim == self.ndim else raw.reshape(batch, -1, *raw.shape[1:])

    def back(self, value: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        """Return the value in the shape of the model's tensor."""
        return value if value.shape == raw.shape else value.reshape(raw.shape)


@dataclass(frozen=True)
class HeadsSecond:
    """``[batch, head, pos, d_head]``, as q, k and v reach the attention function."""

    def view(self, raw: torch.Tensor, batch: int) -> torch.Tensor:
        """Return ``[batch, pos, head, d_head]``."""
        return raw.transpose(1, 2)

    def back(self, value: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        """Return ``[batch, head, pos, d_head]``."""
        return value.transpose(1, 2)


@dataclass(frozen=True)
class HeadsJoined:
    """``[batch, pos, head * d_head]``, as z enters the output projection."""

    heads: int

    def view(self, raw: torch.Tensor, batch: int) -> torch.Tensor:
        """Return ``[batch, pos, head, d_head]``."""
        full = raw if raw.ndim == 3 else raw.reshape(batch, -1, raw.shape[-1])
        return full.reshape(*full.shape[:-1], self.heads, -1)

    def back(self, value: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        """Return the heads joined again."""
        return value.flatten(-2).reshape(raw.shape)


@dataclass(frozen=True)
class Half:
    """One half of a fused gate and up projection."""

    first: bool

    def view(self, raw: torch.Tensor, batch: int) -> torch.Tensor:
        """Return the half as ``[batch, pos, neuron]``."""
        half = raw.chunk(2, dim=-1)[0 if self.first else 1]
        return half if half.ndim == 3 else half.reshape(batch, -1, half.shape[-1])

    def back(self, value: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        """Return both halves, this one replaced."""
        one, two = raw.chunk(2, dim=-1)
        value = value.reshape(one.shape)
        return torch.cat([value, two] if self.first else [one, value], dim=-1)


@dataclass(frozen=True)
class Rows:
    """Scores or pattern ``[batch, head, query, key]``, also flattened over batch and head.

    Attributes:
        keys: Number of real keys; columns behind them belong to a sink.
        sink: Whether the value is the sink's columns instead of the keys'.
    """

    keys: int
    sink: bool = False

    def view(self, raw: torch.Tensor, batch: int) -> torch.Tensor:
        """Return ``[batch, head, query, key]``, or the sink's columns."""
        full = raw if raw.ndim == 4 else raw.reshape(batch, -1, *raw.shape[-2:])
        if full.shape[-1] == self.keys and not self.sink:
            return full
        return full[..., self.keys :] if self.sink else full[..., : self.keys]

    def back(self, value: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        """Return the rows with the other columns put back."""
        if raw.shape[-1] > self.keys:
            full = raw if raw.ndim == 4 else raw.reshape(value.shape[0], -1, *raw.shape[-2:])
            real, extra = full[..., : self.keys], full[..., self.keys :]
            value = torch.cat([real, value] if self.sink else [value, extra], dim=-1)
        return value.reshape(raw.shape)
