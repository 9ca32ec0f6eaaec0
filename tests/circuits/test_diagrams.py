"""Circuits as pictures: what is drawn is what the circuit holds, and large ones in time."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest

from microtome.circuits import Circuit, FaithfulnessCurve, diagram, difference, nested, slider
from microtome.circuits.drawing.growing import STAGES, spread_sizes
from microtome.circuits.exchange import Shape
from microtome.circuits.parts import part, scores_by_name
from microtome.core.stats import Interval
from microtome.errors import ConfigError, ShapeError, UnknownNameError
from microtome.views import CircuitDiagram, CircuitSlider, Edge, Node, Stage
from microtome.views.numbers import count

UNIVERSE = Shape.uniform(2, 2).universe("edge")
KEPT = ("embed->a0.h1<q>", "embed->a0.h1<v>", "a0.h1->m1", "m1->logits")
SCORES = dict(zip(KEPT, (0.5, -0.25, 2.0, 1.0), strict=True))
CIRCUIT = Circuit(KEPT, UNIVERSE, "x", level="edge")


def random_circuit(shape: Shape, size: int, *, seed: int = 0) -> tuple[Circuit, dict[str, float]]:
    """A circuit of the strongest of random scores, a few parts much stronger than others."""
    graph, rng = shape.graph(), np.random.default_rng(seed)
    out, into = (np.exp(rng.normal(0, 1.2, len(x))) for x in (graph.sources, graph.targets))
    values = rng.normal(size=graph.n_edges) * out[graph.pairs[:, 0]] * into[graph.pairs[:, 1]]
    kept = set(np.argsort(-np.abs(values))[:size].tolist())
    parts = tuple(edge for i, edge in enumerate(graph.edges) if i in kept)
    scores = dict(zip(graph.edges, values.tolist(), strict=True))
    return Circuit(parts, graph.edges, "random", level="edge"), scores


@pytest.mark.parametrize(
    ("name", "kind", "layer", "index", "port", "place"),
    [
        ("embed", "embed", 0, 0, "", ""),
        ("logits@end", "logits", 0, 0, "", "end"),
        ("a3.h11<k>", "head", 3, 11, "k", ""),
        ("a3.h1<k>@quote", "head", 3, 1, "k", "quote"),
        ("a3.h1@quote<k>", "head", 3, 1, "k", "quote"),
        ("a3.g1<v>", "group", 3, 1, "v", ""),
        ("m12", "mlp", 12, 0, "", ""),
        ("m2.n17", "neuron", 2, 17, "", ""),
        ("blocks.5.mlp.out/sae[latent=40]", "latent", 5, 40, "", ""),
    ],
)
def test_names_say_where_a_part_stands(
    name: str, kind: str, layer: int, index: int, port: str, place: str
) -> None:
    found = part(name)
    assert (found.kind, found.layer, found.index) == (kind, layer, index)
    assert (found.port, found.place) == (port, place)
    assert found.node == name.replace(f"<{port}>", "")


@pytest.mark.parametrize("name", ["a0", "a0.h1<z>", "n3", "", "m2.h1", "a0.h1->m0", "blocks.1.x"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="is no part"):
        part(name)


def test_nodes_edges_ports_and_strengths_follow_the_circuit() -> None:
    view = CIRCUIT.diagram(SCORES)
    assert {node.name: node.kind for node in view.nodes} == {
        "embed": "embed", "a0.h1": "head", "m1": "mlp", "logits": "logits"
    }  # fmt: skip
    assert set(view.edges) == {
        Edge("embed", "a0.h1", 0.5, "q"), Edge("embed", "a0.h1", -0.25, "v"),
        Edge("a0.h1", "m1", 2.0), Edge("m1", "logits", 1.0),
    }  # fmt: skip
    strength = {node.name: node.strength for node in view.nodes}
    assert (strength["embed"], strength["a0.h1"], strength["m1"]) == (0.25, 2.0, 1.0)
    assert math.isnan(strength["logits"])
    assert (view.n_layers, view.n_heads) == (2, 2)
    assert "1 of 4 heads in the circuit" in view.remark()


def test_edges_into_groups_reach_the_heads_in_use() -> None:
    universe = Shape.uniform(2, 4, kv_heads=2).universe("edge")
    parts = ("m0->a1.g1<k>", "m0->a1.g0<v>", "a1.h3->logits")
    view = Circuit(parts, universe, "x", level="edge").diagram(dict.fromkeys(parts, 1.0))
    ends = {(e.target, e.port, e.weight) for e in view.edges if e.source == "m0"}
    assert ends == {("a1.h3", "k", 1.0), ("a1.h0", "v", 0.5), ("a1.h1", "v", 0.5)}


def test_without_scores_nothing_pretends_to_a_sign() -> None:
    view = CIRCUIT.diagram()
    assert {edge.group for edge in view.edges} == {"edge of the circuit"}
    text = view.to_svg()
    assert "raises" not in text
    assert "widest edge" not in text
    assert all(math.isnan(node.strength) for node in view.nodes)


def test_node_circuits_neurons_latents_and_places_are_drawn() -> None:
    parts = ("a0.h1@quote", "m1.n7@end", "blocks.1.resid_post/sae[latent=5]")
    circuit = Circuit(parts, parts, "x")
    weights = {(parts[0], parts[1]): 1.5}
    view = diagram(circuit, {parts[0]: 0.5}, connections=weights)
    assert [(n.kind, n.text) for n in view.nodes] == [
        ("head", "a0.h1@quote"), ("neuron", "m1.n7@end"), ("latent", "sae 5")
    ]  # fmt: skip
    assert view.edges == [Edge(parts[0], parts[1], 1.5)]
    assert view.n_heads is None


def test_classes_are_rings_and_collapse() -> None:
    circuit, scores = random_circuit(Shape.uniform(2, 4), 60)
    classes = {"a0.h0": "mover", "a0.h1": "mover", "a0.h2": "mover"}
    view = circuit.diagram(scores, classes=classes)
    assert {n.name for n in view.nodes if n.group == "mover"} == set(classes)
    joined = view.collapsed()
    assert sum(node.text == "mover ×3" for node in joined.nodes) == 1
    total = sum(e.weight for e in view.edges if e.source in classes and e.target not in classes)
    drawn = next(node.name for node in joined.nodes if node.text == "mover ×3")
    found = sum(e.weight for e in joined.edges if e.source == drawn)
    assert found == pytest.approx(total)


def test_ten_thousand_edges_are_drawn_and_counted_in_time() -> None:
    circuit, scores = random_circuit(Shape.uniform(12, 12), 10_000)
    start = time.perf_counter()
    page = circuit.diagram(scores).to_document()
    assert time.perf_counter() - start < 10  # about half a second where nothing else runs
    assert f"200 of {count(10_000)} edges are drawn" in page
    assert re.search(r"\d+ of 1\d\d nodes of the circuit are drawn", page)
    assert len(page) < 2_000_000


def test_more_nodes_than_can_be_told_apart_are_refused() -> None:
    parts = tuple(f"m0.n{k}" for k in range(10_000))
    start = time.perf_counter()
    with pytest.raises(ConfigError, match="10000 nodes cannot be read; at most 400"):
        diagram(Circuit(parts, parts, "x"))
    assert time.perf_counter() - start < 5


def curve(sizes: tuple[int, ...]) -> FaithfulnessCurve:
    values = tuple(Interval(1 - 1 / (1 + s), 0.0, 1.0) for s in sizes)
    return FaithfulnessCurve(sizes, values, "resample", "validation")


def stepped(sizes: tuple[int, ...] = (0, 1, 5, 20), **options: int) -> CircuitSlider:
    circuit, scores = random_circuit(Shape.uniform(2, 4), 40)
    ranking = sorted(circuit.parts, key=lambda edge: -abs(scores[edge]))
    circuits = nested(ranking, [s for s in sizes if s], universe=circuit.universe)
    return slider(circuits, scores, curve=curve(sizes), **options)


def test_a_slider_shows_nested_circuits_with_their_faithfulness() -> None:
    view = stepped()
    assert [stage.size for stage in view.stages] == [1, 5, 20]
    assert [len(stage.edges) for stage in view.stages] == [1, 5, 20]
    assert view.stages[0].edges < view.stages[1].edges < view.stages[2].edges
    for stage in view.stages:
        ends = {name for edge in stage.edges for name in (edge.source, edge.target)}
        assert stage.nodes == ends
        assert stage.value == 1 - 1 / (1 + stage.size)
    assert len(view.diagram.edges) == 20
    assert view.chosen == 2


def test_the_page_of_a_slider_is_whole_and_shows_the_chosen_size() -> None:
    view = stepped(chosen=5)
    page = view.to_document()
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").split("</style>")[-1]
    assert 'type="range" min="0" max="2" step="1" value="1"' in page
    assert "5 edges: faithfulness" in page
    drawing = page.split('mt-wide">')[1].split("mt-narrow")[0]
    edges = re.findall(r'<path d="[^"]*" class="(edge [^"]*)"[^>]*data-ends', drawing)
    assert sum("off" not in look.split() for look in edges) == 5
    assert len(edges) == 20
    assert page.count('class="chosen"') == 3


def test_stages_are_checked() -> None:
    whole = CircuitDiagram((Node("m0", "mlp"),))
    with pytest.raises(ShapeError, match="growing size"):
        CircuitSlider(whole, [Stage(2, frozenset(), frozenset())] * 2)
    with pytest.raises(ShapeError, match="stage 0 is chosen of 0"):
        CircuitSlider(whole, [])
    with pytest.raises(UnknownNameError, match="'m1'"):
        CircuitSlider(whole, [Stage(1, frozenset({"m1"}), frozenset())])
    with pytest.raises(UnknownNameError, match="outside the diagram"):
        CircuitSlider(whole, [Stage(1, frozenset(), frozenset({Edge("m0", "m1", 1.0)}))])


def test_series_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ConfigError, match="no circuit can be drawn: their sizes are 4"):
        slider([CIRCUIT], max_edges=3)
    with pytest.raises(ConfigError, match="chosen=7"):
        slider([CIRCUIT], chosen=7)
    with pytest.raises(ConfigError, match="size 9; expected 1 to 4"):
        nested(KEPT, [9], universe=UNIVERSE)
    other = Circuit(KEPT[:1], UNIVERSE[:5], "x", level="edge")
    with pytest.raises(ConfigError, match="different universes"):
        slider([CIRCUIT, other])


def test_many_sizes_are_thinned_but_keep_the_chosen_one() -> None:
    circuit, scores = random_circuit(Shape.uniform(2, 4), 40)
    circuits = nested(circuit.parts, range(1, 41), universe=circuit.universe)
    view = slider(circuits, scores, chosen=17)
    assert len(view.stages) in (STAGES, STAGES + 1)
    assert view.stages[view.chosen].size == 17
    sizes = spread_sizes(200)
    assert (sizes[0], sizes[-1]) == (1, 200)
    assert list(sizes) == sorted(set(sizes))


def test_a_difference_counts_what_is_shared() -> None:
    second = Circuit((KEPT[0], KEPT[2], "embed->logits"), UNIVERSE, "y", level="edge")
    ranked = {KEPT[0]: 3.0, "embed->logits": -2.0, KEPT[2]: 1.0, KEPT[3]: 0.5}
    found = difference(CIRCUIT, second, scores=(SCORES, ranked), names=("eap", "exact"))
    assert found.shared == ("embed->a0.h1<q>", "a0.h1->m1")
    assert found.only_first == ("embed->a0.h1<v>", "m1->logits")
    assert found.only_second == ("embed->logits",)
    assert (found.jaccard, found.recall, found.precision) == (2 / 5, 0.5, 2 / 3)
    assert dict(found.recall_at) == {1: 0.25, 2: 0.25, 4: 0.75}
    view = found.diagram()
    groups = {(e.source, e.target, e.port): e.group for e in view.edges}
    assert groups["embed", "a0.h1", "q"] == "in both"
    assert groups["embed", "a0.h1", "v"] == "only eap"
    assert groups["embed", "logits", ""] == "only exact"
    assert view.group_names == ["in both", "only eap", "only exact"]
    frame = found.to_frame()
    assert frame["in"].value_counts().to_dict() == {"in both": 2, "only eap": 2, "only exact": 1}
    cells = {str(row[0]): row[1] for row in found.table().rows}
    assert cells["Jaccard index"] == 2 / 5


def test_a_circuit_does_not_differ_from_itself() -> None:
    found = difference(CIRCUIT, CIRCUIT)
    assert (found.jaccard, found.recall, found.precision) == (1.0, 1.0, 1.0)
    assert found.only_first == found.only_second == ()
    empty = Circuit((), UNIVERSE, "none", level="edge")
    assert difference(empty, empty).jaccard == 1.0
    assert math.isnan(difference(empty, CIRCUIT).recall)


def test_differences_of_other_models_are_refused() -> None:
    nodes = Circuit(("m0",), ("m0", "m1"), "x")
    with pytest.raises(ConfigError, match="of one level"):
        difference(CIRCUIT, nodes)
    with pytest.raises(ConfigError, match="different models"):
        difference(nodes, Circuit(("m0",), ("m0", "m2"), "x"))
    with pytest.raises(ConfigError, match="two names"):
        difference(nodes, nodes, names=("A", "A"))


def test_node_circuits_differ_too() -> None:
    universe = ("a0.h0", "a0.h1", "m0")
    found = difference(Circuit(("a0.h0", "m0"), universe, "x"), Circuit(("m0",), universe, "y"))
    groups = {node.name: node.group for node in found.diagram().nodes}
    assert groups == {"a0.h0": "only A", "m0": "in both"}


def test_differences_are_saved_and_loaded(tmp_path: Path) -> None:
    found = difference(CIRCUIT, CIRCUIT, scores=(SCORES, SCORES))
    again = type(found).load(found.save(tmp_path / "d.json"))
    assert again.recall_at == found.recall_at
    assert again.shared == found.shared


def test_scores_of_edges_are_taken_as_they_are() -> None:
    from microtome.circuits.edges.scores import EdgeScores

    mean = np.arange(len(UNIVERSE), dtype=float)
    scores = EdgeScores(
        UNIVERSE, mean, mean**2, n=1, method="eap", metric="m", ablation="resample",
        meaning="made up", group_size=(1, 1),
    )  # fmt: skip
    assert scores_by_name(scores)[UNIVERSE[3]] == 3.0
    view = CIRCUIT.diagram(scores)
    expected = sum(UNIVERSE.index(edge) for edge in KEPT)
    assert sum(edge.weight for edge in view.edges) == expected
    assert json.dumps(scores_by_name(None)) == "{}"
