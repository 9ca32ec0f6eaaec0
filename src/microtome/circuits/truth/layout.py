"""Where a program lives in the residual stream: a sub-space and a time for every operation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from microtome.circuits.truth.rasp import (
    Aggregate,
    Correction,
    Indices,
    InverseWidth,
    Operation,
    Tokens,
    Value,
    evaluate,
    in_order,
)
from microtome.errors import ConfigError

EMBEDDED = -1
"""The time at which the embedding writes; block l attends at time 2l and its MLP runs at 2l + 1."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Sub-spaces of the residual stream, allotted in topological order.

    Attributes:
        output: The program's last operation.
        operations: All operations, operands first.
        time: When each is written, by ``id``.
        domain: The values that each takes on the inputs, by ``id``.
        place: First coordinate of each, by ``id``; one for a number, else one for each value.
        bos: The coordinate that marks the beginning-of-sequence token.
        one: The coordinate that is always 1.
        width: How many coordinates there are.
    """

    output: Operation
    operations: tuple[Operation, ...]
    time: dict[int, int]
    domain: dict[int, tuple[Value, ...]]
    place: dict[int, int]
    bos: int
    one: int
    width: int

    def at(self, operation: Operation, value: Value | None = None) -> int:
        """Return the coordinate of a value of an operation, or of its number."""
        start = self.place[id(operation)]
        if operation.numerical or value is None:
            return start
        return start + self.domain[id(operation)].index(value)

    def values(self, operation: Operation) -> tuple[Value, ...]:
        """Return the values an operation takes, sorted."""
        return self.domain[id(operation)]

    def written_at(self, time: int) -> tuple[Operation, ...]:
        """Return the operations written at a time."""
        return tuple(o for o in self.operations if self.time[id(o)] == time)

    @property
    def blocks(self) -> int:
        """How many blocks the program needs."""
        return max(self.time.values()) // 2 + 1

    def coordinates(self, operation: Operation) -> np.ndarray:
        """Return all coordinates of an operation."""
        size = 1 if operation.numerical else len(self.values(operation))
        return np.arange(size) + self.place[id(operation)]

    def feeds_attention(self, operation: Operation) -> bool:
        """Return whether a head reads an operation."""
        heads = (o for o in self.operations if isinstance(o, Aggregate | InverseWidth))
        return any(operation is read for head in heads for read in head.operands)


def lay_out(output: Operation, inputs: Iterable[tuple[str, ...]]) -> Layout:
    """Allot times and sub-spaces to a program.

    Args:
        output: Its last operation.
        inputs: The inputs, from which the values of every operation are gathered.

    Raises:
        ConfigError: If an operation never has a value, or copies of numbers are merged.
    """
    operations = in_order(output)
    seen: dict[int, set[Value]] = {id(o): set() for o in operations}
    for tokens in inputs:
        for key, values in evaluate(output, tokens).items():
            seen[key].update(v for v in values if v is not None)
    time: dict[int, int] = {}
    place: dict[int, int] = {}
    width = 2
    for operation in operations:
        if not seen[id(operation)]:
            raise ConfigError(
                f"{type(operation).__name__} has no value on any of the inputs; expected an "
                "operation that is defined somewhere."
            )
        time[id(operation)] = _time(operation, time)
        if isinstance(operation, Correction):
            place[id(operation)] = place[id(operation.main)]
            seen[id(operation)] = seen[id(operation.main)]
            continue
        place[id(operation)] = width
        width += 1 if operation.numerical else len(seen[id(operation)])
    domain = {key: tuple(sorted(v, key=_order)) for key, v in seen.items()}
    return Layout(output, operations, time, domain, place, bos=0, one=1, width=width)


def _order(value: Value) -> tuple[str, float, str]:
    """Sort numbers by size and texts by letter."""
    if isinstance(value, str):
        return "text", 0.0, value
    return "number", float(value), ""


def _time(operation: Operation, time: dict[int, int]) -> int:
    """Return the first time at which all operands are there and the right part runs."""
    if isinstance(operation, Tokens | Indices):
        return EMBEDDED
    earliest = max(time[id(o)] for o in operation.operands) + 1
    parity = 0 if isinstance(operation, Aggregate | InverseWidth) else 1
    return earliest + (earliest % 2 != parity)
