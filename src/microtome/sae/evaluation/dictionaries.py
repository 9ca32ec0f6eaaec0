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
    units = torch.nn.functional.normalize(dictionary.detach().double(), dim=1)
    wanted = torch.nn.functional.normalize(truth.detach().double().to(units.device), dim=1)
    best = torch.full((len(wanted),), -1.0, dtype=torch.float64, device=units.device)
    for part in units.split(BLOCK):
        best = torch.maximum(best, (wanted @ part.T).amax(1))
    return Agreement(float(best.mean()), float((best > at).double().mean()), at, len(wanted))
