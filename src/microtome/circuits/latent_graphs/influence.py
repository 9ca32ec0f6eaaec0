"""How much of the output passes through each node of an attribution graph.

What enters a node is shared out by magnitude, ``N[t, s] = |A[t, s]| / sum_s |A[t, s]|``; the
influence of all nodes on the targets is ``(I - N)^-1 - I``, which ends after as many steps as there
are blocks because no path comes back (Ameisen et al., 2025).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def shares(effects: NDArray[np.floating]) -> Floats:
    """Return each direct effect as a share of what enters its target, by magnitude.

    Args:
        effects: Direct effects ``[target, source]``; a row of zeros stays one.
    """
    size = np.abs(effects, dtype=np.float64)
    total = size.sum(1, keepdims=True)
    found: Floats = np.divide(size, total, out=np.zeros_like(size), where=total > 0)
    return found


def influences(shared: Floats, targets: NDArray[np.int64], weights: Floats) -> Floats:
    """Return the influence of each source on weighted targets ``[source]``, over all paths.

    Args:
        shared: Shares ``[target, source]``.
        targets: Number of the source that each target is, -1 for one that is none (a logit).
        weights: Weight of each target ``[target]``; 0 for all but the logits.
    """
    found = np.zeros(shared.shape[1])
    inner = targets >= 0
    onward = weights.astype(np.float64)
    for _ in range(len(targets) + 1):
        step = onward @ shared
        if not step.any():
            break
        found += step
        onward = np.where(inner, step[targets], 0.0)
    return found


def smallest_set(values: Floats, share: float) -> NDArray[np.bool_]:
    """Return the fewest entries whose sum reaches a share of that of all, as a mask.

    Args:
        values: Numbers of 0 or more, of any shape.
        share: The share, from 0 to 1.
    """
    flat = values.ravel()
    order = np.argsort(-flat, kind="stable")
    reached = np.cumsum(flat[order])
    kept = np.zeros(len(flat), dtype=bool)
    if len(flat) and reached[-1] > 0:
        # the slack keeps rounding of the sum from asking for one more
        count = int(np.searchsorted(reached, share * reached[-1] * (1 - 1e-12))) + 1
        kept[order[:count]] = True
    return (kept & (flat > 0)).reshape(values.shape)


def replacement_score(
    influence: Floats, tokens: NDArray[np.bool_], lost: NDArray[np.bool_]
) -> float:
    """Return which share of the influence that ends somewhere ends in tokens, not in errors.

    Args:
        influence: Influence of each source.
        tokens: Which sources are token embeddings.
        lost: Which sources are errors, or latents whose inputs were not followed.
    """
    good, bad = influence[tokens].sum(), influence[lost].sum()
    return float(good / (good + bad)) if good + bad > 0 else float("nan")


def completeness_score(shared: Floats, output: Floats, lost: NDArray[np.bool_]) -> float:
    """Return the share of what enters the targets that is no error, weighted by their influence.

    Args:
        shared: Shares ``[target, source]``.
        output: Influence of each target, its weight as an output included ``[target]``.
        lost: Which sources are errors, or latents whose inputs were not followed.
    """
    entered = shared.sum(1) > 0
    total = output[entered].sum()
    good = (1.0 - shared[:, lost].sum(1))[entered] @ output[entered]
    return float(good / total) if total > 0 else float("nan")
