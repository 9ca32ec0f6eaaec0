"""Attention heads that compute an aggregate or a selector width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from microtome.circuits.truth.layout import Layout
from microtome.circuits.truth.rasp import Aggregate, InverseWidth, Select


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """One head, in the coordinates of the residual stream.

    Attributes:
        query: ``[d_model, d_head]``; scores are plain products, without a divisor.
        key: ``[d_model, d_head]``.
        value: ``[d_model, d_head]``.
        output: ``[d_head, d_model]``.
        query_bias: ``[d_head]``.
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    output: np.ndarray
    query_bias: np.ndarray

    @property
    def size(self) -> int:
        """Its d_head."""
        return max(int(self.query.shape[1]), int(self.value.shape[1]))


def head_of(
    operation: Aggregate | InverseWidth, layout: Layout, width: int, sharpness: float
) -> HeadWeights:
    """Return the head that computes an operation.

    A selected key scores ``sharpness``, every other 0. The beginning-of-sequence token scores half
    as much, so that it is attended to where nothing is selected; for a selector width it scores as
    much as a selected key, so that it gets ``1 / (1 + w)``.

    Args:
        operation: The operation.
        layout: Where its operands are.
        width: Width of the residual stream.
        sharpness: How much a selected key scores.
    """
    counts = isinstance(operation, InverseWidth)
    query, key, bias = _scores(operation.select, layout, width, sharpness, 1.0 if counts else 0.5)
    target = layout.coordinates(operation)
    value = np.zeros((width, len(target)))
    output = np.zeros((len(target), width))
    output[np.arange(len(target)), target] = 1.0
    if isinstance(operation, Aggregate):
        for number, coordinate in enumerate(_sources(operation, layout)):
            value[coordinate, number] = 1.0
    else:
        value[layout.bos, 0] = 1.0
    return HeadWeights(query, key, value, output, bias)


def _sources(operation: Aggregate, layout: Layout) -> list[int]:
    """Return the coordinate that each coordinate of an aggregate copies."""
    if operation.numerical:
        return [layout.at(operation.values)]
    return [layout.at(operation.values, v) for v in layout.values(operation)]


def _scores(
    select: Select, layout: Layout, width: int, sharpness: float, default: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return query and key weights and the query bias; queries that select alike share a column."""
    keys, queries = layout.values(select.keys), layout.values(select.queries)
    columns: dict[tuple[bool, ...], list[int]] = {}
    for value in queries:
        row = tuple(bool(select.predicate(k, value)) for k in keys)
        if any(row):
            columns.setdefault(row, []).append(layout.at(select.queries, value))
    query = np.zeros((width, len(columns) + 1))
    key = np.zeros((width, len(columns) + 1))
    for number, (row, places) in enumerate(columns.items()):
        query[places, number] = 1.0
        for value, chosen in zip(keys, row, strict=True):
            key[layout.at(select.keys, value), number] = sharpness * chosen
    key[layout.bos, -1] = sharpness * default
    bias = np.zeros(len(columns) + 1)
    bias[-1] = 1.0
    return query, key, bias
