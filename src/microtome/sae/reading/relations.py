"""How latents relate: to one another, to neurons, to the next token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microtome.errors import ConfigError, EmptyDataError, ModelSupportError, SelectorError
from microtome.sae.reading.index import LatentIndex
from microtome.sae.reading.trials import auc

if TYPE_CHECKING:
    from microtome.sae.coder import SAE
    from microtome.tracing.model import Model


_INSIDE = re.compile(r"(.*\.)?(attn|mlp)\.(?!out$).*|final\..*|logits")
"""Sites whose values are not added to the residual stream, even where they are as wide."""


@dataclass(frozen=True, eq=False)
class Relation:
    """Latents or tokens that go with one latent, the strongest first.

    Attributes:
        numbers: Their numbers.
        values: How strongly, by the measure asked for.
    """

    numbers: NDArray[np.int64]
    values: NDArray[np.float64]


def co_occurring(
    index: LatentIndex, latent: int, *, n: int = 10, measure: str = "jaccard"
) -> Relation:
    """Return the latents that are active at the same positions as one.

    Args:
        index: The index.
        latent: Number of the latent.
        n: How many.
        measure: ``"jaccard"``, shared positions over positions of either, or ``"pmi"``, pointwise
            mutual information in nats (of latents that share at least two positions).

    Raises:
        SelectorError: There is no such latent.
        EmptyDataError: It is never active.
        ConfigError: There is no such measure.
    """
    positions, _ = index.require_active(latent)
    rows = index.matrix()[positions].indices
    together = np.bincount(rows, minlength=index.d_sae).astype(np.float64)
    together[latent] = 0
    counts = index.counts.astype(np.float64)
    if measure not in ("jaccard", "pmi"):
        raise ConfigError(f"measure is {measure!r}; expected 'jaccard' or 'pmi'")
    if measure == "pmi":
        expected = counts * len(positions) / max(1, index.n_tokens)
        enough = together >= 2
        scores = np.where(
            enough, np.log(np.where(enough, together, 1) / np.maximum(expected, 1e-12)), 0
        )
    else:
        scores = together / np.maximum(counts + len(positions) - together, 1)
    return _strongest(scores, n)


def neighbors(coder: SAE, latent: int, *, n: int = 10) -> Relation:
    """Return the latents whose decoder directions are most like one's, by cosine.

    Raises:
        SelectorError: There is no such latent.
    """
    return neighbor_table(coder, [latent], n=n)[0]


def neighbor_table(coder: SAE, latents: Sequence[int], *, n: int = 10) -> list[Relation]:
    """Return the neighbors of each of some latents, see :func:`neighbors`.

    Raises:
        SelectorError: There is no such latent.
    """
    for latent in latents:
        _require_latent(coder, latent)
    rows = torch.nn.functional.normalize(coder.weights["W_dec"].detach().double(), dim=1)
    cosine = (rows[list(latents)] @ rows.T).cpu().numpy()
    cosine[np.arange(len(latents)), list(latents)] = 0
    return [_strongest(row, n) for row in cosine]


def logit_effects(model: Model, coder: SAE, latent: int) -> Tensor:
    """Return what one unit of a latent adds to each logit directly ``[vocab]``.

    See :func:`logit_table`.

    Raises:
        ModelSupportError: The model has no unembedding, or the latent does not write to the
            residual stream.
        SelectorError: There is no such latent.
    """
    return logit_table(model, coder, [latent])[0]


@torch.no_grad()
def logit_table(model: Model, coder: SAE, latents: Sequence[int]) -> Tensor:
    """Return what one unit of each of some latents adds to each logit directly ``[row, vocab]``.

    The decoder direction through the weight of the final norm and the unembedding, with the mean
    over tokens taken away; the scale of the final norm, which depends on the input, is left out.

    Raises:
        ModelSupportError: The model has no unembedding, or the coder does not write to the
            residual stream.
        SelectorError: There is no such latent.
    """
    for latent in latents:
        _require_latent(coder, latent)
    weights = model.weights.view(fold_norm=True)
    rows = coder.weights["W_dec"].detach()[list(latents)]
    last = rows[:, coder.architecture.target_slices[-1]]
    for site in coder.origin.targets[-1:]:
        if _INSIDE.fullmatch(site):
            raise ModelSupportError(
                f"the latents write to {site}, which is not the residual stream; logit effects "
                "need a coder of the stream, or of what a block's part adds to it"
            )
    unembedding = weights.W_U
    if unembedding.shape[0] != last.shape[1]:
        raise ModelSupportError(
            f"a latent writes {last.shape[1]} numbers and the residual stream has "
            f"{unembedding.shape[0]}; logit effects need a coder that writes to the stream"
        )
    effects = last.to(unembedding) @ unembedding
    return effects - effects.mean(1, keepdim=True)


def foretells(index: LatentIndex, latent: int, effects: NDArray[np.floating]) -> float:
    """Return whether the tokens that a latent raises are those that come next.

    The area under the ROC curve of telling tokens that follow its activity from those that follow
    elsewhere by what it adds to their logits; 0.5 is chance, NaN where it cannot be told.

    Args:
        index: The index.
        latent: Number of the latent.
        effects: What one unit of it adds to each logit ``[vocab]``, see :func:`logit_effects`.

    Raises:
        SelectorError: There is no such latent.
        EmptyDataError: It is never active.
    """
    positions, values = index.require_active(latent)
    active = np.zeros(len(index.ids), dtype=np.float64)
    active[positions] = np.sign(values)
    inside = np.diff(index.context_ids) == 0
    inside &= ~index.special[:-1] & ~index.special[1:]
    here = active[:-1][inside]
    raised = effects[index.ids[1:][inside]]
    # A negative activation lowers what a positive one raises.
    raised = np.where(here < 0, -raised, raised)
    told = here != 0
    return auc(raised, told) if 0 < told.sum() < len(told) else float("nan")


def correlated(index: LatentIndex, latent: int, other: LatentIndex, *, n: int = 10) -> Relation:
    """Return the latents of another index of the same text that correlate with a latent (Pearson).

    The other index may be of the same coder, or of another one.

    Raises:
        SelectorError: There is no such latent.
        EmptyDataError: It is never active, or the texts differ.
    """
    if len(other.ids) != len(index.ids) or not np.array_equal(other.ids, index.ids):
        raise EmptyDataError("the two indexes are of different texts; index the same text twice")
    positions, values = index.require_active(latent)
    n_tokens = max(1, index.n_tokens)
    mean = values.sum(dtype=np.float64) / n_tokens
    square = np.square(values, dtype=np.float64).sum() / n_tokens
    spread = np.sqrt(_variance(np.asarray(square), np.asarray(mean)))
    products = other.matrix()[positions].T @ values.astype(np.float64)
    sums, squares = other.sums
    variance = _variance(squares / n_tokens, sums / n_tokens)
    covariance = products / n_tokens - mean * sums / n_tokens
    scale = np.sqrt(variance) * spread
    scores = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
    if other.details.get("coder") == index.details.get("coder"):
        scores[latent] = 0
    return _strongest(scores, n)


def cosines(index: LatentIndex, latent: int, others: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the cosines of a latent's activations with those of others ``[other]``.

    Raises:
        SelectorError: There is no such latent.
        EmptyDataError: It is never active.
    """
    positions, values = index.require_active(latent)
    products = index.matrix()[positions].T @ values.astype(np.float64)
    sizes = np.sqrt(index.sums[1])
    scale = sizes[others] * sizes[latent]
    found: NDArray[np.float64] = np.zeros(len(others))
    np.divide(products[others], scale, out=found, where=scale > 0)
    return found


def _require_latent(coder: SAE, latent: int) -> None:
    if not 0 <= latent < coder.d_sae:
        raise SelectorError(f"there is no latent {latent}; there are {coder.d_sae} from 0")


def _variance(square: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return variances, 0 where nothing but the rounding of float32 values is left of one."""
    found = square - mean**2
    return np.where(found > 1e-10 * square, found, 0)


def _strongest(scores: NDArray[np.float64], n: int) -> Relation:
    order = np.argsort(-scores, kind="stable")[:n]
    order = order[scores[order] > 0]
    return Relation(order.astype(np.int64), scores[order])
