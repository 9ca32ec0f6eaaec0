from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from microtome.core.hashing import sha256_file
from microtome.core.provenance import collect
from microtome.errors import FormatError, OutputError, UsageError
from microtome.store.results import Result
from microtome.store.runs import Run, home, list_runs


@dataclass(frozen=True, eq=False)
class Finding(Result, schema="test-finding"):
    values: np.ndarray


def test_home_follows_the_variable(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MICROTOME_HOME", str(tmp_path / "h"))
    assert home() == tmp_path / "h"
    monkeypatch.delenv("MICROTOME_HOME")
    assert home() == Path.home() / ".microtome"


def test_a_run_from_start_to_end(tmp_path) -> None:
    run = Run.create("dissect", config={"n": 3}, provenance=collect(seed=1), root=tmp_path)
    assert run.status == "running" and run.path.parent == tmp_path
    run.log(step=1, loss=0.5)
    run.log(step=2, loss=float("nan"))
    run.add_table("scores", [{"head": 1, "score": 0.5}])
    run.add_arrays("values", {"x": np.ones(2)})
    run.add_text("report.html", "<p>")
    run.add_result("finding", Finding(np.arange(3)))
    run.finish()

    again = Run.open(run.path)
    assert again.record == run.record
    assert again.status == "done" and again.record["config"] == {"n": 3}
    assert again.record["provenance"]["seed"] == 1
    assert again.metrics() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    outputs = again.record["outputs"]
    assert sorted(outputs) == ["finding.json", "report.html", "scores.csv", "values.safetensors"]
    assert all(sha256_file(run.path / name) == digest for name, digest in outputs.items())
    assert Finding.load(run.path / "finding.json").values.tolist() == [0, 1, 2]


def test_runs_go_below_the_home_by_default(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MICROTOME_HOME", str(tmp_path))
    assert list_runs() == []
    runs = [Run.create("trace"), Run.create("dissect")]
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "run.json").write_text("{")
    assert sorted(r.path for r in list_runs()) == sorted(r.path for r in runs)


def test_a_line_cut_by_a_crash_is_left_out(tmp_path) -> None:
    run = Run.create("train", root=tmp_path)
    run.log(step=1)
    with (run.path / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 2, "lo')
    assert run.metrics() == [{"step": 1}]


def test_metrics_after_a_crash_do_not_join_the_cut_line(tmp_path) -> None:
    run = Run.create("train", root=tmp_path)
    with (run.path / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 2, "lo')
    Run.open(run.path).log(step=3)
    assert run.metrics() == [{"step": 3}]


@pytest.mark.parametrize("name", ["../x.html", "run.json", "/tmp/x.html"])
def test_outputs_stay_in_the_folder(tmp_path, name) -> None:
    with pytest.raises(UsageError, match="run folder"):
        Run.create("trace", root=tmp_path).add_text(name, "x")


def test_what_is_no_run_is_refused(tmp_path) -> None:
    run = Run.create("trace", root=tmp_path)
    with pytest.raises(UsageError, match="done, failed"):
        run.finish("good")
    for content, words in (("{", "damaged"), ("[]", "no record"), ('{"format": "x"}', "no record")):
        (run.path / "run.json").write_text(content)
        with pytest.raises(FormatError, match=words):
            Run.open(run.path)
    (run.path / "run.json").write_text('{"format": "microtome.run", "version": 99}')
    with pytest.raises(FormatError, match="update microtome"):
        Run.open(run.path)
    with pytest.raises(FormatError, match="no run folder"):
        Run.open(tmp_path / "nowhere")


def test_an_unwritable_log_is_an_output_error(tmp_path) -> None:
    run = Run.create("trace", root=tmp_path)
    (run.path / "metrics.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"metrics\.jsonl"):
        run.log(step=1)
