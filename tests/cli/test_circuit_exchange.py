"""``microtome circuit convert``, ``show`` and ``diff``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from microtome.circuits.exchange import ScoredCircuit, Shape, read_circuit
from microtome.circuits.results import Circuit
from microtome.cli.app import app
from microtome.errors import ConfigError, FormatError

RUN = CliRunner()
UNIVERSE = Shape.uniform(2, 2).universe("edge")


def stored(folder: Path, name: str, size: int) -> Path:
    """A stored circuit of the first edges, with scores."""
    parts = UNIVERSE[:size]
    scores = {edge: 1.0 / (1 + number) for number, edge in enumerate(parts)}
    scored = ScoredCircuit(Circuit(parts, UNIVERSE, "x", level="edge"), scores)
    return scored.save(folder / f"{name}.json")


def run(*words: object) -> str:
    """Run the command and return what it printed."""
    done = RUN.invoke(app, ["circuit", *map(str, words)], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("to", ["mib", "circuit-tracer", "graphml", "dot", "microtome"])
def test_convert_goes_there_and_back(to: str, tmp_path: Path) -> None:
    source = stored(tmp_path, "c", 7)
    out = tmp_path / f"out.{to if to in ('graphml', 'dot') else 'json'}"
    assert "7 edges written" in run("convert", source, out, "--to", to, "--d-model", 8)
    back = tmp_path / "back.json"
    found = json.loads(run("convert", out, back, "--json"))
    assert (found["parts"], found["format"]) == (7, "microtome")
    assert read_circuit(back).circuit.parts == UNIVERSE[:7]


@pytest.mark.parametrize(("name", "to"), [("o.graphml", "graphml"), ("o.gv", "dot")])
def test_convert_goes_by_the_ending(name: str, to: str, tmp_path: Path) -> None:
    out = tmp_path / name
    assert f"({to})" in run("convert", stored(tmp_path, "c", 7), out)
    assert read_circuit(out).circuit.parts == UNIVERSE[:7]


def test_convert_takes_scores_from_another_file(tmp_path: Path) -> None:
    bare = Circuit(UNIVERSE[:2], UNIVERSE, "x", level="edge").save(tmp_path / "bare.json")
    scores = stored(tmp_path, "scores", 5)
    run("convert", bare, tmp_path / "o.graphml", "--to", "graphml", "--scores", scores)
    found = read_circuit(tmp_path / "o.graphml")
    assert len(found.circuit) == 2
    assert len(found.scores) == 5


def test_convert_says_what_a_file_leaves_out(tmp_path: Path) -> None:
    run("convert", stored(tmp_path, "c", 3), tmp_path / "m.json", "--to", "mib", "--d-model", 8)
    document = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    del document["edges"]["m1->logits"]
    (tmp_path / "m.json").write_text(json.dumps(document), encoding="utf-8")
    assert "1 edges of the model are not in the file" in run(
        "convert", tmp_path / "m.json", tmp_path / "o.json"
    )


def test_show_draws_with_and_without_a_slider(tmp_path: Path) -> None:
    source = stored(tmp_path, "c", 12)
    page, picture = tmp_path / "c.html", tmp_path / "c.svg"
    run("show", source, "--out", page)
    assert 'type="range"' in page.read_text(encoding="utf-8")
    run("show", source, "--out", picture)
    assert picture.read_text(encoding="utf-8").startswith("<svg")
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps({"a0.h0": "mover", "a0.h1": "mover"}), encoding="utf-8")
    run("show", source, "--out", page, "--collapse", classes)
    assert "mover ×2" in page.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="ends in .html or .svg"):
        run("show", source, "--out", tmp_path / "c.png")


def test_show_draws_attribution_graphs_of_other_programs(tmp_path: Path) -> None:
    graph = tmp_path / "g.json"
    run("convert", stored(tmp_path, "c", 6), graph, "--to", "circuit-tracer")
    document = json.loads(graph.read_text(encoding="utf-8"))
    del document["metadata"]["microtome"]
    graph.write_text(json.dumps(document), encoding="utf-8")
    assert "of an attribution graph drawn" in run("show", graph, "--out", tmp_path / "g.svg")


def test_diff_prints_and_draws(tmp_path: Path) -> None:
    first, second = stored(tmp_path, "one", 8), stored(tmp_path, "two", 4)
    found = json.loads(run("diff", first, second, "--json"))
    assert (found["jaccard"], found["recall"], found["precision"]) == (0.5, 0.5, 1.0)
    assert len(found["only one"]) == 4
    page = tmp_path / "d.html"
    assert "Jaccard" in run("diff", first, second, "--out", page)
    assert "only one" in page.read_text(encoding="utf-8")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{", encoding="utf-8")
    with pytest.raises(FormatError, match="x.json"):
        run("show", tmp_path / "x.json")
