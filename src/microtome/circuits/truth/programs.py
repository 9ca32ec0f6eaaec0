"""The programs whose circuit is known: what they compute and on which inputs.

Each asks for its output behind the last token, as a language model is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product

from microtome.circuits.truth.rasp import (
    INDICES,
    TOKENS,
    Aggregate,
    Map,
    Operation,
    Select,
    SequenceMap,
    Value,
    everywhere,
    selector_width,
)
from microtome.errors import UnknownNameError, nearest

Sequence = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """A program with its input space.

    Attributes:
        name: Its name, ``"histogram"``.
        description: What it gives behind the last token, in one sentence.
        build: Returns its last operation, made anew, so that copies do not share parts.
        alphabet: The input tokens.
        space: Yields every input.
    """

    name: str
    description: str
    build: Callable[[], Operation]
    alphabet: Sequence
    space: Callable[[], Iterator[Sequence]]

    @cached_property
    def inputs(self) -> tuple[Sequence, ...]:
        """The whole input space."""
        return tuple(self.space())

    @property
    def longest(self) -> int:
        """Length of the longest input."""
        return max(len(s) for s in self.inputs)


def words(alphabet: Sequence, lengths: range) -> Callable[[], Iterator[Sequence]]:
    """Return the space of all sequences over an alphabet with some lengths."""

    def space() -> Iterator[Sequence]:
        for length in lengths:
            yield from product(alphabet, repeat=length)

    return space


def _previous() -> Operation:
    before = Select(INDICES, INDICES, lambda k, q: k == q - 1)
    return Aggregate(before, TOKENS)


def _histogram() -> Operation:
    return selector_width(Select(TOKENS, TOKENS, lambda k, q: k == q), 6)


def _fraction() -> Operation:
    marked = Map(lambda t: float(t == "x"), TOKENS, to_number=True)
    return Aggregate(Select(TOKENS, TOKENS, everywhere), marked)


SEPARATOR = ">"


def _reverse() -> Operation:
    separator = Aggregate(Select(TOKENS, TOKENS, lambda k, q: k == SEPARATOR), INDICES)
    wanted = SequenceMap(lambda p, i: max(0, 2 * p - i - 1), separator, INDICES)
    return Aggregate(Select(INDICES, wanted, lambda k, q: k == q), TOKENS)


def _reversals(alphabet: Sequence) -> Callable[[], Iterator[Sequence]]:
    """Return words of 2 to 4 letters with the first part of their reversal behind a separator."""

    def space() -> Iterator[Sequence]:
        for word in words(alphabet, range(2, 5))():
            for shown in range(len(word)):
                yield (*word, SEPARATOR, *word[::-1][:shown])

    return space


def _sort() -> Operation:
    smaller = Select(TOKENS, TOKENS, lambda k, q: q.isupper() and k.islower() and k < q.lower())
    rank = SequenceMap(
        lambda w, t: w if t.isupper() else "none", selector_width(smaller, 4), TOKENS
    )
    asked = Select(rank, TOKENS, lambda k, q: q.isdigit() and k == int(q))
    return Aggregate(asked, TOKENS)


def _sortings(alphabet: Sequence) -> Callable[[], Iterator[Sequence]]:
    """Return different letters, the same as capitals, and the rank that is asked for."""

    def space() -> Iterator[Sequence]:
        for size in (2, 3, 4):
            for word in permutations(alphabet, size):
                for rank in range(size):
                    yield (*word, *(c.upper() for c in word), str(rank))

    return space


def _brackets() -> Operation:
    step = Map(lambda t: 1.0 if t == "(" else -1.0, TOKENS, to_number=True)
    level = Aggregate(Select(TOKENS, TOKENS, everywhere), step)
    below = Map(lambda x: float(x < -1e-6), level, to_number=True)
    ends = Map(lambda x: abs(x) < 1e-6, level)
    fallen = Map(lambda x: x > 1e-6, Aggregate(Select(TOKENS, TOKENS, everywhere), below))
    return SequenceMap(lambda end, bad: "yes" if end and not bad else "no", ends, fallen)


def _induction() -> Operation:
    before = Aggregate(Select(INDICES, INDICES, lambda k, q: k == q - 1), TOKENS)
    return Aggregate(Select(before, TOKENS, lambda k, q: k == q), TOKENS)


def _repeats(alphabet: Sequence) -> Callable[[], Iterator[Sequence]]:
    """Return words whose last letter occurs exactly once before."""

    def space() -> Iterator[Sequence]:
        for word in words(alphabet, range(3, 6))():
            if word[:-1].count(word[-1]) == 1:
                yield word

    return space


def _gate(function: Callable[[str, str], Value]) -> Callable[[], Operation]:
    """Return the gate of the second and the third bit."""

    def build() -> Operation:
        second = Aggregate(Select(INDICES, TOKENS, lambda k, q: k == 2), TOKENS)
        third = Aggregate(Select(INDICES, TOKENS, lambda k, q: k == 3), TOKENS)
        return SequenceMap(function, second, third)

    return build


_LETTERS = tuple("abcdefgh")
_BITS = ("0", "1")

_PROGRAMS = (
    Program(
        "previous-token",
        "The token before the last one.",
        _previous,
        _LETTERS,
        words(_LETTERS, range(2, 5)),
    ),
    Program(
        "histogram",
        "How often the last token has occurred, itself included.",
        _histogram,
        _LETTERS[:4],
        words(_LETTERS[:4], range(3, 7)),
    ),
    Program(
        "fraction-of-previous",
        "The share of x among all tokens so far.",
        _fraction,
        ("x", "y", "z"),
        words(("x", "y", "z"), range(3, 7)),
    ),
    Program(
        "reverse",
        "The next token of the word before the separator, read backward; words vary in length.",
        _reverse,
        (*_LETTERS[:4], SEPARATOR),
        _reversals(_LETTERS[:4]),
    ),
    Program(
        "sort-unique",
        "The letter of the rank that is asked for, out of different letters.",
        _sort,
        (*"abcdef", *"ABCDEF", *"0123"),
        _sortings(tuple("abcdef")),
    ),
    Program(
        "bracket-balance",
        "Whether all brackets are closed and none is closed before it is opened.",
        _brackets,
        ("(", ")"),
        words(("(", ")"), range(2, 9)),
    ),
    Program(
        "induction",
        "The token that followed the last token's earlier occurrence.",
        _induction,
        _LETTERS[:5],
        _repeats(_LETTERS[:5]),
    ),
    Program(
        "and",
        "The second bit AND the third.",
        _gate(lambda a, b: str(int(a == b == "1"))),
        _BITS,
        words(_BITS, range(4, 9)),
    ),
    Program(
        "or",
        "The second bit OR the third.",
        _gate(lambda a, b: str(int("1" in (a, b)))),
        _BITS,
        words(_BITS, range(4, 9)),
    ),
    Program(
        "xor",
        "Whether the second bit differs from the third.",
        _gate(lambda a, b: str(int(a != b))),
        _BITS,
        words(_BITS, range(4, 9)),
    ),
)  # fmt: skip

PROGRAMS: dict[str, Program] = {p.name: p for p in _PROGRAMS}
"""The programs by name."""


def program(name: str) -> Program:
    """Return a program by its name (``-`` and ``_`` are the same).

    Raises:
        UnknownNameError: If there is none of this name.
    """
    key = name.replace("_", "-")
    if key not in PROGRAMS:
        raise UnknownNameError(f"No program {name!r}{nearest(key, PROGRAMS)}.")
    return PROGRAMS[key]
