"""The layered layout of a circuit: rows from bottom to top, order by barycenter, no overlaps.

Every node stands in the row of its layer (heads below, what reads them above). Within a row the
order follows the weighted mean position of a node's neighbors, in a few sweeps up and down
(Sugiyama, Tagawa and Toda, 1981); then the row is placed by least squares under the condition
that no two nodes, with their labels, come closer than a gap. A row that is too full is split.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from microtome.views.glyphs import mono_width, shorten, visible_label

if TYPE_CHECKING:
    from microtome.views.circuit import CircuitDiagram, Edge, Node

LABEL_SIZE, LABEL_CELLS, END_CELLS = 11, 22, 40
RADIUS = {"embed": 7.0, "head": 9.0, "mlp": 9.0, "neuron": 5.0, "latent": 7.0, "logits": 7.0}
GAP, BESIDE = 14.0, 7.0
SWEEPS, PULL = 12, 0.45

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Placed:
    """A node with its place.

    Attributes:
        node: The node.
        x: Center.
        y: Center.
        radius: Half its size.
        label: Its label, shortened.
    """

    node: Node
    x: float
    y: float
    radius: float
    label: str

    @property
    def mark(self) -> Box:
        """The box of the mark: left, top, right, bottom."""
        return (
            self.x - self.radius,
            self.y - self.radius,
            self.x + self.radius,
            self.y + self.radius,
        )

    @property
    def text(self) -> Box:
        """The box of the label."""
        start = self.x + self.radius + BESIDE
        return start, self.y - 8, start + mono_width(self.label, LABEL_SIZE), self.y + 7


@dataclass(frozen=True)
class Band:
    """The strip of one layer, or of several in which nothing is in the circuit.

    Attributes:
        name: What it is, in words.
        top: Upper edge.
        bottom: Lower edge.
        layers: The layers it stands for; empty for embeddings and logits.
    """

    name: str
    top: float
    bottom: float
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Where everything is.

    Attributes:
        placed: Node name to its place.
        bands: The bands from bottom to top.
        left: Left edge of the area with nodes.
        right: Right edge of the area with nodes.
        height: Height of all bands.
    """

    placed: dict[str, Placed]
    bands: tuple[Band, ...]
    left: float
    right: float
    height: float


@dataclass(frozen=True)
class _Slot:
    """A node before it has a place: how far it reaches to both sides of its center."""

    node: Node
    before: float
    after: float
    label: str

    @property
    def extent(self) -> float:
        return self.before + self.after + GAP


def _slot(node: Node, room: float) -> _Slot:
    radius = RADIUS[node.kind]
    fits = int((room - 2 * radius - BESIDE - GAP) / mono_width("x", LABEL_SIZE))
    most = END_CELLS if node.kind in ("embed", "logits") else LABEL_CELLS
    label = shorten(visible_label(node.text), max(4, min(most, fits)))
    after = radius + BESIDE + mono_width(label, LABEL_SIZE)
    return _Slot(node, radius, after, label)


def natural_width(view: CircuitDiagram, widest: float) -> float:
    """Return the width of the node area that suits a diagram, between 420 px and ``widest``."""
    totals: dict[tuple[int, int], float] = defaultdict(float)
    for node in view.nodes:
        totals[_row_key(view, node)] += _slot(node, widest).extent
    return min(widest, max(420.0, 1.7 * max(totals.values(), default=0.0)))


def _row_key(view: CircuitDiagram, node: Node) -> tuple[int, int]:
    """Layer (-1 embeddings, one past the last for logits) and row within it."""
    if node.kind == "embed":
        return -1, 0
    if node.kind == "logits":
        return view.layers, 0
    return node.layer, 0 if node.kind == "head" else 1


