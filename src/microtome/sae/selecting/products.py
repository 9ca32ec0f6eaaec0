"""The products of a batch with the encoder, block by block: exact ones, and estimates of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.sae.architecture import COUNTED, Architecture
from microtome.sae.encoding import Weights, pre_activations
from microtome.sae.kernels import Entries, dot
from microtome.sae.selecting.estimation import ByteProduct, Estimate, Precision, estimator

BLOCK_ROWS = 512
"""Rows whose pre-activations are formed at a time."""

ESTIMATED_ROWS, ESTIMATED_WEIGHTS = 512, 2**18
"""Rows of a batch and entries of an encoder below which estimates take longer than they save."""

Buffers = dict[str, Tensor]
"""Memory by name that is used again from batch to batch."""


def room(buffers: Buffers, name: str, shape: tuple[int, int], like: Tensor) -> Tensor:
    """Return rows of memory of a name, of another's type and device; their values are any."""
    kept = buffers.get(name)
    fits = kept is not None and kept.dtype == like.dtype and kept.device == like.device
    if kept is None or not fits or kept.shape[1:] != shape[1:] or len(kept) < shape[0]:
        kept = buffers[name] = like.new_empty(shape)
    return kept[: shape[0]]


@dataclass(frozen=True, eq=False)
class Encoding:
    """The products of a batch with the encoder.

    Attributes:
        make: The coder's make.
        weights: Its weights.
        inputs: ``[row, d_in]``, centered where there is one matrix for all.
        encoder: That matrix ``[d_sae, d_in]``; empty where there is none.
        bias: Its bias.
        buffers: Memory for the blocks.
        estimate: What estimates the products, None to form them exactly.
    """

    make: Architecture
    weights: Weights
    inputs: Tensor
    encoder: Tensor
    bias: Tensor
    buffers: Buffers
    estimate: Estimate | None

    @staticmethod
    def of(
        make: Architecture,
        weights: Weights,
        inputs: Tensor,
        precision: Precision,
        buffers: Buffers,
    ) -> Encoding:
        """Return the products of a batch, estimated where that is asked for and pays."""
        encoder = weights["W_dec"] if make.encoder == "tied" else weights.get("W_enc")
        if encoder is None or make.reach != "all":
            none = inputs.new_empty(0)
            return Encoding(make, weights, inputs, none, none, buffers, None)
        centered = inputs - weights["b_dec"] if make.center else inputs
        bias = weights["b_gate" if make.activation == "gated" else "b_enc"]
        pays = (
            precision != "float32"
            and make.activation in COUNTED
            and encoder.dtype == torch.float32
            and len(inputs) >= ESTIMATED_ROWS
            and encoder.numel() >= ESTIMATED_WEIGHTS
        )
        estimate = estimator(precision, encoder, bias) if pays else None
        return Encoding(make, weights, centered, encoder, bias, buffers, estimate)

    @property
    def estimated(self) -> bool:
        """Whether the blocks are estimates."""
        return self.estimate is not None

    @property
    def in_bytes(self) -> ByteProduct | None:
        """What gives estimates as bytes, None where nothing does."""
        return self.estimate if isinstance(self.estimate, ByteProduct) else None

    def blocks(self) -> Iterator[Tensor]:
        """Yield pre-activations ``[row, d_sae]``; the next block may overwrite them."""
        parts = self.inputs.split(BLOCK_ROWS)
        if not len(self.encoder):
            for rows in parts:
                pre = pre_activations(self.make, self.weights, rows)
                yield pre + self.weights["b_gate"] if self.make.activation == "gated" else pre
        elif self.estimate is not None:
            yield from map(self.estimate, parts)
        else:
            for rows in parts:
                yield self.exact_rows(rows)

    def exact_rows(self, rows: Tensor) -> Tensor:
        """Return the exact pre-activations of a block of inputs; the next may overwrite them."""
        out = room(self.buffers, "pre", (len(rows), self.make.d_sae), rows)
        return torch.addmm(self.bias, rows, self.encoder.T, out=out)

    def exact(self, entries: Entries) -> Tensor:
        """Return the exact pre-activations of some entries."""
        return dot(self.inputs, self.encoder, entries) + self.bias[entries.latents]
