"""Small codecs that tests attach: a dense SAE, a TopK SAE, a transcoder with a skip connection."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DenseSAE(nn.Module):
    """``relu(W_enc x + b_enc)`` and ``f W_dec + b_dec``, with random weights."""

    def __init__(self, d_in: int, d_sae: int, *, d_out: int | None = None, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.d_in, self.d_sae, self.d_out = d_in, d_sae, d_out or d_in

        def made(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator) * scale)

        self.w_enc = made(d_in, d_sae, scale=d_in**-0.5)
        self.b_enc = made(d_sae, scale=0.3)
        self.w_dec = made(d_sae, self.d_out, scale=d_sae**-0.5)
        self.b_dec = made(self.d_out, scale=0.1)

    def encode(self, values: Tensor) -> Tensor:
        return torch.relu(values @ self.w_enc + self.b_enc)

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.w_dec + self.b_dec

    def bypass(self, values: Tensor) -> Tensor | None:
        return None


class TopKSAE(DenseSAE):
    """A dense SAE of which only the ``k`` largest latents are kept."""

    k = 4

    def encode(self, values: Tensor) -> Tensor:
        found = super().encode(values)
        kept = found.topk(self.k, dim=-1)
        return torch.zeros_like(found).scatter(-1, kept.indices, kept.values)


class SkipTranscoder(TopKSAE):
    """A TopK transcoder with a skip connection."""

    def __init__(self, d_in: int, d_sae: int, d_out: int, *, seed: int = 0) -> None:
        super().__init__(d_in, d_sae, d_out=d_out, seed=seed)
        generator = torch.Generator().manual_seed(seed + 1)
        self.w_skip = nn.Parameter(torch.randn(d_in, d_out, generator=generator) * d_in**-0.5)

    def bypass(self, values: Tensor) -> Tensor | None:
        return values @ self.w_skip


class Squares(DenseSAE):
    """A codec whose decoded latents do not add up."""

    def decode(self, latents: Tensor) -> Tensor:
        return latents.square() @ self.w_dec + self.b_dec
