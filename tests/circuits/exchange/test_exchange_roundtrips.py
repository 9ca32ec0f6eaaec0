"""Every exchange format gives back what was written, and the numbers of other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microtome.circuits.exchange import (
    Block,
    ScoredCircuit,
    Shape,
    attribution_graph,
    circuit_of,
    format_of,
    mib_document,
    read_attribution_graph,
    read_circuit,
    read_dot,
    read_graphml,
    read_mib,
    write_attribution_graph,
    write_circuit,
    write_dot,
    write_graphml,
    write_mib,
)
from microtome.circuits.results import Circuit, Level

FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SCORES = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: x or 0.0)


@st.composite
def shapes(draw: st.DrawFn, *, alike: bool = False) -> Shape:
    """A small model; blocks without attention or MLP, parallel and grouped ones among them."""
    kv = st.sampled_from([(1, 1), (2, 2), (2, 1), (4, 2)])
    if alike:
        heads, kv_heads = draw(kv)
        block = Block(heads, kv_heads, True, draw(st.booleans()))
        return Shape((block,) * draw(st.integers(1, 3)))
    blocks = []
    for _ in range(draw(st.integers(1, 3))):
        heads, kv_heads = draw(kv | st.just((0, 0)))
        mlp = True if not heads else draw(st.booleans())
        blocks.append(Block(heads, kv_heads, mlp, bool(heads and mlp) and draw(st.booleans())))
    return Shape(tuple(blocks))


@st.composite
def scored_circuits(
    draw: st.DrawFn, *, alike: bool = False, level: Level = "edge", all_scored: bool = False
) -> ScoredCircuit:
    """A circuit of a small model with scores of all, some or no parts."""
    universe = draw(shapes(alike=alike)).universe(level)
    kept = draw(st.sets(st.sampled_from(universe)))
    numbers = draw(st.lists(SCORES, min_size=len(universe), max_size=len(universe)))
    has = all_scored or draw(st.booleans())
    scored = set(universe) if has else draw(st.sets(st.sampled_from(universe)))
    return ScoredCircuit(
        Circuit(
            tuple(p for p in universe if p in kept),
            universe,
            draw(st.text(st.characters(codec="utf-8"), max_size=12)),
            level=level,
            model=draw(st.sampled_from(["", "5f0c2a91"])),
        ),
        {p: x for p, x in zip(universe, numbers, strict=True) if p in scored},
    )


def same(found: ScoredCircuit, expected: ScoredCircuit, *, provenance: bool = True) -> None:
    """Check that two circuits agree in every part and score."""
    assert found.circuit.parts == expected.circuit.parts
    assert found.circuit.universe == expected.circuit.universe
    assert found.circuit.level == expected.circuit.level
    assert dict(found.scores) == pytest.approx(dict(expected.scores), rel=1e-12, abs=1e-300)
    if provenance:
        assert found.circuit.method == expected.circuit.method
        assert found.circuit.model == expected.circuit.model


@FEW
@given(shapes())
def test_a_shape_is_found_again_from_its_parts(shape: Shape) -> None:
    circuit = Circuit((), shape.universe("edge"), "none", level="edge")
    found = Shape.of(circuit)
    assert found is not None
    assert found.universe("edge") == circuit.universe
    assert Shape.from_plain(shape.to_plain(), where="it") == shape


def test_a_shape_is_the_graph_of_its_model() -> None:
    from tests.small import code_model

    from microtome.circuits.graph import ComponentGraph

    graph = ComponentGraph.of(code_model())
    built = Shape.uniform(2, 4).graph()
    assert built.edges == graph.edges
    assert (built.possible == graph.possible).all()
    assert built.group_size == graph.group_size


def test_other_universes_have_no_shape() -> None:
    whole = Shape.uniform(2, 2).universe("edge")
    assert Shape.of(Circuit((), whole[1:], "x", level="edge")) is None
    assert Shape.of(Circuit((), ("a0.h0", "nose"), "x")) is None


@FEW
@given(scored=scored_circuits(alike=True, all_scored=True))
def test_mib_gives_back_circuit_and_scores(scored: ScoredCircuit, tmp_path: Path) -> None:
    path = write_mib(tmp_path / "c.json", scored, d_model=8)
    shape = Shape.of(scored.circuit)
    assert shape is not None
    found = read_mib(path, graph=shape.graph())
    same(found, scored, provenance=False)
    assert not found.absent
    assert not found.partial
    document = json.loads(path.read_text(encoding="utf-8"))
    total = math.fsum(entry["score"] for entry in document["edges"].values())
    assert total == pytest.approx(math.fsum(scored.scores.values()), abs=1e-6)


def test_mib_has_the_counts_and_names_of_gpt2_small() -> None:
    universe = Shape.uniform(12, 12).universe("edge")
    kept = ("embed->a0.h1<q>", "a0.h1->m2", "m2->logits")
    document = mib_document(
        ScoredCircuit(Circuit(kept, universe, "x", level="edge"), {kept[1]: 0.25}), d_model=768
    )
    assert document["cfg"] == {
        "n_layers": 12, "n_heads": 12, "parallel_attn_mlp": False, "d_model": 768
    }  # fmt: skip
    assert (len(document["nodes"]), len(document["edges"])) == (158, 32_491)
    assert document["edges"]["a0.h1->m2"] == {"score": 0.25, "in_graph": True}
    assert document["edges"]["input->a0.h1<q>"] == {"score": 0.0, "in_graph": True}
    assert document["edges"]["input->a0.h1<k>"]["in_graph"] is False
    inside = {name for name, entry in document["nodes"].items() if entry["in_graph"]}
    assert inside == {"input", "a0.h1", "m2", "logits"}
    assert all(set(entry) == {"score", "in_graph"} for entry in document["edges"].values())


def test_groups_are_spread_over_their_heads_and_joined_again(tmp_path: Path) -> None:
    shape = Shape.uniform(2, 4, kv_heads=2)
    edge = "m0->a1.g1<k>"
    circuit = Circuit((edge,), shape.universe("edge"), "x", level="edge")
    document = mib_document(ScoredCircuit(circuit, {edge: 3.0}), d_model=8)
    assert document["edges"]["m0->a1.h2<k>"] == {"score": 1.5, "in_graph": True}
    assert document["edges"]["m0->a1.h3<k>"] == {"score": 1.5, "in_graph": True}
    document["edges"]["m0->a1.h3<k>"]["in_graph"] = False
    path = tmp_path / "half.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    found = read_mib(path, graph=shape.graph())
    assert found.circuit.parts == found.partial == (edge,)
    assert found.scores[edge] == 3.0
    ungrouped = read_mib(path)
    assert ungrouped.circuit.parts == ("m0->a1.h2<k>",)


def test_edges_that_a_file_leaves_out_are_not_in_the_circuit(tmp_path: Path) -> None:
    universe = Shape.uniform(1, 1).universe("edge")
    document = mib_document(
        ScoredCircuit(Circuit(universe, universe, "all", level="edge")), d_model=4
    )
    del document["edges"]["input->m0"]
    path = tmp_path / "c.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    found = read_mib(path)
    assert found.absent == ("embed->m0",)
    assert set(found.circuit.parts) == set(universe) - {"embed->m0"}
    assert "embed->m0" not in found.scores


@FEW
@given(scored=scored_circuits())
def test_attribution_graphs_give_back_circuit_and_scores(
    scored: ScoredCircuit, tmp_path: Path
) -> None:
    graph = attribution_graph(scored, slug="round-trip")
    read = read_attribution_graph(write_attribution_graph(tmp_path / "g.json", graph))
    assert read.to_document() == graph.to_document()
    kept = {p: s for p, s in scored.scores.items() if p in scored.circuit.kept}
    same(circuit_of(read), ScoredCircuit(scored.circuit, kept))


def test_attribution_graphs_follow_the_schema(tmp_path: Path) -> None:
    shape = Shape.uniform(2, 2)
    kept = ("embed->a0.h1<q>", "embed->a0.h1<v>", "a0.h1->m1", "m1->logits")
    scores = dict(zip(kept, (0.5, -0.25, 2.0, 1.0), strict=True))
    scored = ScoredCircuit(Circuit(kept, shape.universe("edge"), "x", level="edge"), scores)
    graph = attribution_graph(scored, slug="quotes", model_name="gpt2", prompt_tokens=["a", " b"])
    write_attribution_graph(tmp_path, graph)
    document = json.loads((tmp_path / "quotes.json").read_text(encoding="utf-8"))
    assert set(document) == {"metadata", "qParams", "nodes", "links"}
    assert document["metadata"]["schema_version"] == 1
    assert document["metadata"]["prompt"] == "a b"
    nodes = {node["clerp"]: node for node in document["nodes"]}
    assert list(nodes) == ["embed", "a0.h1", "m1", "logits"]
    assert nodes["a0.h1"]["feature_type"] == "attention head"
    assert (nodes["a0.h1"]["node_id"], nodes["a0.h1"]["layer"]) == ("0_h1_1", "0")
    assert nodes["embed"]["layer"] == "E"
    assert nodes["logits"]["layer"] == "3"
    assert nodes["logits"]["jsNodeId"] == "L_0-1"
    first = document["links"][0]
    assert first == {
        "source": "E_0_1", "target": "0_h1_1", "weight": 0.25, "ports": {"q": 0.5, "v": -0.25}
    }  # fmt: skip
    listing = json.loads((tmp_path / "graph-metadata.json").read_text(encoding="utf-8"))
    assert [entry["slug"] for entry in listing["graphs"]] == ["quotes"]


def test_the_list_of_graphs_keeps_others_and_replaces_its_own(tmp_path: Path) -> None:
    scored = ScoredCircuit(Circuit((), Shape.uniform(1, 1).universe("edge"), "x", level="edge"))
    for slug in ("one", "two", "one"):
        write_attribution_graph(tmp_path, attribution_graph(scored, slug=slug))
    listing = json.loads((tmp_path / "graph-metadata.json").read_text(encoding="utf-8"))
    assert [entry["slug"] for entry in listing["graphs"]] == ["two", "one"]


def test_the_scan_is_the_same_in_every_process() -> None:
    universe = Shape.uniform(1, 1).universe("edge")
    graph = attribution_graph(ScoredCircuit(Circuit((), universe, "x", level="edge", model="f00d")))
    assert graph.scan == "microtome-0f8721b0aef395e6"


@FEW
@given(scored=scored_circuits() | scored_circuits(level="node"))
@pytest.mark.parametrize("kind", ["graphml", "dot"])
def test_text_formats_give_back_circuit_and_scores(
    scored: ScoredCircuit, kind: str, tmp_path: Path
) -> None:
    write: Callable[..., Path] = {"graphml": write_graphml, "dot": write_dot}[kind]
    read: Callable[..., ScoredCircuit] = {"graphml": read_graphml, "dot": read_dot}[kind]
    same(read(write(tmp_path / f"c.{kind}", scored)), scored)


@pytest.mark.parametrize("kind", ["graphml", "dot"])
def test_a_universe_without_a_shape_is_listed_whole(kind: str, tmp_path: Path) -> None:
    universe = ("embed->m0@quote", "m0@quote->logits@end", "embed->logits@end")
    scored = ScoredCircuit(Circuit(universe[:1], universe, "roles", level="edge"))
    path = write_circuit(tmp_path / f"c.{kind}", scored, to=kind)  # type: ignore[arg-type]
    same(read_circuit(path), scored)


@pytest.mark.parametrize("kind", ["mib", "circuit-tracer", "graphml", "dot", "microtome"])
def test_every_format_is_recognized(kind: str, tmp_path: Path) -> None:
    universe = Shape.uniform(2, 2).universe("edge")
    kept = universe[::3]
    scored = ScoredCircuit(Circuit(kept, universe, "x", level="edge"), {edge: 0.5 for edge in kept})
    ending = kind if kind in ("graphml", "dot") else "json"
    path = write_circuit(tmp_path / f"c.{ending}", scored, to=kind, d_model=8)  # type: ignore[arg-type]
    assert format_of(path) == kind
    found = read_circuit(path)
    assert found.circuit.parts == kept
    assert {edge: found.scores[edge] for edge in kept} == scored.scores


def test_graphml_of_another_program_is_read(tmp_path: Path) -> None:
    path = tmp_path / "foreign.graphml"
    path.write_text(
        '<?xml version="1.0"?><graphml xmlns="http://graphml.graphdrawing.org/xmlns">'
        '<key id="d0" for="edge" attr.name="weight" attr.type="double"/>'
        '<graph edgedefault="directed"><node id="a0.h0"/><node id="m1"/>'
        '<edge source="a0.h0" target="m1"><data key="d0"> -0.5 </data></edge></graph></graphml>',
        encoding="utf-8",
    )
    found = read_graphml(path)
    assert found.circuit.parts == ("a0.h0->m1",)
    assert found.scores == {"a0.h0->m1": -0.5}
