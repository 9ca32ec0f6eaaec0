"""Explanations of latents without a language model: a decision list of tokens, n-grams, templates.

At each step the rule is taken that explains most of the activation that is left: predicting the
mean ``m`` of ``n`` positions in place of 0 saves ``n m^2`` of the squared error, times the share of
the ``n`` that are active. Every token, token
before, n-gram of two to four tokens (the tries of Neuron to Graph, Foote et al., 2023), template of
position or format, and token together with a template competes, all of them counted exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from microtome.errors import ConfigError
from microtome.sae.reading.index import LatentIndex
from microtome.sae.reading.templates import templates
from microtome.store.results import Result

LONGEST = 4
"""Tokens of the longest n-gram."""

SUPPORT = 3
"""Positions at which a rule must hold; what holds less often is not a rule."""


@dataclass(frozen=True)
class Rule:
    """One rule of a decision list.

    Attributes:
        family: ``"token"``, ``"before"``, ``"2-gram"`` to ``"4-gram"``, the words of a template, or
            ``"token & "`` with these words.
        key: Token ids that must be there, the last one at the position itself (one token before it
            for ``"before"``); empty for a template.
        activation: Activation it predicts.
        words: The rule in words.
    """

    family: str
    key: tuple[int, ...]
    activation: float
    words: str


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


@dataclass(frozen=True, eq=False)
class Families:
    """Families of rules on one index: what holds at each position, as one number.

    Attributes:
        index: The index.
        codes: Family to the number of its rule at each position ``[position]``, -1 for none.
        keys: Family to the token ids of each of its rules, or None where the rule is a template.
    """

    index: LatentIndex
    codes: Mapping[str, NDArray[np.int64]]
    keys: Mapping[str, NDArray[np.int64] | None]

    @staticmethod
    def of(index: LatentIndex) -> Families:
        """Return the families of an index; all latents share them."""
        ids = index.ids.astype(np.int64)
        context = index.context_of(np.arange(len(ids)))
        codes: dict[str, NDArray[np.int64]] = {}
        keys: dict[str, NDArray[np.int64] | None] = {}
        keys["token"], codes["token"] = _numbered(ids[:, None])
        behind = np.stack([_shifted(ids, n) for n in range(LONGEST)], axis=1)
        same = np.stack([_shifted(context, n) == context for n in range(LONGEST)], axis=1)
        keys["before"], codes["before"] = _numbered(behind[:, 1:2], same[:, 1])
        for n in range(2, LONGEST + 1):
            name = f"{n}-gram"
            keys[name], codes[name] = _numbered(behind[:, n - 1 :: -1][:, :n], same[:, n - 1])
        for words, flags in templates(index).items():
            codes[words], keys[words] = np.where(flags, 0, -1), None
            both = f"token & {words}"
            codes[both], keys[both] = np.where(flags, codes["token"], -1), keys["token"]
        return Families(index, codes, keys)

    def matches(self, rule: Rule) -> NDArray[np.bool_]:
        """Return at which positions a rule holds ``[position]``."""
        if rule.family not in self.codes:
            return np.zeros(len(self.index.ids), dtype=bool)
        keys = self.keys[rule.family]
        codes = self.codes[rule.family]
        if keys is None:
            return np.equal(codes, 0)
        found = np.flatnonzero((keys == np.array(rule.key)).all(axis=1))
        held: NDArray[np.bool_] = codes == (found[0] if len(found) else -2)
        return held

    def predict(self, explanation: Explanation) -> NDArray[np.float64]:
        """Return the activation that an explanation predicts at each position ``[position]``."""
        predicted = np.zeros(len(self.index.ids))
        decided = np.zeros(len(predicted), dtype=bool)
        for rule in explanation.rules:
            there = self.matches(rule) & ~decided
            predicted[there] = rule.activation
            decided |= there
        return predicted


def explain(
    families: Families,
    latent: int,
    *,
    among: NDArray[np.bool_] | None = None,
    most: int = 8,
    least: float = 0.01,
    values: NDArray[np.float64] | None = None,
) -> Explanation:
    """Find the decision list that best predicts a latent's activation.

    Args:
        families: Families of rules on an index.
        latent: Number of the latent.
        among: Positions to learn from ``[position]``, all unless given.
        most: Rules at most.
        least: Share of the squared activation that a rule must explain.
        values: Activations ``[position]`` to explain in place of the latent's own.

    Raises:
        SelectorError: There is no such latent.
        ConfigError: A number is out of range.
    """
    if most < 1 or not 0 < least < 1:
        raise ConfigError(f"most={most}, least={least}; expected at least 1, and a share below 1")
    if values is None:
        positions, found = families.index.positions(latent)
        values = np.zeros(len(families.index.ids))
        values[positions] = found
    left = ~families.index.special if among is None else among & ~families.index.special
    total = float(np.square(values[left]).sum())
    rules: list[Rule] = []
    explained = 0.0
    while total > 0 and len(rules) < most:
        gain, rule = _best(families, values, left)
        if rule is None or gain < least * total:
            break
        rules.append(rule)
        explained += gain
        left = left & ~families.matches(rule)
    return Explanation(latent, tuple(rules), explained / total if total > 0 else 0.0)


def _best(
    families: Families, values: NDArray[np.float64], left: NDArray[np.bool_]
) -> tuple[float, Rule | None]:
    """Return the rule that saves most of the squared error on the positions left, and how much.

    What it saves counts by its precision, the share of its positions that are active: else a broad
    rule that is half wrong would come before the precise ones it is made of.
    """
    active = np.flatnonzero(left & (values != 0))
    best: tuple[float, Rule | None] = (0.0, None)
    height = 0.0
    for family, codes in families.codes.items():
        there = codes[active]
        inside = there >= 0
        if not inside.any():
            continue
        size = int(there.max()) + 1
        sums = np.bincount(there[inside], weights=values[active][inside], minlength=size)
        held = codes[left]
        counts = np.bincount(held[(held >= 0) & (held < size)], minlength=size)
        precision = np.bincount(there[inside], minlength=size) / np.maximum(counts, 1)
        gains = np.where(counts >= SUPPORT, np.square(sums) / np.maximum(counts, 1), 0)
        number = int((gains * precision).argmax())
        # A longer rule must be better than a simpler one, not as good.
        if gains[number] * precision[number] > height * (1 + 1e-9):
            height = float(gains[number] * precision[number])
            rule = _rule(families, family, number, float(sums[number] / counts[number]))
            best = (float(gains[number]), rule)
    return best


def _rule(families: Families, family: str, number: int, activation: float) -> Rule:
    keys = families.keys[family]
    key = () if keys is None else tuple(int(i) for i in keys[number])
    shown = " ".join(_quoted(families.index.vocabulary.get(i, str(i))) for i in key)
    if family == "token":
        words = f"the token is: {shown}"
    elif family == "before":
        words = f"the token before is: {shown}"
    elif family.endswith("-gram"):
        words = f"the text ends in: {shown}"
    elif family.startswith("token & "):
        words = f"{family.removeprefix('token & ')} and the token is: {shown}"
    else:
        words = family
    return Rule(family, key, activation, words)


def _quoted(text: str) -> str:
    shown = text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("`", "'")
    return f"`{shown}`"


def _shifted(values: NDArray[np.int64], by: int) -> NDArray[np.int64]:
    """Return what stood ``by`` places before, -1 where nothing did."""
    out = np.full_like(values, -1)
    out[by:] = values[: len(values) - by]
    return out


def _numbered(
    rows: NDArray[np.int64], there: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the different rows, and the number of each row among them (-1 where not there)."""
    keys, codes = np.unique(rows, axis=0, return_inverse=True)
    codes = codes.reshape(-1).astype(np.int64)
    return keys, codes if there is None else np.where(there, codes, -1)
