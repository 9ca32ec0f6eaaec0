"""The curves of a circuit's edges: each bends no more than it must to pass nodes and labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from microtome.views.circuit_layout import Placed

if TYPE_CHECKING:
    from microtome.views.circuit import Edge

BOWS = (0.0, 18.0, -18.0, 36.0, -36.0, 60.0, -60.0, 90.0, -90.0, 130.0, -130.0)
PORTS = {"": 0.0, "q": -5.5, "k": 0.0, "v": 5.5}
_T = np.linspace(0.06, 0.94, 19)
_BASIS = np.stack([(1 - _T) ** 3, 3 * _T * (1 - _T) ** 2, 3 * _T**2 * (1 - _T), _T**3], axis=1)

Points = tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Route:
    """The curve of one edge: four points of a cubic Bézier."""

    edge: Edge
    points: Points


def port_place(placed: Placed, port: str) -> tuple[float, float]:
    """Return where an edge enters a node: below its center, or at one of the three notches."""
    shift = PORTS[port] if placed.node.kind == "head" else 0.0
    return placed.x + shift, placed.y + math.sqrt(placed.radius**2 - shift**2)


def route(
    edges: list[Edge], placed: dict[str, Placed], *, left: float, right: float
) -> list[Route]:
    """Return the curve of every edge, each the cheapest of a few bends.

    The cost of a bend is its size plus the number of sampled points that fall on other nodes or
    labels.
    """
    names = list(placed)
    boxes = np.array([box for name in names for box in (placed[name].mark, placed[name].text)])
    owners = np.repeat(np.arange(len(names)), 2)
    number = {name: index for index, name in enumerate(names)}
    routes = []
    for edge in edges:
        source, target = placed[edge.source], placed[edge.target]
        others = (owners != number[edge.source]) & (owners != number[edge.target])
        routes.append(Route(edge, _best(source, target, edge.port, boxes[others], left, right)))
    return routes


def _best(
    source: Placed, target: Placed, port: str, boxes: NDArray[np.float64], left: float, right: float
) -> Points:
    # A bend is dearer on a short edge, where it would be a hook.
    dear = 1 + 90 / max(1.0, source.y - target.y)
    choices = [
        (_cost(points, dear * bow, boxes, left, right), index, points)
        for index, bow in enumerate(BOWS)
        for points in (_points(source, target, port, bow),)
    ]
    return min(choices, key=lambda choice: choice[:2])[2]


def _points(source: Placed, target: Placed, port: str, bow: float) -> Points:
    start = (source.x, source.y - source.radius)
    end = port_place(target, port)
    rise = 0.45 * (start[1] - end[1])
    return start, (start[0] + bow, start[1] - rise), (end[0] + bow, end[1] + rise), end


def _cost(
    points: Points, bow: float, boxes: NDArray[np.float64], left: float, right: float
) -> float:
    path = _BASIS @ np.array(points)
    outside = float(np.sum((path[:, 0] < left) | (path[:, 0] > right)))
    if not len(boxes):
        return abs(bow) + 40 * outside
    x, y = path[:, :1], path[:, 1:]
    margin = 2.0
    inside = (
        (x > boxes[:, 0] - margin)
        & (x < boxes[:, 2] + margin)
        & (y > boxes[:, 1] - margin)
        & (y < boxes[:, 3] + margin)
    )
    return abs(bow) + 40.0 * float(inside.sum()) + 40 * outside
