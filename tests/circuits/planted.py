"""A random model in which only some heads and MLPs may write: the truth about it is known."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tests.small import code_model

from microtome.tracing.model import Model


def planted_model(parts: Iterable[str], *, layers: int = 2, seed: int = 0) -> Model:
    """Return the small code model in which every part but the given ones writes nothing."""
    model = code_model(layers=layers, seed=seed)
    kept = set(parts)
    with torch.no_grad():
        for layer, block in enumerate(model.module.transformer.h):
            block.attn.c_proj.bias.zero_()
            for head in range(4):
                if f"a{layer}.h{head}" not in kept:
                    block.attn.c_proj.weight[8 * head : 8 * head + 8].zero_()
            if f"m{layer}" not in kept:
                block.mlp.c_proj.weight.zero_()
                block.mlp.c_proj.bias.zero_()
    return model
