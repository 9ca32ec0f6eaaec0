"""Activation maximization: the texts that most excite a unit, with what they stand beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from microtome.attribution.corpus import (
    Texts,
    encoded,
    sample_windows,
    search_units,
    with_cross_entropy,
)
from microtome.attribution.evolution import optimize_tokens
from microtome.attribution.fluency import measure, require_causal
from microtome.attribution.maximization_results import (
    ActivatingText,
    CorpusActivations,
    Maximization,
    TokenOptimization,
)
from microtome.attribution.units import Unit, random_like
from microtome.attribution.units import unit as as_unit
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import Provenance, collect
from microtome.errors import ConfigError

if TYPE_CHECKING:
    from microtome.tracing.model import Model
    from microtome.tracing.sites import Site

MEDIAN_WINDOWS = 256
"""Windows of the corpus whose median cross-entropy is the standard of fluency."""


def maximize(
    model: Model,
    unit: str | Site | Unit,
    *,
    texts: Texts,
    length: int = 12,
    population: int = 8,
    iterations: int = 100,
    children: int = 16,
    fluency_weights: Sequence[float] | None = None,
    fluency_limit: float = 2.0,
    window: int = 64,
    top: int = 10,
    seed: int = 0,
    progress: Progress = quiet,
) -> Maximization:
    r"""Find what most excites a unit in a corpus and by optimization, beside a random unit.

    Args:
        model: A causal model with a tokenizer.
        unit: A neuron, head or direction; see :func:`microtome.attribution.unit`.
        texts: The corpus.
        length: Tokens of an optimized text.
        population: Members of the search.
        iterations: Its generations.
        children: Mutations of each member in a generation.
        fluency_weights: See :func:`microtome.attribution.optimize_tokens`.
        fluency_limit: The best text has at most this many times the median cross-entropy of the
            corpus's windows of the same length.
        window: Tokens of a window of the corpus.
        top: Windows of the corpus to keep.
        seed: Seed of everything that is drawn, the random unit included.
        progress: Told how far it is.

    Raises:
        ConfigError: If a number is out of range.
        EmptyDataError: If the corpus has no tokens, or no text of this length.
        ModelSupportError: If the model is not causal.
        SelectorError: If the unit is not one unit.

    Example:
        >>> import microtome as mt
        >>> from microtome.attribution import maximize
        >>> model = mt.load("python-code")
        >>> text = "def f(a, b=None):\n    return [a, b]\n" * 3
        >>> found = maximize(
        ...     model, "blocks.2.mlp.act[neuron=5]", texts=[text], length=4, iterations=2
        ... )
        >>> len(found.to_frame())
        8
    """
    if fluency_limit <= 0:
        raise ConfigError(f"fluency_limit={fluency_limit}; expected a number above 0.")
    require_causal(model, "Activation maximization")
    chosen = as_unit(unit)
    other = random_like(model, chosen, seed=seed)
    corpus = encoded(model, texts)
    rows = sample_windows(corpus, length, MEDIAN_WINDOWS, seed)
    median = float(measure(model, chosen, rows)[1].median())
    found = search_units(model, [chosen, other], corpus, window=window, top=top, progress=progress)
    searched = tuple(
        optimize_tokens(
            model, u, length=length, population=population, iterations=iterations,
            children=children, fluency_weights=fluency_weights, seed=seed, progress=progress,
        )
        for u in (chosen, other)
    )  # fmt: skip
    config = {
        "method": "activation maximization", "length": length, "population": population,
        "iterations": iterations, "children": children, "window": window,
        "fluency_limit": fluency_limit,
    }  # fmt: skip
    whole = collect(model, config, seed=seed)
    return _beside(model, (chosen, other), found, searched, median, fluency_limit * median, whole)


def _beside(
    model: Model,
    units: tuple[Unit, Unit],
    found: Sequence[CorpusActivations],
    searched: Sequence[TokenOptimization],
    median: float,
    limit: float,
    provenance: Provenance,
) -> Maximization:
    """Return what was found for a unit beside what was found for a random one."""
    own, beside = (_measured(model, u, f) for u, f in zip(units, found, strict=True))
    best = searched[0].best(limit)
    return Maximization(
        unit=str(units[0]),
        corpus=own,
        cut=_cut(model, units[0], own, len(best.ids)),
        optimized=searched[0],
        best=best,
        median_cross_entropy=median,
        limit=limit,
        random_corpus=beside,
        random_optimized=searched[1],
        random_best=searched[1].best(limit),
        random_on_best=float(measure(model, units[1], torch.tensor([best.ids]))[0][0]),
        provenance=provenance,
    )


def _measured(model: Model, unit: Unit, found: CorpusActivations) -> CorpusActivations:
    """Return a corpus search with the cross-entropy of its windows; activations stay as read."""
    windows = tuple(
        replace(with_cross_entropy(model, unit, w), activation=w.activation) for w in found.windows
    )
    return replace(found, windows=windows)


def _cut(model: Model, unit: Unit, found: CorpusActivations, length: int) -> ActivatingText | None:
    """Return the best of the windows cut to their last tokens, as many as optimized texts have."""
    cut = []
    for window in found.windows:
        ids = window.ids[-length:]
        if len(ids) >= 2:
            shorter = replace(window, ids=ids, text=model.decode(ids))
            cut.append(with_cross_entropy(model, unit, shorter))
    return max(cut, key=lambda t: t.activation) if cut else None
