"""Examples of a latent: where it is most active, and where it is active by quantile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from microtome.core.seeds import rng
from microtome.errors import ConfigError
from microtome.sae.reading.index import Activity, LatentIndex


@dataclass(frozen=True, eq=False)
class Example:
    """A stretch of text around one activation.

    Attributes:
        tokens: Text of each token.
        values: Activation of the latent at each of them, 0 where it is not active.
        focus: Which of them the example is about.
        position: Its position in the index.
        document: Number of its document.
        quantile: Bin of the activation, from 0 (weakest) up; None for the largest ones.
    """

    tokens: tuple[str, ...]
    values: NDArray[np.float32]
    focus: int
    position: int
    document: int
    quantile: int | None = None

    @property
    def activation(self) -> float:
        """Activation at the focus."""
        return float(self.values[self.focus])

    def __str__(self) -> str:
        """Return the text with the focus in brackets."""
        parts = [f"[[{t}]]" if i == self.focus else t for i, t in enumerate(self.tokens)]
        return "".join(parts)


def top_examples(
    index: LatentIndex, latent: int, *, n: int = 20, before: int = 20, after: int = 8
) -> list[Example]:
    """Return the strongest activations of a latent, at most one of each context.

    Args:
        index: The index.
        latent: Number of the latent.
        n: How many.
        before: Tokens shown before each.
        after: Tokens shown behind each.

    Raises:
        SelectorError: There is no such latent.
        EmptyDataError: It is never active.
        ConfigError: A number is out of range.
    """
    if n < 1:
        raise ConfigError(f"n={n}; expected 1 or more")
    positions, values = index.require_active(latent)
    order = np.argsort(-np.abs(values), kind="stable")
    contexts = index.context_of(positions)
    _, first = np.unique(contexts[order], return_index=True)
    chosen = order[np.sort(first)[:n]]
    return [stretch(index, latent, int(positions[i]), before, after) for i in chosen]


def quantile_examples(
    index: LatentIndex,
    latent: int,
    *,
    bins: int = 5,
    per_bin: int = 5,
    before: int = 20,
    after: int = 8,
    seed: int = 0,
) -> list[Example]:
    """Return activations drawn from equal bins of a latent's own range, weakest bin first.

    Raises:
        SelectorError: There is no such latent.
        EmptyDataError: It is never active.
        ConfigError: There is no bin.
    """
    if bins < 1 or per_bin < 1:
        raise ConfigError(f"bins={bins}, per_bin={per_bin}; expected 1 or more")
    stream = rng(seed, "quantile examples", str(latent))
    drawn = quantiles(index, index.require_active(latent), bins, per_bin, stream)
    return [stretch(index, latent, position, before, after, number) for position, number in drawn]


def quantiles(
    index: LatentIndex, activity: Activity, bins: int, per_bin: int, stream: np.random.Generator
) -> list[tuple[int, int]]:
    """Return positions drawn from equal bins of a range of activations, each with its bin."""
    positions, values = activity
    if not len(positions):
        return []
    sizes = np.abs(values)
    bin_of = np.minimum((sizes / sizes.max() * bins).astype(int), bins - 1)
    found = []
    for number in range(bins):
        there = np.flatnonzero(bin_of == number)
        drawn = stream.permutation(there)[:per_bin]
        found += [(int(positions[i]), number) for i in np.sort(drawn)]
    return found


def stretch(
    index: LatentIndex,
    latent: int,
    position: int,
    before: int,
    after: int,
    quantile: int | None = None,
) -> Example:
    """Return the text around a position of one context, with the latent's activations."""
    return around(index, index.positions(latent), position, before, after, quantile)


def around(
    index: LatentIndex,
    activity: Activity,
    position: int,
    before: int,
    after: int,
    quantile: int | None = None,
) -> Example:
    """Return the text around a position of one context, with some activations.

    Raises:
        ConfigError: A number is out of range.
    """
    if before < 0 or after < 0:
        raise ConfigError(f"before={before}, after={after}; expected 0 or more")
    context = int(index.context_ids[position])
    start = max(int(index.contexts[context]), position - before)
    end = min(int(index.contexts[context + 1]), position + after + 1)
    positions, values = activity
    lower, upper = np.searchsorted(positions, [start, end])
    shown = np.zeros(end - start, dtype=np.float32)
    shown[positions[lower:upper] - start] = values[lower:upper]
    return Example(
        tuple(index.text_of(p) for p in range(start, end)),
        shown,
        position - start,
        position,
        int(index.documents[context]),
        quantile,
    )
