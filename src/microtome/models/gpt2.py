"""A GPT-2 module of any size to be filled with weights that were made or trained elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def bare_gpt2(
    *,
    vocab: int,
    context: int,
    width: int,
    layers: int,
    heads: int,
    neurons: int,
    activation: str,
    norm: Callable[[], nn.Module] = nn.Identity,
    **further: Any,
) -> Any:
    """Return a ``GPT2LMHeadModel`` whose weights are zero, in evaluation mode, without dropout.

    Args:
        vocab: Tokens.
        context: Positions.
        width: Size of the residual stream.
        layers: Blocks.
        heads: Heads of each block; they divide the width.
        neurons: Neurons of each MLP.
        activation: Name of their activation function in transformers.
        norm: Makes each norm, the final one included; by default there is none.
        further: Of the configuration.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocab,
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_inner=neurons,
        activation_function=activation,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        **further,
    )
    with torch.random.fork_rng(devices=[]):
        module = GPT2LMHeadModel(config).eval()
    stream = module.transformer
    stream.ln_f = norm()
    for block in stream.h:
        block.ln_1, block.ln_2 = norm(), norm()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module
