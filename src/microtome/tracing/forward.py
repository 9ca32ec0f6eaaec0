"""Calling the module: the arguments it accepts and the logits it returns."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import nn

from microtome.errors import PromptError
from microtome.models.anatomy import Anatomy
from microtome.models.discovery import logits_of
from microtome.models.readout import Readout
from microtome.tracing.prompts import Batch


@functools.lru_cache(maxsize=256)
def _accepted(kind: Any) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)


def accepts(module: nn.Module, name: str) -> bool:
    """Return whether a module's forward has a parameter of this name."""
    kind: Any = type(module)
    return name in _accepted(kind)


def is_text_batch(module: nn.Module, anatomy: Anatomy | None) -> bool:
    """Return whether the module takes token ids rather than any other tensor."""
    return anatomy is not None


def plain_batch(inputs: Any, device: torch.device) -> Batch:
    """Return the input tensor of a module that is not a transformer.

    Raises:
        PromptError: If it is not a tensor with a batch axis, or holds NaN.
    """
    if not isinstance(inputs, torch.Tensor) or inputs.ndim < 1:
        raise PromptError(
            f"This module takes an input tensor with a batch axis; got {type(inputs).__name__}."
        )
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        raise PromptError("The input tensor holds NaN or infinity.")
    width = inputs.shape[1] if inputs.ndim > 1 else 1
    return Batch(inputs.to(device), (int(width),) * int(inputs.shape[0]))


def forward_arguments(
    module: nn.Module,
    anatomy: Anatomy | None,
    batch: Batch,
    logits: str | None,
    readout: Readout,
) -> dict[str, Any]:
    """Return the keyword arguments of one forward pass without a cache.

    The mask is passed only where there is padding, so that an unpadded call is the plain one.
    """
    arguments: dict[str, Any] = {}
    if anatomy is None:
        return arguments
    if accepts(module, "use_cache"):
        arguments["use_cache"] = False
    if batch.padded and accepts(module, "attention_mask"):
        arguments["attention_mask"] = batch.mask.long()
    if logits == "last" and not batch.padded and accepts(module, "logits_to_keep"):
        # as an index: families that share keys run their last blocks on fewer tokens for a number
        read = readout.positions(batch.lengths[:1])
        arguments["logits_to_keep"] = read.to(batch.tokens.device)
    return arguments


def kept_logits(
    output: Any, batch: Batch, logits: str | None, readout: Readout
) -> torch.Tensor | None:
    """Return the logits asked for: all, or ``[batch, 1, vocab]`` where answers are read."""
    if logits is None:
        return None
    found = logits_of(output)
    if logits == "all" or found.ndim < 3 or found.shape[1] == 1:
        return found
    rows = torch.arange(found.shape[0], device=found.device)
    return found[rows, readout.positions(batch.lengths).to(found.device)].unsqueeze(1)
