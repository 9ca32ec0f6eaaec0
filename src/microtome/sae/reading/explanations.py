"""Explanations of latents without a language model: a decision list of tokens, n-grams, templates.

At each step the rule is taken that explains most of the activation that is left: predicting the
mean ``m`` of ``n`` positions in place of 0 saves ``n m^2`` of the squared error, times the share of
the ``n`` that are active. Every token, token
before, n-gram of two to four tokens (the tries of Neuron to Graph, Foote et al., 2023), template of
position or format, and token together with a template competes, all of them counted exactly: once
for a text, and once for a latent; a rule that is taken only takes its own positions away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from microtome.errors import ConfigError
from microtome.sae.reading.families import Families, Rule
from microtome.sae.reading.index import Activity
from microtome.store.results import Result

SUPPORT = 3
"""Positions at which a rule must hold; what holds less often is not a rule."""


@dataclass(frozen=True, eq=False)
class Explanation(Result, schema="sae-explanation"):
    """When a latent is active, in rules; the first that holds predicts its activation.

    Attributes:
        latent: Number of the latent.
        rules: The rules in order; where none holds, 0 is predicted.
        explained: Share of the squared activation explained on the text they were found in.
    """

    latent: int
    rules: tuple[Rule, ...]
    explained: float

    @property
    def text(self) -> str:
        """The explanation in words, tokens of one kind of rule gathered."""
        if not self.rules:
            return "no rule found"
        gathered: dict[str, list[str]] = {}
        for rule in self.rules:
            head, _, tail = rule.words.partition(": ")
            gathered.setdefault(head, []).append(tail)
        return "; or ".join(
            f"{head} {' or '.join(t for t in tails if t)}".strip()
            for head, tails in gathered.items()
        )

    def predict(self, families: Families) -> NDArray[np.float64]:
        """Return the activation it predicts at each position of a text ``[position]``."""
        predicted = np.zeros(len(families.index.ids))
        # From the last rule to the first, so that the first that holds has the last word.
        for rule in reversed(self.rules):
            predicted[families.places(rule)] = rule.activation
        return predicted


def explain(
    families: Families,
    latent: int,
    *,
    most: int = 8,
    least: float = 0.01,
    activity: Activity | None = None,
) -> Explanation:
    """Find the decision list that best predicts a latent's activation.

    Args:
        families: Families of rules on an index; :meth:`Families.among` says where to learn from.
        latent: Number of the latent.
        most: Rules at most.
        least: Share of the squared activation that a rule must explain.
        activity: Positions and activations to explain in place of the latent's own.

    Raises:
        SelectorError: There is no such latent.
        ConfigError: A number is out of range.
    """
    if most < 1 or not 0 < least < 1:
        raise ConfigError(f"most={most}, least={least}; expected at least 1, and a share below 1")
    positions, values = families.index.positions(latent) if activity is None else activity
    learned = families.learned[positions]
    search = _Search(families, positions[learned], values[learned].astype(np.float64))
    total = float(np.square(search.values).sum())
    rules: list[Rule] = []
    explained = 0.0
    while total > 0 and len(rules) < most:
        gain, rule = search.best()
        if rule is None or gain < least * total:
            break
        rules.append(rule)
        explained += gain
        search.take(rule)
    return Explanation(latent, tuple(rules), explained / total if total > 0 else 0.0)


class _Search:
    """What is left of a latent's activation while rules are taken.

    Attributes:
        values: Activations at the active positions ``[entry]``.
    """

    def __init__(
        self, families: Families, positions: NDArray[np.int32], values: NDArray[np.float64]
    ) -> None:
        self.families, self.positions, self.values = families, positions, values
        self.left = families.learned.copy()
        totals = families.totals
        holding = families.numbers[:, positions]
        holding[totals[holding] < SUPPORT] = -1
        _, self._entry = np.nonzero(holding >= 0)
        found = holding[holding >= 0]
        # The rules that hold at an active position, numbered anew.
        self._new = np.full(len(totals), -1, dtype=np.int32)
        self._new[found] = 0
        self._rules = np.flatnonzero(self._new == 0)
        self._new[self._rules] = np.arange(len(self._rules), dtype=np.int32)
        self._which = self._new[found]
        self._counts = totals[self._rules]

    def best(self) -> tuple[float, Rule | None]:
        """Return the rule that saves most of the squared error on what is left, and how much.

        What it saves counts by its precision, the share of its positions that are active: else a
        broad rule that is half wrong would come before the precise ones it is made of.
        """
        size = len(self._rules)
        sums = np.bincount(self._which, weights=self.values[self._entry], minlength=size)
        counts = np.maximum(self._counts, 1)
        precision = np.bincount(self._which, minlength=size) / counts
        gains = np.where(self._counts >= SUPPORT, np.square(sums) / counts, 0)
        heights = gains * precision
        if not size or not heights.max() > 0:
            return 0.0, None
        # A longer rule must be better than a simpler one, not as good; simpler ones come first.
        number = int((heights >= heights.max() * (1 - 1e-9)).argmax())
        mean = float(sums[number] / counts[number])
        return float(gains[number]), self.families.rule(int(self._rules[number]), mean)

    def take(self, rule: Rule) -> None:
        """Take the positions at which a rule holds away."""
        places = self.families.places(rule)
        gone = places[self.left[places]]
        self.left[gone] = False
        held = self.families.numbers[:, gone]
        which = self._new[held[held >= 0]]
        self._counts = self._counts - np.bincount(which[which >= 0], minlength=len(self._rules))
        still = self.left[self.positions][self._entry]
        self._entry, self._which = self._entry[still], self._which[still]
