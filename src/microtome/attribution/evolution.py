"""Optimization of tokens: an evolutionary search along the frontier of activation and fluency.

In the manner of evolutionary prompt optimization (EPO; Thompson, Straznickas & Sklar 2024,
arXiv:2402.01702): a population in which each member weighs fluency differently; candidates come
from the slope of activation - weight x cross-entropy in each token; for each weight the best text
of all is kept. Unlike there, the population is never restarted from one of its members, and a
neuron is climbed along its pre-activation, because where it is off its slope vanishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microtome.attribution.embeddings import embedding_table
from microtome.attribution.fluency import measure, require_causal, survivors, token_slopes
from microtome.attribution.maximization_results import ActivatingText, TokenOptimization
from microtome.attribution.units import Unit, driver
from microtome.attribution.units import unit as as_unit
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.core.seeds import rng
from microtome.errors import ConfigError, TokenizerError
from microtome.tracing.prompts import require_tokenizer

if TYPE_CHECKING:
    from microtome.tracing.model import Model
    from microtome.tracing.sites import Site

RANDOM_TEXTS = 64
"""Random texts from which the search begins; their spread is the scale of the usual weights."""

_ATTEMPTS = 200
_LEAST, _MOST = 0.05, 5.0


@dataclass(frozen=True)
class _Settings:
    """The numbers of a search, checked."""

    length: int
    iterations: int
    children: int
    candidates: int
    seed: int

    def __post_init__(self) -> None:
        least = {"length": 2, "iterations": 0, "children": 1, "candidates": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value < low:
                raise ConfigError(f"{name}={value}; expected at least {low}.")


def optimize_tokens(
    model: Model,
    unit: str | Site | Unit,
    *,
    length: int = 12,
    population: int = 8,
    iterations: int = 100,
    children: int = 16,
    candidates: int = 128,
    fluency_weights: Sequence[float] | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> TokenOptimization:
    """Search for texts that excite a unit at their last token, from fluent to activating.

    Every text that is kept comes back unchanged when it is decoded and tokenized again.

    Args:
        model: A causal model with a tokenizer.
        unit: A neuron, head or direction; see :func:`microtome.attribution.unit`.
        length: Tokens of a text.
        population: Members; each has its own weight of fluency.
        iterations: Generations. Each computes ``population x children`` texts and one backward
            pass of the population.
        children: Mutations of each member in a generation, of one token each.
        candidates: Tokens with the steepest slope at a position that a mutation draws from.
        fluency_weights: Weight of the cross-entropy for each member, in activation per nat. By
            default none for the first and from 0.05 to 5 times the activation's spread over random
            texts (geometric) for the others.
        seed: Seed of everything that is drawn.
        progress: Told how far it is.

    Raises:
        ConfigError: If a number is out of range.
        ModelSupportError: If the model is not causal.
        SelectorError: If the unit is not one unit.
        TokenizerError: If there is no tokenizer, or random texts do not survive it.

    Example:
        >>> import microtome as mt
        >>> from microtome.attribution import optimize_tokens
        >>> model = mt.load("python-code")
        >>> found = optimize_tokens(model, "blocks.2.mlp.act[neuron=5]", length=5, iterations=3)
        >>> found.best().activation > found.random.activation
        True
    """
    settings = _Settings(length, iterations, children, candidates, seed)
    require_causal(model, "Optimizing tokens")
    require_tokenizer(model.tokenizer)
    _check_length(model, length)
    chosen = as_unit(unit)
    search = _Search(model, driver(model, chosen), settings)
    weights = search.begin(population, fluency_weights)
    history = [search.best_goals]
    for done in range(iterations):
        search.step()
        history.append(search.best_goals)
        progress.step(done + 1, iterations, "token search")
    config = {"method": "evolutionary prompt optimization", **vars(settings)}
    return TokenOptimization(
        unit=str(chosen),
        driver=str(search.unit),
        frontier=_texts(model, chosen, search.frontier),
        random=_texts(model, chosen, [search.random])[0],
        fluency_weights=tuple(weights),
        history=np.array(history),
        evaluated=search.evaluated,
        rejected=search.rejected,
        provenance=collect(model, config, seed=seed),
    )


_Entry = tuple[float, float, tuple[int, ...]]
"""Cross-entropy, activation and token ids of a text."""


class _Search:
    """The state of one search: the population, its goals, and the frontier of all texts seen."""

    def __init__(self, model: Model, unit: Unit, settings: _Settings) -> None:
        self.model = model
        self.unit = unit
        self.settings = settings
        self.frontier: list[_Entry] = []
        self.evaluated = self.rejected = 0
        self._rng = rng(settings.seed, "token optimization", str(unit))
        self._table = embedding_table(model, "Optimizing tokens")
        self._barred = ~_printable(model, len(self._table))

    def begin(self, population: int, given: Sequence[float] | None) -> list[float]:
        """Draw random texts and select the first population; return its fluency weights."""
        rows = torch.stack([self._random_text() for _ in range(RANDOM_TEXTS)])
        activation, entropy = self._measure(rows)
        self.random = self._entry(rows, activation, entropy, int(activation.argmax()))
        weights = _weights(population, given, float(activation.std()))
        self._weights = torch.tensor(weights)
        self._select(rows, activation, entropy)
        return weights

    def step(self) -> None:
        """Mutate each member, measure what survives, and keep the best text for each weight."""
        rows = self._mutations()
        kept = torch.tensor(survivors(self.model, rows))
        self.rejected += int((~kept).sum())
        if not bool(kept.any()):
            return
        rows = rows[kept]
        activation, entropy = self._measure(rows)
        self._select(
            torch.cat([self._members, rows]),
            torch.cat([self._activation, activation]),
            torch.cat([self._entropy, entropy]),
        )

    @property
    def best_goals(self) -> np.ndarray:
        """Activation - weight x cross-entropy of each member."""
        return (self._activation - self._weights * self._entropy).numpy()

    def _select(self, rows: Tensor, activation: Tensor, entropy: Tensor) -> None:
        goals = activation[:, None] - self._weights * entropy[:, None]
        chosen = goals.argmax(0)
        self._members = rows[chosen]
        self._activation, self._entropy = activation[chosen], entropy[chosen]

    def _mutations(self) -> Tensor:
        """Return ``population x children`` texts, each with one token exchanged."""
        members, count = self._members, self.settings.children
        slopes = token_slopes(self.model, self.unit, members, self._weights, self._table)
        slopes[:, :, self._barred] = -torch.inf
        slopes.scatter_(2, members[:, :, None].to(slopes.device), -torch.inf)
        usable = int((~self._barred).sum()) - 1
        best = slopes.topk(min(self.settings.candidates, usable), dim=-1).indices.cpu()
        parents = np.repeat(np.arange(len(members)), count)
        places = self._rng.integers(members.shape[1], size=len(parents))
        ranks = self._rng.integers(best.shape[2], size=len(parents))
        rows = members[parents].clone()
        rows[np.arange(len(parents)), places] = best[parents, places, ranks]
        return rows

    def _measure(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        activation, entropy = measure(self.model, self.unit, rows)
        self.evaluated += len(rows)
        new = [self._entry(rows, activation, entropy, n) for n in range(len(rows))]
        self.frontier = _frontier([*self.frontier, *new])
        return activation, entropy

    def _entry(self, rows: Tensor, activation: Tensor, entropy: Tensor, n: int) -> _Entry:
        return float(entropy[n]), float(activation[n]), tuple(rows[n].tolist())

    def _random_text(self) -> Tensor:
        """Return random tokens that survive re-tokenization, drawn one behind the other."""
        usable = np.flatnonzero(~self._barred.cpu().numpy())
        ids: list[int] = []
        for _ in range(_ATTEMPTS * self.settings.length):
            longer = [*ids, int(self._rng.choice(usable))]
            if survivors(self.model, torch.tensor([longer]))[0]:
                ids = longer
            elif ids and self._rng.random() < 0.1:
                ids = ids[:-1]
            if len(ids) == self.settings.length:
                return torch.tensor(ids)
        raise TokenizerError(
            f"No random text of {self.settings.length} tokens came back unchanged from this "
            f"tokenizer in {_ATTEMPTS} attempts for each token. Take a smaller length."
        )


def _texts(model: Model, unit: Unit, entries: list[_Entry]) -> tuple[ActivatingText, ...]:
    """Return the frontier in the unit's own activation, which its driver only stands for."""
    ids = [entry[2] for entry in entries]
    activation, entropy = measure(model, unit, torch.tensor(ids))
    own = _frontier(list(zip(entropy.tolist(), activation.tolist(), ids, strict=True)))
    return tuple(ActivatingText(model.decode(i), i, a, e) for e, a, i in own)


