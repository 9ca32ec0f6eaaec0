"""The twin: the same model with every weight tensor permuted in place, then restored exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from microtome.core.seeds import torch_generator

if TYPE_CHECKING:
    from microtome.tracing.model import Model


@contextlib.contextmanager
def twin(model: Model, seed: int) -> Iterator[Model]:
    """Permute the entries of every parameter by a seed; put the exact weights back on leaving.

    The twin has the same distribution of every weight tensor and none of the mechanism. Tied
    weights stay tied. One copy of the weights is held while the scope is open.

    Args:
        model: The model; its own tensors are changed in place.
        seed: Which permutation.

    Yields:
        The same model object.
    """
    generator = torch_generator(seed, "twin")
    weights = sorted(model.module.named_parameters(), key=lambda item: item[0])
    saved = [(weight, weight.detach().clone()) for _, weight in weights]
    try:
        for weight, values in saved:
            order = torch.randperm(values.numel(), generator=generator).to(values.device)
            _write(weight, values.flatten()[order].reshape(values.shape))
        yield model
    finally:
        for weight, values in saved:
            _write(weight, values)


@torch.no_grad()
def _write(weight: torch.nn.Parameter, values: torch.Tensor) -> None:
    weight.copy_(values)
