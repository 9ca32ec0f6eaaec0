"""The weights of a compiled module as plain arrays: what the truth is computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """One block.

    Attributes:
        query: ``[head, d_model, d_head]``, the softmax's divisor included.
        query_bias: ``[head, d_head]``, likewise.
        key: ``[head, d_model, d_head]``.
        value: ``[head, d_model, d_head]``.
        output: ``[head, d_head, d_model]``.
        reads: ``[neuron, d_model]``.
        biases: ``[neuron]``.
        writes: ``[neuron, d_model]``.
    """

    query: np.ndarray
    query_bias: np.ndarray
    key: np.ndarray
    value: np.ndarray
    output: np.ndarray
    reads: np.ndarray
    biases: np.ndarray
    writes: np.ndarray


@dataclass(frozen=True, eq=False)
class ModuleWeights:
    """A whole compiled module, in float64.

    Attributes:
        token: ``[vocab, d_model]``.
        position: ``[pos, d_model]``.
        blocks: The blocks.
        readout: ``[vocab, d_model]``.
    """

    token: np.ndarray
    position: np.ndarray
    blocks: tuple[BlockWeights, ...]
    readout: np.ndarray

    @staticmethod
    def of(module: Any) -> ModuleWeights:
        """Return the weights of a module that the compiler made."""
        stream = module.transformer
        heads = module.config.n_head
        return ModuleWeights(
            _array(stream.wte.weight),
            _array(stream.wpe.weight),
            tuple(_block(block, heads) for block in stream.h),
            _array(module.lm_head.weight),
        )


def _array(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().double().numpy())


def _block(block: Any, heads: int) -> BlockWeights:
    width = block.attn.c_proj.weight.shape[0]
    size = width // heads
    parts = _array(block.attn.c_attn.weight).reshape(width, 3, heads, size)
    query, key, value = (parts[:, n].transpose(1, 0, 2) for n in range(3))
    bias = _array(block.attn.c_attn.bias)[:width].reshape(heads, size)
    return BlockWeights(
        query / np.sqrt(size),
        bias / np.sqrt(size),
        key,
        value,
        _array(block.attn.c_proj.weight).reshape(heads, size, width),
        _array(block.mlp.c_fc.weight).T,
        _array(block.mlp.c_fc.bias),
        _array(block.mlp.c_proj.weight),
    )
