"""Looking at a model of short floating-point type in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

SHORT = (torch.bfloat16, torch.float16)

LARGEST = 2_000_000_000
"""Bytes of short-typed weights up to which a second, longer set is held for a moment."""


@contextlib.contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Let a module of short type compute in float32 inside the scope.

    Where parts add up is told from values, which the rounding of short types hides in some models.
    The module's own tensors come back on leaving, also after an error. Weights of more than 2 GB
    stay as they are.

    Args:
        module: The module.
    """
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.dtype in SHORT]
    if sum(t.numel() * t.element_size() for t in tensors) > LARGEST:
        tensors = []
    own = [t.data for t in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, data in zip(tensors, own, strict=True):
            tensor.data = data
