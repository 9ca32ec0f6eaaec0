"""Shuffles of a head's own attention: what its pattern gives where nothing links it to the target.

All give excess attention: the mass on the target beyond chance, as a share of what chance leaves,
``(mass - chance) / (1 - chance)``. Chance is the mean of the shuffles, so that a short context or a
small vocabulary earns nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from microtome.circuits.taxonomy.detector import Scores
from microtome.circuits.taxonomy.material import Reading, head_name
from microtome.core.seeds import rng

DRAWS = 200
"""Shuffles drawn where no exact null is known."""

SEEN = 4
"""Keys a query must see, so that shuffling them can change something."""

QUERIES = 8
"""Queries with a target in sight that a row set must have."""


@dataclass(frozen=True, eq=False)
class LayerScore:
    """Excess attention of the heads of one layer, and its shuffles in the same unit ``[head]``."""

    score: np.ndarray
    sd: np.ndarray
    p: np.ndarray


def key_shuffle(reading: Reading, layer: int, target: torch.Tensor) -> LayerScore | None:
    """Score attention on fixed key positions against shuffles of each query's visible keys.

    The mean and variance over all shuffles are known in closed form (sampling without
    replacement), so none is drawn.

    Args:
        reading: The reading.
        layer: The layer.
        target: Which keys count ``[query, key]``.

    Returns:
        The scores, None where too few queries see a target.
    """
    pattern, visible = reading.patterns[layer], reading.visible(layer)
    aimed = target & visible
    seen, wanted = visible.sum(1), aimed.sum(1)
    queries = (seen >= SEEN) & (wanted > 0) & (wanted < seen)
    if int(queries.sum()) < 2:
        return None
    pattern = pattern[:, :, queries].double()
    seen, wanted = seen[queries].double(), wanted[queries].double()
    mass = (pattern * aimed[queries]).sum(-1)
    kept = pattern * visible[queries]
    mean = kept.sum(-1) / seen
    variance = (kept.square().sum(-1) / seen - mean.square()).clamp(min=0)
    spread = wanted * (seen - wanted) / (seen - 1) * variance
    count = mass.shape[0] * mass.shape[2]
    found, chance = mass.mean((0, 2)), (wanted * mean).mean((0, 2))
    sd = spread.sum((0, 2)).sqrt() / count
    return _excess(found.numpy(), chance.numpy(), sd.numpy())


def best_offset(reading: Reading, layer: int) -> tuple[LayerScore, np.ndarray] | None:
    """Score attention at each head's best offset other than 1, as :func:`key_shuffle` does.

    The p value is multiplied with the number of offsets that were tried.

    Returns:
        The scores and the offsets ``[head]``, None where too few queries see a key.
    """
    pattern, visible = reading.patterns[layer].double(), reading.visible(layer)
    seen = visible.sum(1)
    kept = pattern * visible
    mean = kept.sum(-1) / seen
    variance = (kept.square().sum(-1) / seen - mean.square()).clamp(min=0)
    rows, length = pattern.shape[0], pattern.shape[2]
    scored, offsets = [], []
    for offset in range(length // 2):
        queries = (torch.diagonal(visible, -offset) & (seen[offset:] >= SEEN)).nonzero()[:, 0]
        if offset == 1 or len(queries) < 2:
            continue
        found = torch.diagonal(pattern, -offset, 2, 3)[:, :, queries].mean((0, 2))
        places = queries + offset
        chance = mean[:, :, places].mean((0, 2))
        sd = variance[:, :, places].sum((0, 2)).sqrt() / (rows * len(queries))
        scored.append(_excess(found.numpy(), chance.numpy(), sd.numpy()))
        offsets.append(offset)
    if not scored:
        return None
    best = np.stack([s.score for s in scored]).argmax(0)
    heads = np.arange(len(best))
    score, sd, p = (
        np.stack([getattr(s, name) for s in scored])[best, heads] for name in ("score", "sd", "p")
    )
    return LayerScore(score, sd, np.minimum(1.0, p * len(scored))), np.array(offsets)[best]


def row_exchange(
    reading: Reading, layer: int, targets: torch.Tensor, groups: np.ndarray, seed: int
) -> LayerScore | None:
    """Score attention on targets that tokens define against the targets of other rows.

    A row's pattern is held against another row's targets: they lie as far from their queries as
    that row's tokens say, so the head's habits of distance and position are kept and only the link
    with its own row's tokens is broken.

    Args:
        reading: The reading.
        layer: The layer.
        targets: Which keys count ``[row, query, key]``.
        groups: Rows of one group never stand in for each other ``[row]``.
        seed: Seed of the exchanges.
    """
    pattern, visible = reading.patterns[layer], reading.visible(layer)
    seen = visible.sum(1) >= SEEN
    aimed = targets & visible & seen[:, None]
    asked = aimed.any(-1)
    counts = asked.sum(1)
    usable = (counts > 0).numpy()
    if int(counts.sum()) < QUERIES or usable.sum() < 2:
        return None
    rows = np.flatnonzero(usable)
    weights = aimed[rows].float() / counts[rows, None, None].float()
    crossed = torch.einsum("bhqk,cqk->hbc", pattern[rows], weights).double().numpy()
    partners = [np.flatnonzero(groups[rows] != groups[row]) for row in rows]
    if any(len(p) == 0 for p in partners):
        return None
    stream = rng(seed, "row exchange", str(layer))
    drawn = np.stack([stream.choice(p, DRAWS) for p in partners])
    own = crossed[:, np.arange(len(rows)), np.arange(len(rows))].mean(1)
    others = crossed[:, np.arange(len(rows))[:, None], drawn].mean(1)
    return _excess(own, others.mean(1), others.std(1, ddof=1), df=DRAWS - 1)


def _excess(
    found: np.ndarray, chance: np.ndarray, sd: np.ndarray, *, df: float = np.inf
) -> LayerScore:
    left = np.maximum(1 - chance, 1e-6)
    score, sd = (found - chance) / left, np.maximum(sd / left, 1e-6)
    return LayerScore(score, sd, stats.t.sf(score / sd, df))


def of_layers(
    reading: Reading,
    heads: tuple[tuple[int, int], ...],
    score: Callable[[int], LayerScore | None],
    *,
    details: dict[str, str] | None = None,
    allowed: dict[str, bool] | None = None,
) -> Scores:
    """Gather the scores of all layers that show patterns.

    Args:
        reading: What was read.
        heads: Layer and number of every head of the model.
        score: From a layer to its scores, None where no target is in sight.
        details: What is worth saying, by head.
        allowed: Whether a further condition holds, by head.
    """
    found = {layer: score(layer) for layer in reading.patterns}
    left_out = list(reading.left_out)
    left_out += [f"block {n}: no target in sight of its heads" for n, s in found.items() if not s]
    kept = [(n, h, s) for n, h in heads if (s := found.get(n)) is not None]
    parts = tuple(head_name(n, h) for n, h, _ in kept)
    return Scores(
        parts,
        np.array([s.score[h] for _, h, s in kept]),
        np.zeros(len(kept)),
        np.array([s.sd[h] for _, h, s in kept]),
        np.array([s.p[h] for _, h, s in kept]),
        np.array([(allowed or {}).get(p, True) for p in parts], dtype=bool),
        details or {},
        tuple(left_out),
    )
