"""Behaviors in sequences of symbols: brackets that balance, letters in order.

Small models are trained on these alone. Symbols are apart from one another by blanks, so that any
tokenizer has a token for each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import numpy as np

from microtome.behaviors.behavior import Behavior
from microtome.behaviors.generators.frames import Draft, Words, generate
from microtome.behaviors.items import Feature
from microtome.core.seeds import rng

BALANCED, UNBALANCED = " balanced", " unbalanced"

LETTERS = "abc"
COUNT = 6
"""Letters to be sorted."""


def bracket_balance(n: int = 200, *, seed: int = 0, end: str = "") -> Behavior:
    """Say whether a string of round brackets is balanced.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.
        end: What follows the brackets in every prompt, such as a classifier's last token.

    Returns:
        Pairs of a balanced string and one in which an opening and a later closing bracket are
        exchanged so that a bracket closes before it opens: as many of either kind, in each as
        clean prompts.
    """

    def template(name: str) -> Callable[[Words], Draft]:
        return lambda w: _brackets(w, w.one(name), end)

    train = ("6 pairs", "8 pairs", "9 pairs", "two groups of 4", "7 pairs, one outside")
    test = ("7 pairs", "10 pairs", "two groups of 5", "9 pairs, one outside")
    return generate(
        "bracket-balance",
        title="Balanced brackets",
        description="Tell balanced from unbalanced strings of round brackets that hold as many "
        "opening as closing ones. The task's rule: balanced unless a bracket closes before it "
        "opens.",
        train={name: template(name) for name in train},
        test={name: template(name) for name in test},
        lists={name: _strings(name) for name in (*train, *test)},
        n=n,
        seed=seed,
    )


STRINGS = 100
"""Balanced strings of each template; each belongs to one split."""


@cache
def _strings(template: str) -> tuple[str, ...]:
    """Return different balanced strings of a template, the same ones for every seed."""
    count = next(int(t) for t in template.split() if t.isdigit())
    random = rng(0, "bracket-balance", template)
    found: dict[str, None] = {}
    while len(found) < STRINGS:
        if template.startswith("two groups"):
            found[_balanced(random, count) + _balanced(random, count)] = None
        elif template.endswith("outside"):
            found[f"({_balanced(random, count - 1)})"] = None
        else:
            found[_balanced(random, count)] = None
    return tuple(found)


def _brackets(w: Words, good: str, end: str) -> Draft:
    opened = [i for i, c in enumerate(good) if c == "("]
    swaps = [
        (i, k) for i in opened for k in range(i + 1, len(good))
        if good[k] == ")" and not is_balanced(_swapped(good, i, k))
    ]  # fmt: skip
    first, second = swaps[int(w.random.integers(len(swaps)))]
    bad = _swapped(good, first, second)
    whole = w.chance(0.5)

    def text(brackets: str) -> str:
        marked = [f"⟦{'first' if i == first else 'second'} bracket:{c}⟧"
                  if i in (first, second) else c for i, c in enumerate(brackets)]  # fmt: skip
        return " ".join(marked) + end

    clean, corrupt = (good, bad) if whole else (bad, good)
    answers = (BALANCED, UNBALANCED) if whole else (UNBALANCED, BALANCED)
    features: dict[str, Feature] = {
        "balanced": whole,
        "length": float(len(good)),
        "depth": float(max(itertools.accumulate(1 if c == "(" else -1 for c in good))),
        "first closed too early": float(_first_below(bad)),
    }
    return Draft(text(clean), text(corrupt), *answers, good, features)


def _balanced(random: np.random.Generator, pairs: int) -> str:
    """Return a random balanced string: a walk up and down that stays above 0."""
    text, depth, left = "", 0, pairs
    while left or depth:
        opens = bool(left) and (depth == 0 or random.random() < 0.5)
        text += "(" if opens else ")"
        depth += 1 if opens else -1
        left -= opens
    return text


def is_balanced(brackets: str) -> bool:
    """Return whether every bracket closes one that was opened before, and all are closed."""
    return _first_below(brackets) < 0 and brackets.count("(") == brackets.count(")")


def _first_below(brackets: str) -> int:
    """Return the first place at which more brackets were closed than opened, else -1."""
    depths = itertools.accumulate(1 if c == "(" else -1 for c in brackets)
    return next((i for i, depth in enumerate(depths) if depth < 0), -1)


def _swapped(text: str, first: int, second: int) -> str:
    letters = list(text)
    letters[first], letters[second] = letters[second], letters[first]
    return "".join(letters)


def letter_sorting(n: int = 200, *, seed: int = 0) -> Behavior:
    """Write the letters of a prompt in order: behind six letters and some sorted ones, the next.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.

    Returns:
        Pairs that differ in one of the six letters, on which the next sorted one depends. Those
        already written are the same.
    """
    return generate(
        "letter-sorting",
        title="Sorting letters",
        description=f"Behind {COUNT} of the letters {', '.join(LETTERS)} and the first of them in "
        "order, predict the next in order. The task's rule: the smallest letter of which not all "
        "are written yet.",
        train={f"{k} written": lambda w, k=k: _sorting(w, k) for k in (0, 2, 3)},  # type: ignore[misc]
        test={f"{k} written": lambda w, k=k: _sorting(w, k) for k in (1, 4, 5)},  # type: ignore[misc]
        lists={"letters": ["".join(s) for s in
                           itertools.combinations_with_replacement(LETTERS, COUNT)]},
        n=n,
        seed=seed,
    )  # fmt: skip


def _sorting(w: Words, written: int) -> Draft:
    given = [str(c) for c in w.random.permutation(list(w.one("letters")))]
    changes = []
    for place, new in itertools.product(range(COUNT), LETTERS):
        other = [*given[:place], new, *given[place + 1 :]]
        both = sorted(given), sorted(other)
        if both[0][:written] == both[1][:written] and both[0][written] != both[1][written]:
            changes.append((place, other))
    done = sorted(given)[:written]
    if not changes:  # left out: a pair has to differ
        same = " ".join(given)
        return Draft(same, same, " a", " b", same, {})
    place, other = changes[int(w.random.integers(len(changes)))]

    def text(letters: list[str]) -> str:
        marked = [f"⟦changed letter:{c}⟧" if i == place else c for i, c in enumerate(letters)]
        return " ".join([*marked, *done])

    answer, wrong = sorted(given)[written], sorted(other)[written]
    features: dict[str, Feature] = {
        "next": answer,
        "written": float(written),
        "place": float(place),
    }
    return Draft(text(given), text(other), f" {answer}", f" {wrong}", "".join(given), features)


GENERATORS: dict[str, Callable[..., Behavior]] = {
    "bracket-balance": bracket_balance,
    "letter-sorting": letter_sorting,
}
"""Generators of behaviors in symbols by name."""
