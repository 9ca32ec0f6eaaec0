"""The main job end to end on the shipped specimen and on a model that knows nothing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tests.small import code_model

from microtome.behaviors import Behavior, get, quote_closing
from microtome.dissection import Config, Dissection, dissect
from microtome.dissection.reducing import feature_columns, reduce
from microtome.errors import ConfigError, ModelSupportError
from microtome.tracing.opening import load


@pytest.fixture(scope="module")
def found() -> Dissection:
    return dissect(load("python-code"), get("quote-closing", n=100), config=Config(nulls=2))


def test_the_specimen_is_explained(found: Dissection) -> None:
    assert found.explained and found.circuit is not None and found.proof is not None
    assert found.check.passed and found.check.accuracy.value >= 0.9
    assert len(found.circuit.parts) < len(found.circuit.universe) / 2
    assert found.proof.evaluation.faithfulness.within(0.8, 1.2)
    assert found.operation is not None and found.operation.undone
    # two nulls are too few for the rule, so nothing may be claimed
    assert found.verdict is not None and found.verdict.grade == "not established"


def test_the_report_is_self_contained(found: Dissection, tmp_path: Path) -> None:
    page = found.to_html(tmp_path / "r.html").read_text(encoding="utf-8")
    assert len(page) < 5_000_000
    assert not re.findall(r"(?:src|href)=[\"']?https?://", page)
    assert not re.findall(r"\bproved\b", page)
    assert found.command in re.sub(r"<[^>]+>", "", page)
    for word in ("faithfulness", "Methods and definitions", "resample", "clusters"):
        assert word in page


def test_edges_and_names_are_in_the_result_and_the_report(
    found: Dissection, tmp_path: Path
) -> None:
    assert found.wiring is not None and found.names is not None and found.circuit is not None
    edges = found.wiring.circuit
    assert 0 < len(edges.parts) < len(edges.universe) / 10
    assert found.wiring.evaluation.faithfulness.within(0.8, 1.2)
    assert set(found.wiring.kinds) == {"resample", "mean", "zero"}
    assert "no verdict" in found.wiring.sentence and not found.notes
    summary = found.summary()
    assert summary["edges"]["grade"] is None
    assert set(summary["names"]) == set(found.circuit.parts)
    assert "mover" in summary["names"]["a3.h1"]
    page = found.to_html(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Edge by edge" in page and "What the parts do elsewhere" in page
    folder = found.save_folder(tmp_path / "out")
    assert {"edges.json", "edges.csv", "names.csv"} <= {p.name for p in folder.iterdir()}


def test_two_conditions_and_steps_left_out(tmp_path: Path) -> None:
    settings = Config(nulls=1, edges="off", names=False)
    found = dissect(
        load("python-code"), get("quote-closing", n=60), versus=get("bracket-closing", n=60),
        config=settings,
    )  # fmt: skip
    assert found.wiring is None and found.names is None and found.versus is not None
    assert found.versus.a == "quote-closing" and "bracket-closing" in found.versus.sentence
    page = found.to_html(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "What differs between quote-closing and bracket-closing" in page
    assert "Edge by edge" not in page
    assert "--edges off" in found.command and "--no-names" in found.command


def test_a_model_without_edges_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_settings: object) -> None:
        raise ModelSupportError("writes do not add up. Take node circuits.")

    monkeypatch.setattr("microtome.dissection.running.wire", refuse)
    settings = Config(nulls=1, gate=False, names=False)
    found = dissect(code_model(), quote_closing(60), config=settings)
    assert found.explained and found.wiring is None
    assert found.notes == {"wire": "writes do not add up. Take node circuits."}
    assert "What was left out" in found.to_html(tmp_path / "r.html").read_text(encoding="utf-8")


def test_results_round_trip_and_are_deterministic(found: Dissection, tmp_path: Path) -> None:
    loaded = Dissection.load(found.save(tmp_path / "d.json"))
    assert loaded.summary() == found.summary()
    again = dissect(load("python-code"), get("quote-closing", n=100), config=Config(nulls=2))
    assert again.circuit is not None and found.circuit is not None
    assert again.circuit.parts == found.circuit.parts
    assert again.proof is not None and found.proof is not None
    np.testing.assert_array_equal(again.proof.evaluation.circuit, found.proof.evaluation.circuit)


def test_a_folder_is_written_whole_or_not_at_all(
    found: Dissection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = found.save_folder(tmp_path / "out")
    assert {"report.html", "dissection.json", "run.json", "rules.csv", "scores.csv"} <= {
        p.name for p in folder.iterdir()
    }

    def fail(_found: Dissection) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("microtome.dissection.report.report", fail)
    with pytest.raises(KeyboardInterrupt):
        found.save_folder(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_model_that_knows_nothing_ends_at_the_gate(tmp_path: Path) -> None:
    found = dissect(code_model(), quote_closing(60))
    assert not found.explained and "nothing to explain" in found.sentence
    assert "Nothing to explain" in found.to_html(tmp_path / "r.html").read_text(encoding="utf-8")


def test_shuffled_answers_end_at_the_gate() -> None:
    assert not dissect(load("python-code"), get("quote-closing", n=100).shuffle(0)).explained


def test_reduction_predicts_from_features() -> None:
    model = load("python-code")
    examples = get("bracket-closing", n=100).prepare(model)
    train, test = examples.split("train"), examples.split("test")
    reduction = reduce(model, train, test, metric="logit_difference", seed=0)
    assert reduction is not None and reduction.agreement.value >= 0.9
    assert "inner bracket" in reduction.tree["condition"]
    assert any(c.startswith("inner bracket = ") for c in feature_columns(train))
    bare = Behavior(
        "b",
        "b",
        "",
        tuple(i.with_answers(i.answers, i.wrongs) for i in get("induction", n=40).items),
    )
    assert bare.items[0].features["words"]


def test_settings_are_checked() -> None:
    for wrong in (
        {"faithfulness": 1.5},
        {"ablation": "none"},
        {"method": "magic"},
        {"nulls": 0},
        {"edges": "some"},
    ):
        with pytest.raises(ConfigError):
            Config(**wrong)  # type: ignore[arg-type]
