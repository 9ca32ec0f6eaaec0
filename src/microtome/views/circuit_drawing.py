"""How a circuit is drawn: bands, gray marks, edges under nodes, labels, keys, counts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from microtome.views import colorbar, numbers
from microtome.views.circuit_edges import Route, port_place, route
from microtome.views.circuit_layout import LABEL_SIZE, Band, Placed, lay_out, natural_width
from microtome.views.glyphs import shorten, text_width, visible_label
from microtome.views.markup import Markup, coordinate, join, tag
from microtome.views.palette import Shade, shade, symmetric_limit
from microtome.views.view import svg

if TYPE_CHECKING:
    from microtome.views.circuit import CircuitDiagram, Edge, Node

NAMES, MARK, PER_ROW = 84.0, 7.0, 16
THINNEST, THICKEST, MANY = 0.8, 5.0, 80
ALIKE = 0.3
"""Share of the full width that edges have which are all of one strength."""

GROUP_DASHES: tuple[tuple[float, ...], ...] = (
    (), (1.6, 0.8), (0.35, 0.6), (2.4, 0.6, 0.35, 0.6), (1.0, 1.0), (3.0, 1.2),
)  # fmt: skip
"""Dashes by which groups of edges are told apart without color, in widths."""


class CircuitDrawing:
    """One circuit diagram at one width.

    Stages say when nodes (by name) and edges are shown: a node or edge without one always.
    """

    def __init__(
        self,
        view: CircuitDiagram,
        width: int,
        stages: Mapping[str | Edge, Mapping[str, str]] | None = None,
    ) -> None:
        """Lay out the diagram for a width in pixels."""
        self.view = view
        self.stages = stages or {}
        self.narrow = width < 520
        heads = view.n_heads or 0
        self.per_row = min(heads, PER_ROW) or 1
        lane = 0.0 if not heads else MARK * (self.per_row + (2 if view.has_mlp else 0)) + 28
        left = 8.0 if self.narrow else NAMES
        widest = width - left - (8.0 if self.narrow else lane)
        area = widest if self.narrow else natural_width(view, widest)
        rows = math.ceil(heads / self.per_row)
        self.layout = lay_out(
            view,
            left=left,
            right=left + area,
            # Many edges between near rows need height, or they all run flat.
            pitch=44.0 if view.layers > 8 and len(view.drawn) < MANY else 60.0,
            header=20.0 + MARK * max(0, rows - 1) if self.narrow else 0.0,
            thin=2.0 if self.narrow else max(20.0, MARK * rows + 10),
        )
        self.right = left + area + (0.0 if self.narrow else lane)
        self.lane = self.right - (lane - 28 if heads else 0.0)
        self.number = {node.name: index for index, node in enumerate(view.nodes)}
        self.edge_limit = max((abs(edge.weight) for edge in view.drawn), default=1.0)
        self.weighted = len({abs(edge.weight) for edge in view.drawn}) > 1
        strengths = [node.strength for node in view.nodes]
        self.limit = view.limit or symmetric_limit(strengths)
        self.groups = view.group_names
        self.ports: dict[str, set[str]] = defaultdict(set)
        for edge in view.drawn:
            self.ports[edge.target] |= {edge.port} - {""}

    def draw(self) -> Markup:
        """Return the whole drawing."""
        layout = self.layout
        keys, height = self._keys()
        routes = route(self.view.drawn, layout.placed, left=layout.left, right=layout.right)
        # The strongest edges are drawn last, on top of the weak ones.
        edges = join(self._edge(one) for one in reversed(routes))
        nodes = join(self._node(one) for one in layout.placed.values())
        labels = join(self._label(one) for one in layout.placed.values())
        empty = None
        if not layout.placed:
            empty = tag(
                "text",
                "No part of the model is in the circuit.",
                x=layout.left,
                y=layout.height + 16,
                class_="label",
            )
        top = layout.height + (32 if empty else 16)
        label = (
            f"circuit diagram: {len(self.view.nodes)} nodes and {len(self.view.drawn)} edges "
            f"in {self.view.layers} layers"
        )
        parts = (
            join(self._line(band) for band in layout.bands),
            tag("g", edges, class_="edges"),
            join(self._band(band) for band in layout.bands),
            tag("g", nodes, data_grid=max(1, len(layout.placed))),
            labels,
            empty,
            tag("g", keys, transform=f"translate(0 {coordinate(top)})"),
        )
        return svg(max(self.right, 260), top + height, label, *parts, class_="mt-circuit")

    def _line(self, band: Band) -> Markup:
        if band.top <= 0:
            return Markup("")
        path = f"M0 {coordinate(band.top)}H{coordinate(self.right)}"
        return tag("path", d=path, class_="hair")

    def _band(self, band: Band) -> Markup:
        y = band.top + 14 if self.narrow else (band.top + band.bottom) / 2 + 4
        return tag("text", band.name, x=0, y=y, class_="label halo") + self._marks(band)

    def _marks(self, band: Band) -> Markup:
        """One gray mark per head and MLP of a layer; those in the circuit are dark."""
        heads = self.view.n_heads
        if not heads or len(band.layers) != 1:
            return Markup("")
        layer = band.layers[0]
        own = [node for node in self.view.nodes if node.layer == layer]
        inside = {node.index for node in own if node.kind == "head"}
        rows = math.ceil(heads / self.per_row)
        middle = (band.top + band.bottom) / 2
        top = band.top + 10 if self.narrow else middle - MARK * (rows - 1) / 2
        parts = []
        for head in range(heads):
            x = self.lane + MARK * (head % self.per_row) + 3
            y = top + MARK * (head // self.per_row)
            title = tag("title", f"layer {layer}, head {head}")
            look, radius = ("within", 2.6) if head in inside else ("dot", 1.6)
            parts.append(tag("circle", title, cx=x, cy=y, r=radius, class_=look))
        if self.view.has_mlp:
            within = any(node.kind == "mlp" for node in own)
            x = self.lane + MARK * (self.per_row + 1) + 3
            parts.append(_mlp_mark(layer, within, x, top + MARK * (rows - 1) / 2))
        return tag("g", join(parts), class_="marks")

    def _edge(self, one: Route) -> Markup:
        edge = one.edge
        share = abs(edge.weight) / self.edge_limit if self.weighted else ALIKE
        wide = THINNEST + (THICKEST - THINNEST) * share
        if len(self.view.drawn) > MANY:
            wide = 0.6 + 0.7 * (wide - THINNEST)
        start, first, second, end = (f"{coordinate(x)} {coordinate(y)}" for x, y in one.points)
        look, dash = self._look(edge, wide)
        stage = dict(self.stages.get(edge, {}))
        look = f"{look} {stage.pop('class_', '')}".strip()
        unit = f"{numbers.THIN}{self.view.unit}" if self.view.unit else ""
        port = f" ({edge.port})" if edge.port else ""
        title = f"{edge.source} → {edge.target}{port} · {numbers.signed(edge.weight)}{unit}"
        title += f" · {edge.group}" if edge.group else ""
        return tag(
            "path",
            tag("title", title),
            d=f"M{start}C{first} {second} {end}",
            class_=look,
            fill="none",
            stroke_width=wide,
            stroke_dasharray=dash,
            stroke_opacity=coordinate(max(0.6 if edge.group else 0.0, 0.35 + 0.6 * share)),
            data_ends=f"{self.number[edge.source]} {self.number[edge.target]}",
            **stage,
        )

    def _look(self, edge: Edge, wide: float) -> tuple[str, str | None]:
        """Class and dash of an edge: by its group if it has one, otherwise by its sign."""
        if edge.group:
            index = self.groups.index(edge.group)
            parts = GROUP_DASHES[index % len(GROUP_DASHES)]
            dash = " ".join(coordinate(part * (2 + wide)) for part in parts)
            return f"edge in-group {ring_class(index)}", dash or None
        if edge.weight > 0:
            return "edge up", None
        return "edge down", f"{coordinate(3 + wide)} {coordinate(2 + wide)}"

    def _tone(self, node: Node) -> Shade:
        return shade(node.strength, self.limit)

    def _node(self, placed: Placed) -> Markup:
        node = placed.node
        tone = self._tone(node)
        unit = f"{numbers.THIN}{self.view.unit}" if self.view.unit else ""
        shown = "" if math.isnan(node.strength) else f"{numbers.signed(node.strength)}{unit}"
        text = " · ".join(part for part in (node.text, node.group, shown) if part)
        falls = " falls" if tone.css == "neg" else ""
        mark = _shape(
            placed,
            placed.radius,
            tag("title", text),
            class_=f"node {tone.css}{falls}",
            style=tone.style,
            fill=tone.hex,
        )
        ring = None
        if node.group:
            kind = ring_class(self.groups.index(node.group))
            ring = _shape(placed, placed.radius + 3, class_=f"node-ring {kind}", fill="none")
        parts = ring, mark, self._notches(placed)
        stage = self.stages.get(node.name, {})
        return tag("g", *parts, data_node=self.number[node.name], **stage)

    def _notches(self, placed: Placed) -> Markup | None:
        if placed.node.kind != "head" or not self.ports[placed.node.name]:
            return None
        places = [port_place(placed, port) for port in ("q", "k", "v")]
        path = "".join(f"M{coordinate(x)} {coordinate(y - 2)}v4" for x, y in places)
        return tag("path", d=path, class_="outline", stroke_width="1.5")

    def _label(self, placed: Placed) -> Markup:
        x, _, _, _ = placed.text
        stage = dict(self.stages.get(placed.node.name, {}))
        look = f"site halo {stage.pop('class_', '')}".strip()
        return tag(
            "text", placed.label, x=x, y=placed.y + 4, class_=look, font_size=LABEL_SIZE, **stage
        )

    def _keys(self) -> tuple[Markup, float]:
        """The keys beneath the diagram: edges, fill, groups, and what is not drawn."""
        width = max(self.right, 260)
        parts, y = [], 0.0
        items = self._edge_keys() + self._group_keys() + self._width_key()
        x = 0.0
        for mark, room, text in items:
            wide = room + text_width(text, 12) + 24
            if x and x + wide > width:
                x, y = 0.0, y + 22
            label = tag("text", text, x=room, y=12, class_="label")
            move = f"translate({coordinate(x)} {coordinate(y)})"
            parts.append(tag("g", mark, label, transform=move))
            x += wide
        y += 28 if items else 0
        if any(math.isfinite(node.strength) for node in self.view.nodes):
            unit = f" ({self.view.unit})" if self.view.unit else ""
            bar, _ = colorbar.color_bar(self.limit, title=f"fill: {self.view.strength_label}{unit}")
            parts.append(tag("g", bar, transform=f"translate(0 {coordinate(y + 4)})"))
            y += colorbar.HEIGHT + 12
        remark = self.view.remark()
        if self.view.n_heads and not self.narrow:
            remark += " Marks at the right: the heads of each layer by number" + (
                ", then its MLP; " if self.view.has_mlp else "; "
            )
            remark += "dark ones are in the circuit."
        for line in _wrap(remark, width):
            y += 18
            parts.append(tag("text", line, x=0, y=y - 4, class_="label"))
        return join(parts), y + 4

    def _edge_keys(self) -> list[tuple[Markup, float, str]]:
        """Mark, room for it, and text of each key about edges."""
        if all(edge.group for edge in self.view.drawn):
            return []
        solid = tag("path", d="M0 8h28", class_="edge up", stroke_width=2.5)
        dashed = tag(
            "path",
            d="M0 8h28",
            class_="edge down",
            stroke_width=2.5,
            stroke_dasharray="5.5 4.5",
        )
        return [(solid, 36, "raises"), (dashed, 36, "lowers")]

    def _width_key(self) -> list[tuple[Markup, float, str]]:
        if not self.weighted:
            return []
        unit = f" {self.view.unit}" if self.view.unit else ""
        return [(Markup(""), 0, f"widest edge: {numbers.number(self.edge_limit)}{unit}")]

    def _group_keys(self) -> list[tuple[Markup, float, str]]:
        keys = []
        rings = {node.group for node in self.view.nodes}
        lines = {edge.group: edge for edge in self.view.drawn}
        for index, name in enumerate(self.groups):
            text = shorten(visible_label(name), 40)
            mark, room = Markup(""), 0.0
            if name in lines:
                look, dash = self._look(lines[name], 2.0)
                line = {"class_": look, "stroke_width": 2.5, "stroke_dasharray": dash}
                mark, room = tag("path", d="M0 8h28", **line), 36.0
            if name in rings:
                place = {"cx": room + 8, "cy": 8, "r": 6}
                look = f"node-ring {ring_class(index)}"
                mark += tag("circle", class_=look, fill="none", **place)
                room += 22.0
            keys.append((mark, room, text))
        return keys


def ring_class(index: int) -> str:
    """Return the class of a group's ring; blue, the first category, is left to negative fills."""
    return f"c{1 + index % 7}"


