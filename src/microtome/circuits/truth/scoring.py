"""How well scores tell true edges from the others: exact over all edges, ties counted as ties."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from microtome.errors import ConfigError, ShapeError

TOLERANCE = 1e-6
"""Share of the largest score within which two scores are a tie: float32 cannot tell them apart."""


@dataclass(frozen=True)
class Separation:
    """How scores separate the true parts from the others.

    Attributes:
        auc: Area under the ROC curve: how often a true part scores above another one.
        average_precision: Area under the precision-recall curve, in steps.
        best_f1: The largest F1 over all thresholds.
        last_rank: How many parts have to be taken until all true ones are among them; ties are
            taken together.
        true: How many parts are true.
        parts: How many parts there are.
    """

    auc: float
    average_precision: float
    best_f1: float
    last_rank: int
    true: int
    parts: int


def separation(universe: Sequence[str], strength: np.ndarray, truth: Collection[str]) -> Separation:
    """Compare scores with a truth.

    Args:
        universe: All parts.
        strength: What they are ranked by ``[part]``, larger is stronger.
        truth: The true parts.

    Raises:
        ShapeError: If there is not one finite number for each part.
        ConfigError: If all parts are true, or none is.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    values = np.asarray(strength, dtype=np.float64)
    if values.shape != (len(universe),) or not np.isfinite(values).all():
        raise ShapeError(
            f"The scores have shape {values.shape}; expected {len(universe)} finite numbers, one "
            "for each part."
        )
    true = np.array([part in truth for part in universe])
    if true.all() or not true.any():
        raise ConfigError(
            f"{int(true.sum())} of {len(true)} parts are true; expected some, and not all."
        )
    largest = float(np.abs(values).max())
    if largest > 0:
        values = np.round(values / (largest * TOLERANCE))
    precision, recall, _ = precision_recall_curve(true, values)
    sums = precision + recall
    f1 = 2 * precision * recall / np.where(sums > 0, sums, 1.0)
    return Separation(
        auc=float(roc_auc_score(true, values)),
        average_precision=float(average_precision_score(true, values)),
        best_f1=float(f1.max()),
        last_rank=int((values >= values[true].min()).sum()),
        true=int(true.sum()),
        parts=len(true),
    )