def _frontier(entries: list[_Entry]) -> list[_Entry]:
    """Return the entries that no other beats in both respects, most fluent first."""
    kept: list[_Entry] = []
    for entry in sorted(entries, key=lambda e: (e[0], -e[1], e[2])):
        if not kept or entry[1] > kept[-1][1]:
            kept.append(entry)
    return kept


def _weights(population: int, given: Sequence[float] | None, spread: float) -> list[float]:
    if given is not None:
        found = [float(w) for w in given]
        if not found or not all(0 <= w < float("inf") for w in found):
            raise ConfigError(f"fluency_weights={given!r}; expected numbers from 0.")
        return found
    if population < 1:
        raise ConfigError(f"population={population}; expected at least 1 member.")
    scale = spread if spread > 0 else 1.0
    return [0.0, *(scale * np.geomspace(_LEAST, _MOST, population - 1)).tolist()][:population]


def _printable(model: Model, size: int) -> Tensor:
    """Return which tokens stand for text: no special ones, no halves of a character."""
    special = set(getattr(model.tokenizer, "all_special_ids", ()))
    known = min(size, len(model.tokenizer))
    found = torch.zeros(size, dtype=torch.bool)
    for token in range(known):
        text = model.decode([token])
        found[token] = token not in special and bool(text) and "\ufffd" not in text
    return found


def _check_length(model: Model, length: int) -> None:
    context = None if model.anatomy is None else model.anatomy.context
    if context is not None and length + int(model.bos) > context:
        raise ConfigError(f"length={length}; the model's context is {context} tokens.")
