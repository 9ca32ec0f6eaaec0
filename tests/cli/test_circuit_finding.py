"""``microtome circuit find`` and ``evaluate`` as a stranger uses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.small import code_model, save_model
from typer.testing import CliRunner, Result

from microtome.circuits import Circuit, EdgeScores
from microtome.cli.app import app
from microtome.errors import MicrotomeError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(code_model(), tmp_path_factory.mktemp("model"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["circuit", *arguments, "--n", "30", "--threads", "1"])


def test_find_then_evaluate(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "quotes.json"
    found = run(
        "find", str(folder), "quote-closing", "--method", "eap", "--edges", "12", "--out", str(out),
        "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    circuit = Circuit.load(out)
    scores = EdgeScores.load(tmp_path / "quotes-scores.json")
    assert said["size"] == 12 == len(circuit) and circuit.level == "edge"
    assert {part["edge"] for part in said["parts"]} == circuit.kept == set(scores.ranking()[:12])
    tested = run("evaluate", str(folder), "quote-closing", str(out), "--json")
    assert tested.exit_code == 0, tested.output
    figures = json.loads(tested.stdout)
    assert figures["level"] == "edge" and figures["of"] == len(scores.universe)
    assert set(figures["faithfulness"]) >= {"value", "low", "high"}
    table = run("evaluate", str(folder), "quote-closing", str(out), "--ablation", "zero")
    assert table.exit_code == 0 and "faithfulness" in table.stdout


def test_all_edges_are_the_model(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.json"
    options = ("--method", "eap", "--edges", "9999", "--out", str(out))
    assert run("find", str(folder), "quote-closing", *options).exit_code == 0
    tested = run("evaluate", str(folder), "quote-closing", str(out), "--json")
    assert json.loads(tested.stdout)["faithfulness"]["value"] == pytest.approx(1.0)


def test_nodes_and_what_is_refused(folder: Path) -> None:
    nodes = run("find", str(folder), "quote-closing", "--method", "attribution", "--edges", "3")
    assert nodes.exit_code == 0 and "a0.h" in nodes.stdout
    for arguments, words in (
        (("--method", "eap-gi"), "nearest: eap"),
        (("--method", "attribution", "--connected"), "scores edges"),
        (("--ablation", "noise"), "expected one of resample"),
        (("--split", "exam"), "No split"),
    ):
        refused = run("find", str(folder), "quote-closing", *arguments)
        assert isinstance(refused.exception, MicrotomeError) and words in str(refused.exception)


def test_a_folder_is_no_file_for_the_result(folder: Path, tmp_path: Path) -> None:
    refused = run("find", str(folder), "quote-closing", "--out", str(tmp_path))
    assert isinstance(refused.exception, MicrotomeError)
    assert "needs a file" in str(refused.exception)
    assert not list(tmp_path.parent.glob(f"{tmp_path.name}*.json"))


def test_a_finder_is_judged(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "judged.json"
    judged = run(
        "judge", str(folder), "quote-closing", "--method", "attribution", "--nulls", "0",
        "--no-gate", "--out", str(out), "--json",
    )  # fmt: skip
    assert judged.exit_code == 0, judged.output
    said = json.loads(judged.stdout)
    assert said["grade"] == "not established" and out.is_file()
    assert {"parts", "share", "cmd"} <= {row["quantity"] for row in said["figures"]}
    assert [rule["name"] for rule in said["rules"]][:2] == ["gate", "sufficient"]


def test_edges_at_roles_are_found_evaluated_and_drawn(tmp_path: Path) -> None:
    out = tmp_path / "roles.json"
    found = run(
        "find", "python-code", "quote-closing", "--method", "eap", "--level", "role-edge",
        "--edges", "30", "--connected", "--out", str(out), "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    assert said["level"] == "role-edge" == Circuit.load(out).level
    assert any("@" in part["edge"] for part in said["parts"])
    judged = run("evaluate", "python-code", "quote-closing", str(out), "--json")
    assert judged.exit_code == 0 and json.loads(judged.stdout)["level"] == "role-edge"
    picture = tmp_path / "roles.svg"
    shown = CliRunner().invoke(
        app, ["circuit", "show", str(out), "--by-place", "--out", str(picture)]
    )
    assert shown.exit_code == 0 and "role-edges drawn" in shown.output
    assert "@end" in picture.read_text(encoding="utf-8")


def test_a_circuit_of_neurons_is_found_and_a_level_a_method_lacks_refused(tmp_path: Path) -> None:
    out = tmp_path / "neurons.json"
    found = run(
        "find", "python-code", "quote-closing", "--method", "attribution", "--level", "neuron",
        "--edges", "40", "--out", str(out), "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["size"] == 40
    circuit = Circuit.load(out)
    assert circuit.level == "neuron" and any(".n" in part for part in circuit.parts)
    refused = run("find", "python-code", "quote-closing", "--method", "ugs", "--level", "role-edge")
    assert isinstance(refused.exception, MicrotomeError)
    assert "'ugs' scores no role-edges; those that do are eap" in str(refused.exception)
