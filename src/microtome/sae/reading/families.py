"""Families of rules on an index: what holds at each position, as one number, counted once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from microtome.sae.reading.index import LatentIndex
from microtome.sae.reading.templates import templates

_RUN = re.compile(" {5,}")

LONGEST = 4
"""Tokens of the longest n-gram."""


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
class Families:
    """Every rule there is on an index; all latents share them.

    Attributes:
        index: The index.
        names: The families, simpler ones first.
        numbers: Number of the rule of each family that holds at each position ``[family,
            position]``, -1 for none; the rules of a family are numbered one after the other.
        starts: Number of the first rule of each family, and the total ``[family + 1]``.
        keys: Family to the token ids of each of its rules, or None where the rule is a template.
        learned: Positions that rules are found on ``[position]``.
    """

    index: LatentIndex
    names: tuple[str, ...]
    numbers: NDArray[np.int32]
    starts: NDArray[np.int64]
    keys: Mapping[str, NDArray[np.int64] | None]
    learned: NDArray[np.bool_]
    _orders: dict[int, tuple[NDArray[np.int32], NDArray[np.int64]]] = field(default_factory=dict)

    @staticmethod
    def of(index: LatentIndex) -> Families:
        """Return the families of an index, to be found on all of it."""
        ids = index.ids.astype(np.int64)
        keys: dict[str, NDArray[np.int64] | None] = {}
        rows: list[NDArray[np.int32]] = []
        start, starts = 0, [0]

        def add(name: str, of: NDArray[np.int64] | None, codes: NDArray[np.int32]) -> None:
            nonlocal start
            keys[name] = of
            rows.append(np.where(codes >= 0, codes + np.int32(start), np.int32(-1)))
            start += 1 if of is None else len(of)
            starts.append(start)

        tokens, token = _numbered(ids[:, None])
        add("token", tokens, token)
        behind = np.stack([_shifted(ids, n) for n in range(LONGEST)], axis=1)
        context = index.context_ids
        same = np.stack([_shifted(context, n) == context for n in range(LONGEST)], axis=1)
        add("before", *_numbered(behind[:, 1:2], same[:, 1]))
        for n in range(2, LONGEST + 1):
            add(f"{n}-gram", *_numbered(behind[:, n - 1 :: -1][:, :n], same[:, n - 1]))
        for words, flags in templates(index).items():
            add(words, None, np.where(flags, 0, -1).astype(np.int32))
            add(f"token & {words}", tokens, np.where(flags, token, np.int32(-1)))
        numbers = np.stack(rows)
        return Families(index, tuple(keys), numbers, np.array(starts), keys, ~index.special)

    def among(self, positions: NDArray[np.bool_]) -> Families:
        """Return the same families, to be found on some positions ``[position]``."""
        return replace(self, learned=positions & ~self.index.special)

    @cached_property
    def totals(self) -> NDArray[np.int64]:
        """At how many learned positions each rule holds ``[rule]``, counted once."""
        total = np.zeros(int(self.starts[-1]), dtype=np.int64)
        for row in self.numbers:
            held = row[self.learned]
            total += np.bincount(held[held >= 0], minlength=len(total))
        return total

    def places(self, rule: Rule) -> NDArray[np.int32]:
        """Return the positions at which a rule holds, growing; none if the text has no such key."""
        nowhere = np.empty(0, dtype=np.int32)
        if rule.family not in self.keys:
            return nowhere
        family, keys = self.names.index(rule.family), self.keys[rule.family]
        if keys is None:
            return self._of_code(family, 0)
        key = np.array(rule.key, dtype=np.int64)
        found = _row_of(keys, key) if key.shape == keys.shape[1:] else -1
        return self._of_code(family, found) if found >= 0 else nowhere

    def rule(self, number: int, activation: float) -> Rule:
        """Return the rule of a number with its words."""
        at = int(np.searchsorted(self.starts, number, side="right")) - 1
        family = self.names[at]
        keys = self.keys[family]
        key = () if keys is None else tuple(int(i) for i in keys[number - int(self.starts[at])])
        shown = " ".join(_quoted(self.index.vocabulary.get(i, str(i))) for i in key)
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

    def _of_code(self, family: int, code: int) -> NDArray[np.int32]:
        if family not in self._orders:
            codes = np.maximum(self.numbers[family] - self.starts[family], -1)
            order = np.argsort(codes, kind="stable").astype(np.int32)
            counts = np.bincount(codes + 1, minlength=int(np.diff(self.starts)[family]) + 1)
            self._orders[family] = order, np.concatenate([[0], np.cumsum(counts)])
        order, offsets = self._orders[family]
        return order[int(offsets[code + 1]) : int(offsets[code + 2])]


def _row_of(keys: NDArray[np.int64], key: NDArray[np.int64]) -> int:
    """Return the row of sorted rows that holds a key, -1 for none."""
    low, high = 0, len(keys)
    for column, value in enumerate(key):
        span = keys[low:high, column]
        low, high = (
            low + int(np.searchsorted(span, value, side="left")),
            low + int(np.searchsorted(span, value, side="right")),
        )
        if low == high:
            return -1
    return low


def _quoted(text: str) -> str:
    counted = _RUN.sub(lambda run: f"·×{len(run.group())}", text)
    shown = counted.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("`", "'")
    return f"`{shown}`"


def _shifted(values: NDArray[np.int64], by: int) -> NDArray[np.int64]:
    """Return what stood ``by`` places before, -1 where nothing did."""
    out = np.full_like(values, -1)
    out[by:] = values[: len(values) - by]
    return out


def _numbered(
    rows: NDArray[np.int64], there: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the different rows, sorted, and the number of each row (-1 where not there)."""
    keys, inverse = np.unique(rows, axis=0, return_inverse=True)
    codes: NDArray[np.int32] = inverse.reshape(-1).astype(np.int32)
    if there is not None:
        codes[~there] = -1
    return keys, codes
