"""A small GPT-2 whose heads and neurons are written by hand, so that every name is known.

The stream holds the token, the token before (written by ``a0.h1``), the output and the position,
each in coordinates of its own; the last coordinates are read by nothing.
"""

from __future__ import annotations

import math

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from microtome.tracing.model import Model
from microtome.tracing.opening import load

VOCAB, WAVES, WIDTH, HEADS, CONTEXT = 24, 13, 104, 4, 48
SIZE = WIDTH // HEADS
TOKEN = slice(0, VOCAB)
BEFORE = slice(VOCAB, 2 * VOCAB)
OUTPUT = slice(2 * VOCAB, 3 * VOCAB)
PLACE = slice(3 * VOCAB, 3 * VOCAB + 2 * WAVES)
UNREAD = slice(3 * VOCAB + 2 * WAVES, WIDTH)


def planted() -> Model:
    """Previous token a0.h1, duplicate a0.h2, induction a1.h2, negative copying a1.h3; neurons too:
    m0.n0 fires on token 3, m0.n1 follows the position, m0.n2 is dead, m1.n5 moves only the norm.
    """
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=CONTEXT, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_inner=16,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0, initializer_range=0.01,
    )  # fmt: skip
    module = GPT2LMHeadModel(config).eval()
    # opened while random: columns are told apart by value, and the written ones are alike
    model = load(module)
    with torch.no_grad():
        _stream(module)
        turn = _rotation()
        one, eye = torch.eye(VOCAB), 40 * torch.eye(VOCAB)
        _head(module, 0, 1, q=(PLACE, 6 * turn), k=(PLACE, torch.eye(2 * WAVES)), v=TOKEN,
              o=(BEFORE, 3 * one))  # fmt: skip
        _head(module, 0, 2, q=(TOKEN, eye), k=(TOKEN, one), v=None, o=None)
        _head(module, 1, 2, q=(TOKEN, eye), k=(BEFORE, one), v=TOKEN, o=(OUTPUT, 3 * one))
        _head(module, 1, 3, q=None, k=None, v=TOKEN, o=(OUTPUT, -one))
        _neurons(module)
    return model


def _stream(module: GPT2LMHeadModel) -> None:
    transformer = module.transformer
    transformer.wte.weight.zero_()
    transformer.wte.weight[:, TOKEN] = torch.eye(VOCAB)
    places = torch.arange(CONTEXT)[:, None] * _frequencies()
    transformer.wpe.weight.zero_()
    transformer.wpe.weight[:, PLACE] = torch.stack([places.cos(), places.sin()], -1).flatten(1) / 3
    module.lm_head.weight.zero_()
    module.lm_head.weight[:, OUTPUT] = torch.eye(VOCAB)


def _frequencies() -> torch.Tensor:
    return math.pi * (torch.arange(WAVES) + 0.5) / WAVES


def _rotation() -> torch.Tensor:
    """The matrix that takes a position to the one before it."""
    turn = torch.zeros(2 * WAVES, 2 * WAVES)
    for number, angle in enumerate(-_frequencies()):
        cos, sin = math.cos(angle), math.sin(angle)
        pair = slice(2 * number, 2 * number + 2)
        turn[pair, pair] = torch.tensor([[cos, sin], [-sin, cos]])
    return turn


def _head(module, layer, head, *, q, k, v, o) -> None:
    """Set one head; each of q and k is (coordinates, matrix), v and o move coordinates."""
    attention = module.transformer.h[layer].attn
    for number, port in enumerate((q, k)):
        start = number * WIDTH + head * SIZE
        attention.c_attn.weight[:, start : start + SIZE] = 0
        if port is not None:
            where, matrix = port
            attention.c_attn.weight[where, start : start + matrix.shape[1]] = matrix
    start = 2 * WIDTH + head * SIZE
    attention.c_attn.weight[:, start : start + SIZE] = 0
    attention.c_proj.weight[head * SIZE : (head + 1) * SIZE] = 0
    if v is not None:
        attention.c_attn.weight[v, start : start + VOCAB] = torch.eye(VOCAB)
    if o is not None:
        where, matrix = o
        attention.c_proj.weight[head * SIZE : head * SIZE + VOCAB, where] = matrix


def _neurons(module: GPT2LMHeadModel) -> None:
    for block in module.transformer.h:
        block.mlp.c_proj.weight.zero_()
    first, second = (block.mlp for block in module.transformer.h)
    first.c_fc.weight[:, :3] = 0
    first.c_fc.weight[3, 0] = 4
    first.c_fc.weight[PLACE.start, 1] = 4
    first.c_fc.bias[2] = -6
    second.c_fc.weight[:, 5] = 0
    second.c_fc.weight[7, 5] = 4
    second.c_proj.weight[5, UNREAD] = 3
