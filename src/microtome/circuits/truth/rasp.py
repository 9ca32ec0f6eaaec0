"""A small RASP: sequence operations of which a program is made (Weiss, Goldberg, Yahav 2021).

An operation gives one value at each position. Categorical values are written one-hot, numbers as
one coordinate. Attention is causal: a position selects among itself and what comes before. Where
nothing is selected, attention rests on the beginning-of-sequence token and the value is None (0 for
a number). The operations follow Tracr (Lindner et al. 2023); ``Vote`` and ``Correction`` are
ours, for planted redundancy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Value = str | int | float | bool

Predicate = Callable[[Any, Any], bool]
"""From the value of a key and that of a query to whether the key is selected."""


@dataclass(frozen=True, eq=False)
class Operation:
    """One value at each position; compared by identity, so that equal copies stay apart."""

    @property
    def operands(self) -> tuple[Operation, ...]:
        """What it reads."""
        return ()

    @property
    def numerical(self) -> bool:
        """Whether its values are numbers on one coordinate."""
        return False


@dataclass(frozen=True, eq=False)
class Tokens(Operation):
    """The tokens themselves."""


@dataclass(frozen=True, eq=False)
class Indices(Operation):
    """The positions, from 1; the beginning-of-sequence token has none."""


@dataclass(frozen=True, eq=False)
class Select:
    """Which earlier positions each position looks at.

    Attributes:
        keys: Categorical, read where one looks.
        queries: Categorical, read where one looks from.
        predicate: Whether a key is selected by a query.
    """

    keys: Operation
    queries: Operation
    predicate: Predicate


@dataclass(frozen=True, eq=False)
class Aggregate(Operation):
    """The mean of values over the selected positions: one attention head.

    A categorical value is defined where all selected positions agree.

    Attributes:
        select: Where to look.
        values: What to copy.
    """

    select: Select
    values: Operation

    @property
    def operands(self) -> tuple[Operation, ...]:
        """Keys, queries and values."""
        return self.select.keys, self.select.queries, self.values

    @property
    def numerical(self) -> bool:
        """As its values are."""
        return self.values.numerical


@dataclass(frozen=True, eq=False)
class InverseWidth(Operation):
    """``1 / (1 + w)`` for w selected positions: a head that also attends to the first token.

    Attributes:
        select: What to count.
    """

    select: Select

    @property
    def operands(self) -> tuple[Operation, ...]:
        """Keys and queries."""
        return self.select.keys, self.select.queries

    @property
    def numerical(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, eq=False)
class Map(Operation):
    """A function of one value: neurons of an MLP.

    Attributes:
        function: The function.
        operand: What it is applied to.
        to_number: Whether it gives numbers.
    """

    function: Callable[[Any], Value]
    operand: Operation
    to_number: bool = False

    @property
    def operands(self) -> tuple[Operation, ...]:
        """Its operand."""
        return (self.operand,)

    @property
    def numerical(self) -> bool:
        """As declared."""
        return self.to_number


@dataclass(frozen=True, eq=False)
class SequenceMap(Operation):
    """A function of two categorical values at the same position: one neuron for each pair.

    Attributes:
        function: The function.
        first: First operand.
        second: Second operand.
    """

    function: Callable[[Any, Any], Value]
    first: Operation
    second: Operation

    @property
    def operands(self) -> tuple[Operation, ...]:
        """Both operands."""
        return self.first, self.second


@dataclass(frozen=True, eq=False)
class Vote(Operation):
    """A categorical value on which at least so many copies agree: 1 of 2 is OR, 2 of 3 a vote.

    Attributes:
        copies: The copies.
        threshold: How many have to agree.
    """

    copies: tuple[Operation, ...]
    threshold: int

    @property
    def operands(self) -> tuple[Operation, ...]:
        """The copies."""
        return self.copies


@dataclass(frozen=True, eq=False)
class Correction(Operation):
    """A spare copy that writes the difference where the main one departs from it: a backup.

    It writes to the sub-space of ``main``, so that later readers see the corrected value.

    Attributes:
        main: What is corrected.
        spare: The copy that is believed.
    """

    main: Operation
    spare: Operation

    @property
    def operands(self) -> tuple[Operation, ...]:
        """Both."""
        return self.main, self.spare


TOKENS, INDICES = Tokens(), Indices()


def selector_width(select: Select, longest: int) -> Operation:
    """Return how many positions are selected, as a categorical value up to ``longest``."""
    return Map(lambda x: min(longest, round(1 / x) - 1), InverseWidth(select))


def everywhere(_key: object, _query: object) -> bool:
    """Select every earlier position."""
    return True


def in_order(output: Operation) -> tuple[Operation, ...]:
    """Return all operations of a program, operands first."""
    found: dict[int, Operation] = {}

    def visit(operation: Operation) -> Iterator[Operation]:
        if id(operation) in found:
            return
        for operand in operation.operands:
            yield from visit(operand)
        if id(operation) not in found:
            found[id(operation)] = operation
            yield operation

    return tuple(visit(output))


Values = tuple[Value | None, ...]


def evaluate(output: Operation, tokens: tuple[str, ...]) -> dict[int, Values]:
    """Return the values of every operation on one sequence, by ``id`` of the operation.

    Args:
        output: The last operation.
        tokens: The sequence, without its beginning-of-sequence token.
    """
    found: dict[int, Values] = {}
    for operation in in_order(output):
        found[id(operation)] = _values(operation, tokens, found)
    return found


def _values(operation: Operation, tokens: tuple[str, ...], found: dict[int, Values]) -> Values:
    places = range(len(tokens))
    read = [found[id(o)] for o in operation.operands]
    if isinstance(operation, Tokens):
        return tokens
    if isinstance(operation, Indices):
        return tuple(i + 1 for i in places)
    if isinstance(operation, Aggregate):
        chosen = _selected(operation.select.predicate, read[0], read[1])
        return tuple(_mean([read[2][j] for j in c], operation.numerical) for c in chosen)
    if isinstance(operation, InverseWidth):
        chosen = _selected(operation.select.predicate, read[0], read[1])
        return tuple(1 / (1 + len(c)) for c in chosen)
    if isinstance(operation, Map):
        return tuple(None if v is None else operation.function(v) for v in read[0])
    if isinstance(operation, SequenceMap):
        pairs = zip(*read, strict=True)
        return tuple(None if None in p else operation.function(*p) for p in pairs)
    if isinstance(operation, Correction):
        return read[1]
    if isinstance(operation, Vote):
        return tuple(_agreed(votes, operation.threshold) for votes in zip(*read, strict=True))
    raise TypeError(f"{type(operation).__name__} is no operation of the language")


def _selected(predicate: Predicate, keys: Values, queries: Values) -> list[list[int]]:
    """Return the selected positions of each position."""
    return [
        [j for j in range(i + 1) if keys[j] is not None and predicate(keys[j], q)]
        if q is not None
        else []
        for i, q in enumerate(queries)
    ]


def _mean(values: list[Value | None], numerical: bool) -> Value | None:
    """Return the mean of numbers, or the one value on which all agree."""
    if numerical:
        return sum(float(v or 0.0) for v in values) / len(values) if values else 0.0
    return values[0] if values and all(v == values[0] for v in values) else None


def _agreed(votes: Values, threshold: int) -> Value | None:
    found = [v for v in dict.fromkeys(votes) if v is not None and votes.count(v) >= threshold]
    return found[0] if len(found) == 1 else None