def lay_out(
    view: CircuitDiagram, *, left: float, right: float, pitch: float, header: float, thin: float
) -> Layout:
    """Return the layout of a diagram.

    Args:
        view: The diagram.
        left: Left edge of the area for nodes, in pixels.
        right: Right edge.
        pitch: Height of a row.
        header: Height kept free at the top of each band.
        thin: Height of a band without nodes.
    """
    rows = _rows(view, right - left)
    order = {key: _Row(slots, left, right) for key, slots in rows.items()}
    _sweep(list(order.values()), view.drawn, _homes(view, left, right))
    bands, heights = _bands(view, sorted(order), pitch, header, thin)
    placed = {}
    for key, row in order.items():
        for slot, x in zip(row.slots, row.places, strict=True):
            radius = RADIUS[slot.node.kind]
            placed[slot.node.name] = Placed(slot.node, x, heights[key], radius, slot.label)
    height = max((band.bottom for band in bands), default=0.0)
    return Layout(placed, tuple(bands), left, right, height)


Key = tuple[int, int, int]
"""Layer, row kind within it, and part of a split row."""


def _rows(view: CircuitDiagram, room: float) -> dict[Key, list[_Slot]]:
    grouped: dict[tuple[int, int], list[_Slot]] = defaultdict(list)
    for node in sorted(view.nodes, key=lambda n: (n.kind, n.index, n.name)):
        grouped[_row_key(view, node)].append(_slot(node, room))
    rows: dict[Key, list[_Slot]] = {}
    for (layer, kind), slots in sorted(grouped.items()):
        for part, chunk in enumerate(_split(slots, room)):
            rows[layer, kind, part] = chunk
    return rows


def _split(slots: list[_Slot], room: float) -> list[list[_Slot]]:
    """Return the slots in as few rows of similar width as fit the room."""
    total = math.fsum(slot.extent for slot in slots)
    count = max(1, math.ceil(total / room))
    while True:
        chunks: list[list[_Slot]] = [[]]
        used = 0.0
        for slot in slots:
            full = used + slot.extent > room or used >= total / count
            if full and chunks[-1]:
                chunks.append([])
                used = 0.0
            chunks[-1].append(slot)
            used += slot.extent
        if len(chunks) <= count or count >= len(slots):
            return chunks
        count += 1


class _Row:
    """The slots of one row in their present order, and their places."""

    def __init__(self, slots: list[_Slot], left: float, right: float) -> None:
        self.slots = slots
        self.left, self.right = left, right
        spare = right - left - math.fsum(slot.extent for slot in slots)
        # A sparse row keeps its nodes further apart than it must, so that edges can pass.
        self.gap = GAP + max(0.0, min(56.0, 0.5 * spare / len(slots)))
        step = (right - left) / len(slots)
        self.places = place(
            [left + (index + 0.5) * step for index in range(len(slots))],
            [(slot.before, slot.after) for slot in slots],
            gap=self.gap,
            left=left,
            right=right,
        )

    def arrange(self, wanted: dict[str, float]) -> None:
        """Reorder by the wanted places and place anew."""
        pairs = [
            (wanted.get(s.node.name, x), s) for s, x in zip(self.slots, self.places, strict=True)
        ]
        pairs.sort(key=lambda pair: (round(pair[0], 3), pair[1].node.index, pair[1].node.name))
        self.slots = [slot for _, slot in pairs]
        self.places = place(
            [want for want, _ in pairs],
            [(slot.before, slot.after) for slot in self.slots],
            gap=self.gap,
            left=self.left,
            right=self.right,
        )


