"""Neurons that compute a map, a map of pairs, a vote or a correction."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from microtome.circuits.truth.layout import Layout
from microtome.circuits.truth.rasp import Correction, Map, Operation, SequenceMap, Value, Vote
from microtome.errors import ConfigError

GUARD = 4.0
"""Margin with which neurons of a numerical map are kept silent on the first token."""


@dataclass(eq=False)
class Neurons:
    """ReLU neurons, in the coordinates of the residual stream, as they are gathered.

    Attributes:
        width: Width of the residual stream.
        reads: What each neuron reads ``[neuron][d_model]``.
        biases: Its bias.
        writes: What it writes ``[neuron][d_model]``.
    """

    width: int
    reads: list[np.ndarray] = field(default_factory=list)
    biases: list[float] = field(default_factory=list)
    writes: list[np.ndarray] = field(default_factory=list)

    def add(self, reads: dict[int, float], bias: float, writes: dict[int, float]) -> None:
        """Add ``relu(reads . x + bias)``, written with some weights."""
        self.reads.append(self._vector(reads))
        self.biases.append(bias)
        self.writes.append(self._vector(writes))

    def extend(self, reads: np.ndarray, biases: np.ndarray, writes: np.ndarray) -> None:
        """Add neurons ``[neuron, d_model]``, ``[neuron]`` and ``[neuron, d_model]``."""
        self.reads += list(reads)
        self.biases += biases.tolist()
        self.writes += list(writes)

    def __len__(self) -> int:
        return len(self.biases)

    def _vector(self, entries: dict[int, float]) -> np.ndarray:
        vector = np.zeros(self.width)
        for coordinate, weight in entries.items():
            vector[coordinate] += weight
        return vector


def add_neurons(operation: Operation, layout: Layout, neurons: Neurons) -> None:
    """Add the neurons that compute an operation.

    Raises:
        ConfigError: If the operation is computed by no MLP, or merges copies of numbers.
    """
    if isinstance(operation, Map):
        (_number_map if operation.operand.numerical else _map)(operation, layout, neurons)
    elif isinstance(operation, SequenceMap):
        _pairs(operation, layout, neurons)
    elif isinstance(operation, Vote) and not operation.copies[0].numerical:
        _vote(operation, layout, neurons)
    elif isinstance(operation, Correction) and not operation.main.numerical:
        _correction(operation, layout, neurons)
    else:
        raise ConfigError(
            f"{type(operation).__name__} of numbers cannot be computed by an MLP; expected "
            "categorical values."
        )


def _written(operation: Operation, value: Value, layout: Layout) -> dict[int, float]:
    """Return what stands for a value in the residual stream."""
    if operation.numerical:
        return {layout.at(operation): float(value)}
    return {layout.at(operation, value): 1.0}


def _map(operation: Map, layout: Layout, neurons: Neurons) -> None:
    for value in layout.values(operation.operand):
        result = operation.function(value)
        neurons.add(
            {layout.at(operation.operand, value): 1.0}, 0.0, _written(operation, result, layout)
        )


def _pairs(operation: SequenceMap, layout: Layout, neurons: Neurons) -> None:
    """Add one neuron for each pair whose result occurs."""
    known = layout.values(operation)
    for a in layout.values(operation.first):
        for b in layout.values(operation.second):
            result = operation.function(a, b)
            if result in known:
                reads = {layout.at(operation.first, a): 1.0}
                coordinate = layout.at(operation.second, b)
                reads[coordinate] = reads.get(coordinate, 0.0) + 1.0
                neurons.add(reads, -1.0, _written(operation, result, layout))


def _number_map(operation: Map, layout: Layout, neurons: Neurons) -> None:
    """Add a constant for the smallest number and a ramp of two neurons wherever the value changes.

    A ramp rises over the middle half of the gap between two numbers that occur.
    """
    numbers = [float(v) for v in layout.values(operation.operand)]
    place = layout.at(operation.operand)
    slopes = [2.0 / (b - a) for a, b in zip(numbers, numbers[1:], strict=False)]
    largest = max(slopes, default=1.0) * (max(map(abs, numbers)) + 1.0)
    guard = {layout.bos: -GUARD * largest} if layout.feeds_attention(operation) else {}
    results = [operation.function(v) for v in layout.values(operation.operand)]
    neurons.add(dict(guard), 1.0, _written(operation, results[0], layout))
    for number, slope in enumerate(slopes):
        before, after = (_written(operation, results[number + n], layout) for n in (0, 1))
        if before == after:
            continue
        middle = (numbers[number] + numbers[number + 1]) / 2
        for sign, bias in ((1.0, 0.5), (-1.0, -0.5)):
            change = {c: sign * w for c, w in after.items()}
            for coordinate, weight in before.items():
                change[coordinate] = change.get(coordinate, 0.0) - sign * weight
            neurons.add({**guard, place: slope}, bias - slope * middle, change)


def _vote(operation: Vote, layout: Layout, neurons: Neurons) -> None:
    for value in layout.values(operation):
        reads = {layout.at(copy, value): 1.0 for copy in operation.copies}
        for sign, bias in ((1.0, 1.0), (-1.0, 0.0)):
            neurons.add(reads, bias - operation.threshold, {layout.at(operation, value): sign})


def _correction(operation: Correction, layout: Layout, neurons: Neurons) -> None:
    for value in layout.values(operation):
        difference = {
            layout.at(operation.spare, value): 1.0,
            layout.at(operation.main, value): -1.0,
        }
        for sign in (1.0, -1.0):
            reads = {c: sign * w for c, w in difference.items()}
            neurons.add(reads, 0.0, {layout.at(operation, value): sign})
