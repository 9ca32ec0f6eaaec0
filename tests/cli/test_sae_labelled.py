"""``microtome sae probe`` and ``interchange`` on files of labelled texts and of facts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.small import code_model, save_model
from typer.testing import CliRunner, Result

from microtome.cli.app import app
from microtome.errors import MicrotomeError
from microtome.sae import SAE, Architecture, Origin, save
from microtome.sae.evaluation.facts import facts_of

SITE = "blocks.0.resid_post"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["sae", *map(str, arguments)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small model and a coder of its first block."""
    folder = tmp_path_factory.mktemp("model")
    coder = SAE(Architecture(32, 40, activation="topk", k=8), origin=Origin((SITE,), (SITE,)))
    return save_model(code_model(), folder / "model"), save(coder, folder / "sae")


def test_labels_are_probed(place: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [{"text": f"value = {n}", "label": "number"} for n in range(12)]
    rows += [{"text": f"value = data[{n}]", "label": "item"} for n in range(12)]
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = json.loads(call("probe", *place, path, "--json").stdout)
    assert facts["sparse_probing"]["latents"][0] > 0.8
    assert facts["probe_perturbation"]["n"] == [2, 5, 10, 20]
    assert facts["absorption"]["classes"] == ["item", "number"]
    shown = call("probe", *place, path, "--property", "item")
    assert "absorbed by" in shown.stdout and "item: latents" in shown.stderr
    unknown = call("probe", *place, path, "--least-f1", 1, "--position", 0)
    assert "Absorption was not measured: no probe" in unknown.stderr
    path.write_text('{"text": "a"}\n')
    error = call("probe", *place, path).exception
    assert isinstance(error, MicrotomeError) and "line 1: expected" in str(error)


def test_facts_are_interchanged(tmp_path: Path) -> None:
    """What closes a bracket, and what follows a string in it."""
    entities = {
        "[": {"closer": "]", "separator": ","},
        "(": {"closer": ")", "separator": ","},
        "{": {"closer": "}", "separator": ":"},
    }
    templates = {
        "closer": [f"{name} = {{entity}}a, b" for name in ("x", "value", "data", "result")],
        "separator": [f"{name} = {{entity}}'a'" for name in ("x", "value", "data", "result")],
    }
    rows = [vars(fact) for fact in facts_of(entities, templates)]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    coder = SAE(Architecture(176, 200, activation="topk", k=32), origin=Origin((SITE,), (SITE,)))
    given = ["python-code", save(coder, tmp_path / "sae"), path, "--method", "variance"]
    given += ["--unseen", "prompts", "--among", "answers", "--pairs", 12]
    facts = json.loads(call("interchange", *given, "-o", tmp_path / "f.json", "--json").stdout)
    kinds = {"latents", "random", "all latents", "whole value"}
    assert {row["what"] for row in facts["table"]} == kinds
    whole = {r["attribute"]: r for r in facts["table"] if r["what"] == "whole value"}
    assert whole["closer"]["cause"] > 0.5  # the bracket's value decides how it is closed
    shown = call("interchange", *given)
    assert "isolation" in shown.stdout and "of 24 facts are right" in shown.stderr
    assert (tmp_path / "f.json").is_file()
