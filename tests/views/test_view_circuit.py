"""Circuit diagrams: the layout keeps its promises, and nothing is left out in silence."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from xml.etree.ElementTree import Element

import gallery_data
import numpy as np
import pytest
from gallery_data import SVG

from microtome.errors import ShapeError, UnknownNameError
from microtome.views import CircuitDiagram, Edge, Node
from microtome.views.circuit_drawing import CircuitDrawing
from microtome.views.circuit_edges import route
from microtome.views.circuit_layout import Box, place

Parse = Callable[[str], Element]


def _overlap(first: Box, second: Box) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )


def _crowd() -> CircuitDiagram:
    """A layer of 40 heads with long names and groups, more than fits one row."""
    nodes = [
        Node(
            f"a0.h{k}",
            "head",
            0,
            k,
            label=f"head {k} of the {'very ' * (k % 4)}first layer",
            group="g",
        )
        for k in range(40)
    ]
    return CircuitDiagram([*nodes, Node("logits", "logits")], [Edge("a0.h3", "logits", 1.0)])


@pytest.mark.parametrize("width", [340, 700, 1040])
@pytest.mark.parametrize(
    "view",
    [
        gallery_data.circuit(),
        gallery_data.big_circuit(edges=10),
        gallery_data.big_circuit(edges=200),
        gallery_data.big_circuit(edges=200, layers=24, heads=16),
        _crowd(),
    ],
    ids=["small", "10 edges", "200 edges", "200 edges in 24 layers", "crowd"],
)
def test_labels_and_nodes_do_not_overlap(view: CircuitDiagram, width: int) -> None:
    layout = CircuitDrawing(view, width).layout
    boxes = [box for placed in layout.placed.values() for box in (placed.mark, placed.text)]
    clashes = [pair for pair in combinations(boxes, 2) if _overlap(*pair)]
    assert not clashes
    assert len(layout.placed) == len(view.nodes)
    for placed in layout.placed.values():
        assert placed.mark[0] >= layout.left - 0.01, placed
        assert placed.text[2] <= layout.right + 0.01, placed
        assert 0 <= placed.mark[1] < placed.mark[3] <= layout.height


def test_layers_rise_from_embeddings_to_logits() -> None:
    layout = CircuitDrawing(gallery_data.circuit(), 1040).layout
    height = {name: placed.y for name, placed in layout.placed.items()}
    order = ["embed", "a0.h4", "m0", "a1.h2", "a2.h5", "m2", "a3.h1", "m3", "logits"]
    assert [height[name] for name in order] == sorted((height[n] for n in order), reverse=True)
    assert height["a3.h1"] == height["a3.h6"]
    tops = [band.top for band in layout.bands]
    assert tops == sorted(tops, reverse=True)


def test_every_edge_starts_above_its_source_and_ends_below_its_target() -> None:
    view = gallery_data.big_circuit(edges=200)
    layout = CircuitDrawing(view, 1040).layout
    routes = route(view.drawn, layout.placed, left=layout.left, right=layout.right)
    assert len(routes) == 200
    for one in routes:
        source, target = layout.placed[one.edge.source], layout.placed[one.edge.target]
        assert one.points[0] == (source.x, source.y - source.radius)
        assert one.points[-1] == (target.x, target.y + target.radius)


def test_an_edge_bends_around_a_node_in_its_way() -> None:
    nodes = [Node("a", "embed"), Node("b", "head", 0, 0), Node("c", "logits")]
    view = CircuitDiagram(nodes, [Edge("a", "c", 1.0)])
    layout = CircuitDrawing(view, 700).layout
    placed = dict(layout.placed)
    # Put the three in one column: the straight line would run through b.
    placed = {k: type(p)(p.node, 200.0, p.y, p.radius, p.label) for k, p in placed.items()}
    (one,) = route(view.drawn, placed, left=0, right=400)
    share = np.linspace(0.05, 0.95, 60)[:, None]
    basis = np.hstack(
        [(1 - share) ** 3, 3 * share * (1 - share) ** 2, 3 * share**2 * (1 - share), share**3]
    )
    path = basis @ np.array(one.points)
    distance = np.hypot(path[:, 0] - placed["b"].x, path[:, 1] - placed["b"].y)
    assert distance.min() > placed["b"].radius


def test_place_is_the_least_squares_solution() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        count = int(rng.integers(1, 7))
        wanted = list(rng.uniform(0, 400, count))
        reach = [(float(a), float(b)) for a, b in rng.uniform(4, 20, (count, 2))]
        found = place(wanted, reach, gap=10, left=0, right=600)
        gaps = [
            (found[k + 1] - reach[k + 1][0]) - (found[k] + reach[k][1]) for k in range(count - 1)
        ]
        assert all(gap >= 10 - 1e-9 for gap in gaps)
        assert found[0] - reach[0][0] >= -1e-9
        assert found[-1] + reach[-1][1] <= 600 + 1e-9
        cost = sum((a - b) ** 2 for a, b in zip(found, wanted, strict=True))
        # No feasible neighbor is better: try many small feasible moves.
        for _ in range(200):
            other = list(np.array(found) + rng.normal(0, 2, count))
            inside = other[0] >= reach[0][0] and other[-1] + reach[-1][1] <= 600
            apart = all(
                other[k + 1] - reach[k + 1][0] - other[k] - reach[k][1] >= 10
                for k in range(count - 1)
            )
            if inside and apart:
                assert sum((a - b) ** 2 for a, b in zip(other, wanted, strict=True)) >= cost - 1e-6


def test_wanted_places_that_fit_are_kept() -> None:
    assert place([50, 200], [(10, 10), (10, 10)], gap=10, left=0, right=300) == [50, 200]


def test_sign_is_dash_and_strength_is_width(parse: Parse) -> None:
    nodes = [Node("e", "embed"), Node("l", "logits"), Node("m0", "mlp", 0)]
    edges = [Edge("e", "l", 2.0), Edge("e", "m0", -1.0), Edge("m0", "l", 0.5)]
    root = parse(CircuitDiagram(nodes, edges).to_svg())
    group = next(g for g in root.iter(f"{SVG}g") if g.attrib.get("class") == "edges")
    drawn = {path.find(f"{SVG}title").text: path for path in group}  # type: ignore[union-attr]
    strong, negative, weak = (
        drawn["e → l · +2.00"],
        drawn["e → m0 · −1.00"],
        drawn["m0 → l · +0.500"],
    )
    assert "stroke-dasharray" in negative.attrib
    assert "stroke-dasharray" not in strong.attrib
    widths = [float(p.attrib["stroke-width"]) for p in (strong, negative, weak)]
    assert widths == sorted(widths, reverse=True)
    assert list(group)[-1] is strong, "the strongest edge lies on top"


def test_edges_know_their_ends(parse: Parse) -> None:
    nodes = [Node("e", "embed"), Node("m0", "mlp", 0), Node("l", "logits")]
    root = parse(CircuitDiagram(nodes, [Edge("m0", "l", 1.0)]).to_svg())
    (edge,) = [path for path in root.iter(f"{SVG}path") if "data-ends" in path.attrib]
    numbers = {
        group.findtext(f".//{SVG}title"): group.attrib["data-node"]
        for group in root.iter(f"{SVG}g")
        if "data-node" in group.attrib
    }
    assert edge.attrib["data-ends"] == f"{numbers['m0']} {numbers['l']}"


def test_shapes_tell_kinds_apart(parse: Parse) -> None:
    kinds = ("embed", "head", "mlp", "neuron", "latent", "logits")
    nodes = [Node(kind, kind, 0, k) for k, kind in enumerate(kinds)]
    root = parse(CircuitDiagram(nodes).to_svg())
    marks = {
        node.find(f"{SVG}title").text: node.tag.removeprefix(SVG)  # type: ignore[union-attr]
        for node in root.iter()
        if node.attrib.get("class", "").startswith("node ")
    }
    assert marks["head"] == "circle"
    assert marks["latent"] == "polygon"
    assert marks["mlp"] == marks["neuron"] == "rect"


def test_ports_are_notches(parse: Parse) -> None:
    nodes = [Node("e", "embed"), Node("h", "head", 0, 0)]
    layout = CircuitDrawing(
        CircuitDiagram(nodes, [Edge("e", "h", 1.0, "q"), Edge("e", "h", 1.0, "v")]), 500
    ).layout
    edges = [Edge("e", "h", 1.0, port) for port in ("q", "k", "v")]
    ends = [r.points[-1][0] for r in route(edges, layout.placed, left=0, right=500)]
    assert ends == sorted(ends)
    assert ends[1] == layout.placed["h"].x


def test_what_is_not_drawn_is_counted() -> None:
    view = gallery_data.big_circuit(edges=200)
    assert len(view.drawn) == 200
    assert view.remark().startswith("200 of 512 edges are drawn")
    assert "58 of 144 heads in the circuit" in view.remark()
    everything = CircuitDiagram(view.nodes, view.drawn)
    assert everything.remark() == ""


def test_edges_that_are_not_finite_or_zero_are_left_out_and_counted() -> None:
    nodes = [Node("e", "embed"), Node("l", "logits")]
    edges = [Edge("e", "l", math.nan), Edge("e", "l", math.inf), Edge("e", "l", 0.0)]
    view = CircuitDiagram(nodes, edges)
    assert view.drawn == []
    assert view.remark().startswith("0 of 3 edges are drawn")
    assert "nan" not in view.to_svg()


def test_parts_outside_the_circuit_are_gray_marks(parse: Parse) -> None:
    root = parse(gallery_data.circuit().to_svg())
    marks = [g for g in root.iter(f"{SVG}g") if g.attrib.get("class") == "marks"]
    assert len(marks) == gallery_data.LAYERS
    classes = [mark.attrib["class"] for group in marks for mark in group]
    assert classes.count("within") == 5 + 3
    assert classes.count("dot") == gallery_data.LAYERS * (gallery_data.HEADS + 1) - 8


def test_empty_stretches_of_layers_become_one_band() -> None:
    nodes = [Node("e", "embed"), Node("a20.h1", "head", 20, 1)]
    layout = CircuitDrawing(CircuitDiagram(nodes, n_layers=24, n_heads=4), 1040).layout
    names = [band.name for band in layout.bands]
    assert names == ["embeddings", "layers 0–19", "layer 20", "layers 21–23"]


@pytest.mark.parametrize(
    "view",
    [
        CircuitDiagram(()),
        CircuitDiagram((), n_layers=2, n_heads=4),
        CircuitDiagram((Node("a0.h0", "head", 0, 0, strength=math.inf),)),
        CircuitDiagram((Node("m0", "mlp"),), n_layers=1, n_heads=200),
    ],
)
def test_small_and_empty_circuits_are_drawn(parse: Parse, view: CircuitDiagram) -> None:
    for width in (340, 1040):
        assert "nan" not in view.to_svg(width)
        parse(view.to_svg(width))
    if not view.nodes:
        assert "No part of the model is in the circuit" in view.to_svg()


def test_collapsed_groups_add_up() -> None:
    nodes = [
        Node("e", "embed"),
        Node("a1.h0", "head", 1, 0, strength=1.0, group="movers"),
        Node("a1.h1", "head", 1, 1, strength=2.0, group="movers"),
        Node("a2.h1", "head", 2, 1, strength=4.0, group="movers"),
        Node("l", "logits"),
    ]
    edges = [
        Edge("e", "a1.h0", 0.5),
        Edge("e", "a1.h1", 0.25),
        Edge("a1.h0", "l", -1.0),
        Edge("a1.h0", "a2.h1", 2.0),
    ]
    joined = CircuitDiagram(nodes, edges).collapsed()
    assert [node.text for node in joined.nodes] == ["e", "movers ×2", "a2.h1", "l"]
    assert joined.nodes[1].strength == 3.0
    weights = {(e.source, e.target): e.weight for e in joined.edges}
    name = joined.nodes[1].name
    assert weights == {("e", name): 0.75, (name, "l"): -1.0, (name, "a2.h1"): 2.0}


def test_hostile_names(parse: Parse) -> None:
    name = "<script>'\"&\u202e" + "x" * 300
    view = CircuitDiagram((Node(name, "head"), Node("l", "logits")), (Edge(name, "l", 1.0),))
    root = parse(view.to_svg())
    assert not list(root.iter(f"{SVG}script"))
    assert float(root.attrib["width"]) <= 1040


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (
            lambda: CircuitDiagram((Node("a", "head"), Node("a", "head"))),
            ShapeError,
            "share a name",
        ),
        (lambda: CircuitDiagram((Node("a", "head", 4),), n_layers=4), ShapeError, "layer 4"),
        (lambda: CircuitDiagram((Node("a", "head", -1),)), ShapeError, "layer -1"),
        (lambda: CircuitDiagram((Node("a", "head", 0, 8),), n_heads=8), ShapeError, "head 8"),
        (lambda: CircuitDiagram((Node("a", "nose"),)), ShapeError, "'nose'"),
        (
            lambda: CircuitDiagram((Node("a", "head"),), (Edge("a", "a", 1.0),)),
            ShapeError,
            "to itself",
        ),
        (
            lambda: CircuitDiagram((Node("a0.h1", "head"),), (Edge("a0.h1", "a0.h2", 1.0),)),
            UnknownNameError,
            r"no node 'a0\.h2'; nearest: a0\.h1",
        ),
    ],
)
def test_bad_input_is_refused(
    build: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        build()
