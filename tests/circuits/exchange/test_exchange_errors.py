"""Hostile, truncated, contradictory and oversized files end in clear errors, never in a crash."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microtome.circuits.exchange import (
    ScoredCircuit,
    Shape,
    attribution_graph,
    circuit_of,
    diagram_of,
    dot_text,
    graphml_text,
    mib_document,
    read_attribution_graph,
    read_circuit,
    read_dot,
    read_graphml,
    read_mib,
    write_attribution_graph,
    write_circuit,
)
from microtome.circuits.results import Circuit
from microtome.errors import (
    ConfigError,
    DataError,
    FormatError,
    MicrotomeError,
    ShapeError,
    UnknownNameError,
    UnsafeFileError,
)

UNIVERSE = Shape.uniform(2, 2).universe("edge")
KEPT = ("embed->a0.h1<q>", "a0.h1->m1", "m1->logits")
ENDINGS = {"graphml": "graphml", "dot": "dot"}
SCORED = ScoredCircuit(Circuit(KEPT, UNIVERSE, "x", level="edge"), dict.fromkeys(KEPT, 0.5))


def put(folder: Path, value: Any, name: str = "c.json") -> Path:
    """Write a value as JSON, or a text as it is."""
    text = value if isinstance(value, str) else json.dumps(value)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def mib(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """A good MIB document with one change."""
    document = mib_document(SCORED, d_model=8)
    change(document)
    return document


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("cfg"), "lacks 'cfg'"),
        (lambda d: d.update(edges=[]), "expected an object"),
        (lambda d: d["cfg"].update(n_layers=True), "whole number"),
        (lambda d: d["cfg"].update(n_layers=0), "at least one"),
        (lambda d: d["cfg"].update(n_layers=10**9), "more than 5000000 edges"),
        (lambda d: d["cfg"].update(n_layers=10**400), "more than 5000000 edges"),
        (lambda d: d["cfg"].pop("parallel_attn_mlp"), "lacks 'parallel_attn_mlp'"),
        (lambda d: d["nodes"].update({"a9.h9": {"in_graph": True}}), "node 'a9.h9'"),
        (lambda d: d["nodes"].update({"a0.h0": {}}), "lacks 'in_graph'"),
        (
            lambda d: d["edges"].update({"m1->m0": {"score": 1.0, "in_graph": True}}),
            "edge 'm1->m0' that is not one",
        ),
        (lambda d: d["edges"]["input->m0"].update(score="high"), "finite number"),
        (lambda d: d["edges"]["input->m0"].update(score=10**400), "finite number"),
        (lambda d: d["edges"]["input->m0"].update(in_graph=1), "true or false"),
        (lambda d: d["edges"]["input->m0"].pop("score"), "lacks 'score'"),
        (lambda d: d["edges"].update({"input->m0": 3}), "expected an object"),
    ],
)
def test_wrong_mib_files(change: Callable[..., object], words: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=words):
        read_mib(put(tmp_path, mib(change)))


def test_a_mib_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, mib_document(SCORED, d_model=8))
    for other in (Shape.uniform(3, 2), Shape.uniform(2, 4), Shape.uniform(2, 2, parallel=True)):
        with pytest.raises(FormatError, match="not about this one"):
            read_mib(path, graph=other.graph())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("[1, 2]", "JSON list"),
        ('{"cfg": {}', "truncated"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1, "a": 2}', "stands twice"),
        ('{"a":' + "[" * 100_000, "strict JSON"),
        ('{"a": ' + "9" * 5000 + "}", "strict JSON"),
        ('{"hello": 1}', "none of the circuit formats"),
    ],
)
def test_files_that_are_no_circuit(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=words):
        read_circuit(put(tmp_path, text))


def test_missing_binary_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot read"):
        read_circuit(tmp_path / "none.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="not text in UTF-8"):
        read_circuit(tmp_path / "b.json")
    with pytest.raises(FormatError, match="more than the 10 that are read"):
        read_circuit(put(tmp_path, {"a": "x" * 100}), limit_bytes=10)


@pytest.mark.parametrize("kind", ["mib", "circuit-tracer", "graphml", "dot"])
def test_every_truncation_is_refused(kind: str, tmp_path: Path) -> None:
    ending = kind if kind in ("graphml", "dot") else "json"
    path = write_circuit(tmp_path / f"c.{ending}", SCORED, to=kind, d_model=8)
    data = path.read_bytes().rstrip()
    for share in (0.0, 0.01, 0.1, 0.5, 0.9, 0.99):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(FormatError):
            read_circuit(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), kind=st.sampled_from(["mib", "circuit-tracer", "graphml", "dot"]))
def test_damaged_files_are_read_or_refused(data: st.DataObject, kind: str, tmp_path: Path) -> None:
    ending = kind if kind in ("graphml", "dot") else "json"
    path = write_circuit(tmp_path / f"c.{ending}", SCORED, to=kind, d_model=8)
    text = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(text))
    try:
        read_circuit(path)
    except MicrotomeError as error:
        assert str(error)


def graph_document() -> dict[str, Any]:
    return attribution_graph(SCORED, slug="g").to_document()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["metadata"].update(schema_version=2), "schema_version 2"),
        (lambda d: d["metadata"].pop("slug"), "lacks 'slug'"),
        (lambda d: d["metadata"].update(prompt_tokens="a"), "expected a list"),
        (lambda d: d["metadata"].update(prompt_tokens=[1]), "expected text"),
        (lambda d: d.pop("qParams"), "lacks 'qParams'"),
        (lambda d: d["nodes"][0].update(layer=0), "'layer' of node 0"),
        (lambda d: d["nodes"][0].update(layer="top"), "expected 'E' or a number"),
        (lambda d: d["nodes"][0].update(ctx_idx=7), "the prompt has 1 tokens"),
        (lambda d: d["nodes"][0].pop("feature_type"), "lacks 'feature_type'"),
        (lambda d: d["nodes"].append(d["nodes"][0]), "two nodes"),
        (lambda d: d["nodes"].append(5), "expected an object"),
        (lambda d: d["links"][0].update(source="nobody"), "names the node 'nobody'"),
        (lambda d: d["links"][0].update(weight=None), "finite number"),
        (lambda d: d["links"][0].update(ports={"z": 1.0}), "expected q, k and v"),
    ],
)
def test_wrong_attribution_graphs(
    change: Callable[..., object], words: str, tmp_path: Path
) -> None:
    document = graph_document()
    change(document)
    with pytest.raises(FormatError, match=words):
        read_attribution_graph(put(tmp_path, document))


def test_attribution_graphs_of_latents_are_read_but_are_no_circuit(tmp_path: Path) -> None:
    document = graph_document()
    del document["metadata"]["microtome"]
    latent = {
        "node_id": "1_7_0", "feature": 43, "layer": "1", "ctx_idx": 0,
        "feature_type": "cross layer transcoder", "jsNodeId": "1_7-0", "activation": 2.5,
    }  # fmt: skip
    document["nodes"].append(latent)
    document["metadata"]["info"] = {"creator": "somebody"}
    graph = read_attribution_graph(put(tmp_path, document))
    assert graph.nodes[-1].activation == 2.5
    assert graph.extra == {"info": {"creator": "somebody"}}
    with pytest.raises(FormatError, match="but not turned into a circuit"):
        circuit_of(graph)
    document["links"].append({"source": "1_7_0", "target": "3_0_0", "weight": -9.0})
    view = diagram_of(read_attribution_graph(put(tmp_path, document)), max_edges=2)
    assert [(e.source, e.target, e.weight) for e in view.drawn][0] == ("1_7_0", "3_0_0", -9.0)
    kinds = {node.name: node.kind for node in view.nodes}
    assert (kinds["1_7_0"], kinds["3_0_0"]) == ("latent", "logits")
    assert "2 of 4 edges are drawn" in view.remark()


def test_hostile_slugs_and_positions_are_refused(tmp_path: Path) -> None:
    for slug in ("../x", "", "a/b", "a b"):
        with pytest.raises(FormatError, match="no file name"):
            write_attribution_graph(tmp_path, attribution_graph(SCORED, slug=slug))
    with pytest.raises(ShapeError, match="outside a prompt of 1"):
        attribution_graph(SCORED, position=3)
    put(tmp_path, "{", "graph-metadata.json")
    with pytest.raises(FormatError, match="graph-metadata"):
        write_attribution_graph(tmp_path, attribution_graph(SCORED))


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY a{n} "{"&a;" * 10}">' for n in range(9))
    + "]><graphml>&a8;</graphml>"
)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (BOMB, UnsafeFileError, "document type"),
        (
            '<!DOCTYPE x SYSTEM "file:///etc/passwd"><graphml/>',
            UnsafeFileError,
            "document type",
        ),
        ("<graphml/>", FormatError, "has no graph"),
        ("<html><graph/></html>", FormatError, "<html> document"),
        ("<graphml>" * 200, FormatError, "nested deeper"),
        ("<graphml><graph edgedefault='undirected'/></graphml>", FormatError, "undirected"),
        ("<graphml><graph/><graph/></graphml>", FormatError, "more than one graph"),
        ("<graphml><graph><node/></graph></graphml>", FormatError, "lacks its 'id'"),
        (
            "<graphml><graph><node id='a'/><node id='a'/></graph></graphml>",
            FormatError,
            "twice",
        ),
        (
            "<graphml><graph><node id='a'/><edge source='a' target='b'/></graph></graphml>",
            FormatError,
            "names the node 'b'",
        ),
        (
            "<graphml><key id='s' attr.name='score'/><graph><node id='a'/>"
            "<node id='b'/><edge source='a' target='b'><data key='s'>nan</data></edge>"
            "</graph></graphml>",
            FormatError,
            "finite number",
        ),
    ],
)
def test_wrong_graphml(text: str, error: type[Exception], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        read_graphml(put(tmp_path, text, "c.graphml"))


def test_dot_of_other_programs_is_refused_with_its_line(tmp_path: Path) -> None:
    lines = dot_text(SCORED).split("\n")
    lines.insert(3, "  a -> b;")
    with pytest.raises(FormatError, match="line 4"):
        read_dot(put(tmp_path, "\n".join(lines), "c.dot"))
    with pytest.raises(FormatError, match="no DOT text of microtome"):
        read_dot(put(tmp_path, "graph {}", "c.dot"))


def test_names_that_a_format_cannot_hold_are_refused() -> None:
    control = ("embed->m0@\x01",)
    with pytest.raises(DataError, match=r"U\+0001"):
        graphml_text(ScoredCircuit(Circuit(control, control, "x", level="edge")))
    quoted = ('embed->m0@"',)
    with pytest.raises(DataError, match="quote"):
        dot_text(ScoredCircuit(Circuit(quoted, quoted, "x", level="edge")))


def test_what_formats_have_no_word_for_is_refused(tmp_path: Path) -> None:
    nodes = ScoredCircuit(Circuit(("m0",), ("a0.h0", "m0"), "x"))
    for to in ("mib", "circuit-tracer"):
        with pytest.raises(FormatError, match="edge circuit"):
            write_circuit(tmp_path / "c.json", nodes, to=to, d_model=8)
    with pytest.raises(ConfigError, match="d_model"):
        write_circuit(tmp_path / "c.json", SCORED, to="mib")
    with pytest.raises(ConfigError, match="expected one of mib"):
        write_circuit(tmp_path / "c.json", SCORED, to="png")


def test_scores_must_be_finite_and_of_known_parts() -> None:
    with pytest.raises(DataError, match="nan"):
        ScoredCircuit(SCORED.circuit, {KEPT[0]: float("nan")})
    with pytest.raises(UnknownNameError, match="m1->logits"):
        ScoredCircuit(SCORED.circuit, {"m1->logit": 1.0})


@pytest.mark.parametrize("kind", ["mib", "circuit-tracer", "graphml", "dot"])
def test_a_graph_of_gpt2_small_is_read_in_seconds(kind: str, tmp_path: Path) -> None:
    universe = Shape.uniform(12, 12).universe("edge")
    scored = ScoredCircuit(
        Circuit(universe[:10_000], universe, "x", level="edge"), dict.fromkeys(universe, 0.5)
    )
    path = write_circuit(tmp_path / f"c.{ENDINGS.get(kind, 'json')}", scored, to=kind, d_model=768)
    start = time.perf_counter()
    assert read_circuit(path).circuit.parts == universe[:10_000]
    assert time.perf_counter() - start < 15  # under one second where nothing else runs
