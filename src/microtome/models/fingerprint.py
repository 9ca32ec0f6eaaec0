"""Hashes of weights and tokenizers, so that results say which model they are about."""

from __future__ import annotations

import hashlib
import json
import weakref
from typing import Any

import torch
from torch import nn

from microtome.core.hashing import sha256_json

SAMPLE = 64
"""Entries of each tensor that are compared before a remembered hash is given again."""

_known: weakref.WeakKeyDictionary[nn.Module, tuple[str, str]] = weakref.WeakKeyDictionary()


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 over names, shapes, types and values of all parameters and buffers.

    It is remembered while every tensor keeps its place in memory, the number of changes that torch
    counts, and a sample of its entries.

    Args:
        module: Any module.

    Returns:
        64 hexadecimal digits.
    """
    tensors = [
        (name, tensor)
        for name, tensor in sorted(module.state_dict(keep_vars=True).items())
        if isinstance(tensor, torch.Tensor)
    ]
    state = _state(tensors)
    known = _known.get(module)
    if known is not None and known[0] == state:
        return known[1]
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(_head(name, tensor))
        digest.update(_bytes(tensor.detach().flatten()))
    found = digest.hexdigest()
    _known[module] = (state, found)
    return found


def _state(tensors: list[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(_head(name, tensor))
        # tensors made in inference mode count no changes
        version = 0 if tensor.is_inference() else tensor._version
        digest.update(f"{tensor.data_ptr()}|{version}|".encode())
        flat = tensor.detach().flatten()
        digest.update(_bytes(flat[:: max(1, flat.numel() // SAMPLE)]))
    return digest.hexdigest()


def _head(name: str, tensor: torch.Tensor) -> bytes:
    return f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode()


def _bytes(flat: torch.Tensor) -> bytes:
    """Return the memory of a flat tensor without copying it on the processor."""
    held = flat.contiguous().cpu()
    return held.view(torch.uint8).numpy().data if held.numel() else b""  # type: ignore[return-value]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return the SHA-256 of how a tokenizer turns text into ids.

    Its settings of padding and truncation do not count: calls change them.

    Args:
        tokenizer: Any tokenizer of transformers, or None.

    Returns:
        64 hexadecimal digits, or an empty text for None.
    """
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return sha256_json([type(tokenizer).__name__, tokenizer.get_vocab()])
    settings = json.loads(backend.to_str())
    return sha256_json({k: v for k, v in settings.items() if k not in ("padding", "truncation")})
