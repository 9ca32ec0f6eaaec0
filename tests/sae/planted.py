"""A model with planted features: what its streams and MLPs compute is known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from microtome.tracing.model import Model
from microtome.tracing.opening import load

WIDTH, FEATURES, TOKENS = 48, 16, 160


@dataclass(frozen=True, eq=False)
class Planted:
    """A model whose tokens are sums of a few features, which both MLPs read and write anew.

    Attributes:
        model: A GPT-2 of two blocks whose attention adds nothing.
        features: Directions that tokens are made of, and MLPs read ``[feature, d_model]``.
        writes: What the MLP of each block writes for each ``[block, feature, d_model]``.
    """

    model: Model
    features: Tensor
    writes: Tensor

    def texts(self, count: int, length: int = 16) -> list[list[int]]:
        """Return random prompts."""
        generator = torch.Generator().manual_seed(3)
        return torch.randint(0, TOKENS, (count, length), generator=generator).tolist()


def planted() -> Planted:
    """Return the model; features are orthogonal to each other and to all that MLPs write."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=TOKENS, n_positions=32, n_embd=WIDTH, n_layer=2, n_head=2, n_inner=FEATURES,
        activation_function="relu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    module = GPT2LMHeadModel(config).eval()
    raw = torch.randn(WIDTH, WIDTH, generator=generator)
    raw[:, 0] = 1.0  # what a norm's centering removes is orthogonal to all that follows
    basis = torch.linalg.qr(raw).Q.T[1:]
    features, spare = basis[:FEATURES], basis[FEATURES:]
    mixed = torch.randn(2, FEATURES, len(spare), generator=generator) @ spare
    writes = mixed / mixed.norm(dim=2, keepdim=True)
    on = torch.rand(TOKENS, FEATURES, generator=generator) < 2.5 / FEATURES
    on[on.sum(1) == 0, 0] = True
    sizes = 1 + 0.5 * torch.rand(TOKENS, FEATURES, generator=generator)
    with torch.no_grad():
        module.transformer.wte.weight.copy_(3 * (on * sizes) @ features)
        module.transformer.wpe.weight.zero_()
        for number, block in enumerate(module.transformer.h):
            for parameter in block.attn.c_proj.parameters():
                parameter.zero_()
            block.mlp.c_fc.weight.copy_(features.T)
            block.mlp.c_fc.bias.fill_(-0.5)
            block.mlp.c_proj.weight.copy_(0.1 * writes[number])
            block.mlp.c_proj.bias.zero_()
    return Planted(load(module), features, writes)
