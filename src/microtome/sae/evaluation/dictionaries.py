"""Comparing dictionaries: with a known truth, and with one another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import ShapeError
from microtome.store.results import Result

BLOCK = 2048
"""Directions compared at a time."""


@dataclass(frozen=True, eq=False)
class Agreement(Result, schema="sae-agreement"):
    """How well a dictionary holds the directions of another.

    Attributes:
        mmcs: Mean over the other's directions of the largest cosine in the dictionary (mean max
            cosine similarity, Sharkey et al., 2022).
        recall: Share of them with a cosine above ``at``.
        at: That cosine.
        n: Number of directions looked for.
    """

    mmcs: float
    recall: float
    at: float
    n: int


@torch.no_grad()
def agreement(dictionary: Tensor, truth: Tensor, *, at: float = 0.9) -> Agreement:
    """Measure how well the rows of a dictionary cover other directions.

    With the true features of synthetic data it is recovery; with the decoder of another seed,
    stability (measure it both ways: it is not symmetric).

    Args:
        dictionary: Directions that are there ``[latent, d]``.
        truth: Directions looked for ``[feature, d]``.
        at: Cosine above which a direction counts as found.

    Raises:
        ShapeError: The widths differ, one is empty, or a value is not finite.
    """
    for name, value in (("dictionary", dictionary), ("truth", truth)):
        if value.dim() != 2 or not value.numel() or not bool(torch.isfinite(value).all()):
            raise ShapeError(
                f"{name} of shape {tuple(value.shape)}; expected finite directions, one a row"
            )
    if dictionary.shape[1] != truth.shape[1]:
        raise ShapeError(
            f"directions of width {dictionary.shape[1]} and {truth.shape[1]}; expected one width"
        )
    best, _ = best_matches(truth.detach().double().to(dictionary.device), dictionary.double())
    return Agreement(float(best.mean()), float((best > at).double().mean()), at, len(truth))


@torch.no_grad()
def best_matches(wanted: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each direction, the largest cosine in a dictionary and the row that has it.

    Args:
        wanted: Directions looked for ``[feature, d]``.
        dictionary: Directions that are there ``[latent, d]``, on the same device.

    Returns:
        Cosines ``[feature]`` in float64, and numbers of the dictionary's rows ``[feature]``.
    """
    normalize = torch.nn.functional.normalize
    units, sought = normalize(dictionary.detach(), dim=1), normalize(wanted.detach(), dim=1)
    best = torch.full((len(sought),), -2.0, dtype=torch.float64, device=sought.device)
    which = torch.zeros(len(sought), dtype=torch.int64, device=sought.device)
    for start in range(0, len(units), BLOCK):
        cosine, number = (sought @ units[start : start + BLOCK].T).double().max(1)
        better = cosine > best
        best = torch.where(better, cosine, best)
        which = torch.where(better, number + start, which)
    return best, which
