"""``microtome circuit name``: results as a table and as JSON, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.circuits.named_parts import planted
from tests.small import code_model, save_model
from typer.testing import CliRunner, Result

from microtome.circuits import Circuit, PartNames
from microtome.circuits.graph import ComponentGraph
from microtome.cli.app import app
from microtome.errors import UnknownNameError


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["circuit", "name", *arguments, "--threads", "1"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(code_model(), tmp_path_factory.mktemp("model")))


def test_a_behavior_texts_and_a_circuit_as_json(folder: str, tmp_path: Path) -> None:
    graph = ComponentGraph.of(code_model())
    circuit = Circuit(graph.edges[:12], graph.edges, "first edges", level="edge")
    text = tmp_path / "a.py"
    text.write_text("def total(data, size=None):\n    return [data, size]\n" * 40)
    out = tmp_path / "names.json"
    shown = call(
        folder, "--behavior", "quote-closing", "--circuit", str(circuit.save(tmp_path / "c.json")),
        "--texts", str(text), "--n", "40", "--twins", "1", "--out", str(out), "--json",
    )  # fmt: skip
    found = json.loads(shown.stdout)
    assert found["file"] == str(out) and len(found["tests"]) == len(PartNames.load(out).table)
    assert {"fan-in", "mover", "delimiter", "token"} <= {r["name"] for r in found["tests"]} | set(
        found["not_run"]
    )
    assert found["not_run"].get("mover", "") != "no behavior was given"
    assert "No threshold transfers" in found["note"]
    assert all(r["labelled"] for r in found["names"])


def test_the_table(tmp_path: Path) -> None:
    model = planted()
    model.module.save_pretrained(tmp_path / "planted")
    shown = call(str(tmp_path / "planted"), "--detector", "attention sink", "--detector", "mover")
    assert shown.exit_code == 0 and "no behavior was given" in shown.stderr
    assert "4 twins" in shown.stderr


def test_an_unknown_detector(folder: str) -> None:
    error = call(folder, "--detector", "indction").exception
    assert isinstance(error, UnknownNameError) and "induction" in str(error)
