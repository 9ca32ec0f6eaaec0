"""The models that benchmarks run on: random weights, real shapes."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel

THREADS = 2


def gpt2_small() -> GPT2LMHeadModel:
    """Return a model of GPT-2 small's shape whose patches move the logits."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight.mul_(4)
            for part in (block.attn.c_proj, block.mlp.c_proj, block.mlp.c_fc):
                part.weight.mul_(2)
    return model