def _mlp_mark(layer: int, within: bool, x: float, y: float) -> Markup:
    title = tag("title", f"layer {layer}, MLP")
    look, size = ("within", 5.0) if within else ("dot", 3.2)
    box = {"x": x - size / 2, "y": y - size / 2, "width": size, "height": size}
    return tag("rect", title, class_=look, rx=1, **box)


def _shape(placed: Placed, radius: float, *children: object, **look: object) -> Markup:
    x, y, kind = placed.x, placed.y, placed.node.kind
    if kind == "head":
        return tag("circle", *children, cx=x, cy=y, r=radius, **look)
    if kind == "latent":
        angles = [math.radians(60 * corner) for corner in range(6)]
        corners = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
        points = " ".join(f"{coordinate(a)},{coordinate(b)}" for a, b in corners)
        return tag("polygon", *children, points=points, **look)
    # MLPs are rounded squares, neurons squares, the two ends of the model flat pills.
    half = radius if kind in ("mlp", "neuron") else 0.7 * radius
    corner = {"mlp": 4.0, "neuron": 0.0}.get(kind, half)
    box = {"x": x - radius, "y": y - half, "width": 2 * radius, "height": 2 * half, "rx": corner}
    return tag("rect", *children, **box, **look)


def _wrap(text: str, width: float) -> list[str]:
    lines: list[str] = []
    # Not split(): a thin space inside a number must not break.
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, 12) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