def place(
    wanted: Sequence[float],
    reach: Sequence[tuple[float, float]],
    *,
    gap: float,
    left: float,
    right: float,
) -> list[float]:
    """Return the places nearest to the wanted ones, in least squares, that keep order and distance.

    Args:
        wanted: Wanted centers, in the order in which they must stand.
        reach: How far each reaches to the left and to the right of its center.
        gap: Least free space between two.
        left: Left bound of the whole.
        right: Right bound; it is passed only if the whole does not fit.
    """
    offsets = [0.0]
    for (_, after), (before, _) in zip(reach, reach[1:], strict=False):
        offsets.append(offsets[-1] + after + gap + before)
    # With the offsets taken off, "far enough apart" is "not descending": isotonic regression by
    # pooling.
    pools: list[tuple[float, int]] = []
    for want, offset in zip(wanted, offsets, strict=True):
        mean, size = want - offset, 1
        while pools and pools[-1][0] >= mean:
            previous, weight = pools.pop()
            mean = (previous * weight + mean * size) / (weight + size)
            size += weight
        pools.append((mean, size))
    flat = [mean for mean, size in pools for _ in range(size)]
    low = left + reach[0][0]
    high = max(low, right - reach[-1][1] - offsets[-1])
    return [
        min(max(value, low), high) + offset for value, offset in zip(flat, offsets, strict=True)
    ]


def _homes(view: CircuitDiagram, left: float, right: float) -> dict[str, float]:
    """Return where heads and MLPs would stand without edges: heads by number, MLPs at the right.

    A head that keeps its side from one diagram to the next is found again.
    """
    heads = view.n_heads or 1 + max((n.index for n in view.nodes if n.kind == "head"), default=0)
    share = {node.name: (node.index + 0.5) / heads for node in view.nodes if node.kind == "head"}
    share |= {node.name: 0.9 for node in view.nodes if node.kind == "mlp"}
    return {name: left + (right - left) * min(1.0, part) for name, part in share.items()}


def _sweep(rows: list[_Row], edges: Sequence[Edge], homes: dict[str, float]) -> None:
    neighbors: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for edge in edges:
        neighbors[edge.source].append((edge.target, abs(edge.weight)))
        neighbors[edge.target].append((edge.source, abs(edge.weight)))
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            at = {
                slot.node.name: x
                for other in rows
                for slot, x in zip(other.slots, other.places, strict=True)
            }
            names = [slot.node.name for slot in row.slots]
            row.arrange({n: _pull(homes.get(n, at[n]), neighbors.get(n, []), at) for n in names})


def _pull(home: float, linked: list[tuple[str, float]], at: dict[str, float]) -> float:
    """Return a place between a node's home and the weighted mean of its neighbors."""
    total = math.fsum(weight for _, weight in linked)
    if not total:
        return home
    mean = math.fsum(weight * at[other] for other, weight in linked) / total
    return (1 - PULL) * home + PULL * mean


def _bands(
    view: CircuitDiagram, keys: list[Key], pitch: float, header: float, thin: float
) -> tuple[list[Band], dict[Key, float]]:
    """Return the bands and the height of each row; y grows downward, the last layer is on top."""
    bands: list[Band] = []
    heights: dict[Key, float] = {}
    y = 0.0
    for name, layers in _band_names(view, {key[0] for key in keys}):
        own = [key for key in keys if key[0] in layers]
        tall = header + (pitch * len(own) if own else thin)
        for index, key in enumerate(sorted(own, reverse=True)):
            heights[key] = y + header + (index + 0.5) * pitch
        inner = tuple(layer for layer in layers if 0 <= layer < view.layers)
        bands.append(Band(name, y, y + tall, inner))
        y += tall
    return bands[::-1], heights


def _band_names(view: CircuitDiagram, used: set[int]) -> list[tuple[str, tuple[int, ...]]]:
    """Return name and layers of each band from top to bottom; empty stretches become one."""
    names: list[tuple[str, tuple[int, ...]]] = []
    if view.layers in used:
        names.append(("logits", (view.layers,)))
    empty: list[int] = []
    for layer in [*range(view.layers - 1, -1, -1), None]:
        if layer is not None and layer not in used:
            empty.append(layer)
            continue
        if len(empty) >= 3:
            names.append((f"layers {empty[-1]}–{empty[0]}", tuple(empty)))
        else:
            names += [(f"layer {one}", (one,)) for one in empty]
        empty = []
        if layer is not None:
            names.append((f"layer {layer}", (layer,)))
    if -1 in used:
        names.append(("embeddings", (-1,)))
    return names
