"""Settings of a dissection reach the step they are about; folders hold one dissection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.small import code_model

from microtome.behaviors import get
from microtome.circuits import find
from microtome.dissection import Config, Dissection, dissect
from microtome.dissection.circuit_sections import edges_section
from microtome.views import Figure


@pytest.fixture(scope="module")
def found() -> Dissection:
    settings = Config(
        nulls=1, ablation="mean", method="contextual-decomposition", names=False, gate=False
    )
    task = get("quote-closing", n=60)
    return dissect(code_model(), task, versus=task, config=settings)


def test_the_circuit_is_that_of_the_finder_asked_for(found: Dissection) -> None:
    model = code_model()
    train = get("quote-closing", n=60).prepare(model).split("train")
    wanted = find(model, train, method="contextual-decomposition", ablation="mean")
    assert found.located is not None and found.circuit is not None
    assert found.located.scores.method == "contextual-decomposition"
    np.testing.assert_allclose(found.located.scores.mean, wanted.mean, atol=1e-5)
    size = len(found.circuit.parts)
    assert set(found.circuit.parts) == set(wanted.ranking()[:size])
    assert "contextual-decomposition" in found.circuit.method


def test_edges_are_ranked_under_the_ablation_asked_for(found: Dissection) -> None:
    assert found.wiring is not None and found.wiring.scores.ablation == "mean"
    captions = []

    def figure(_title: str, _body: object, caption: str, **_foot: object) -> Figure:
        captions.append(caption)
        return Figure("t", (), caption)

    edges_section(found.wiring, None, figure)
    assert any("carries its mean over the train prompts" in c for c in captions)


def test_a_condition_against_itself_differs_in_nothing(found: Dissection) -> None:
    assert found.versus is not None and found.versus.overlap == 1.0
    assert not found.versus.differs.any()
    assert found.versus.circuit_a.parts == found.circuit.parts  # type: ignore[union-attr]
    assert found.command.endswith("--versus quote-closing")


def test_a_folder_holds_one_dissection(found: Dissection, tmp_path: Path) -> None:
    folder = found.save_folder(tmp_path / "out")
    (folder / "notes.txt").write_text("mine")
    assert {"edges.json", "rules.csv", "scores.csv"} <= {p.name for p in folder.iterdir()}
    ended = replace(
        found, located=None, circuit=None, curve=None, proof=None, verdict=None, wiring=None,
        versus=None, reduction=None, operation=None,
    )  # fmt: skip
    ended.save_folder(folder)
    assert {p.name for p in folder.iterdir()} == {
        "report.html", "dissection.json", "run.json", "notes.txt",
    }  # fmt: skip
    assert not Dissection.load(folder / "dissection.json").explained
