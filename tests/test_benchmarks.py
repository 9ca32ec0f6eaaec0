"""The benchmarks' workers agree on a small model, and the command makes its table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks import coders, large
from benchmarks.contenders import CONTENDERS, select
from benchmarks.environments import Environment
from benchmarks.options import Options
from benchmarks.peers import common, microtome, raw
from benchmarks.peers.coder_task import CoderTask
from benchmarks.peers.coder_task import parse as parse_coder_task
from benchmarks.peers.task import Task, parse
from benchmarks.running import call, difference, run
from benchmarks.workloads import block, notes, table

SMALL = {"layers": 2, "heads": 4, "width": 32, "vocabulary": 2500}
SHAPE = Task(**SMALL, positions=16)


@pytest.fixture(scope="module")
def naive() -> dict[str, torch.Tensor]:
    """Return the naive result of each workload."""
    return {w: result("raw", "naive", w) for w in "abcde"}


def result(name: str, variant: str, workload: str, **changes: int) -> torch.Tensor:
    task = replace(SHAPE, workload=workload, variant=variant, **changes)
    wrap = raw.wrap if name == "raw" else microtome.wrap
    ready = wrap(task, common.build(task), common.draw(task))
    return torch.as_tensor(ready.workloads[workload]()).detach()


OWN = [c for c in CONTENDERS if c.name in ("raw", "microtome") and c.variant != "naive"]


@pytest.mark.parametrize("contender", OWN, ids=lambda c: c.label)
def test_results_agree_with_the_naive_way(contender, naive) -> None:
    for workload in contender.workloads.replace("f", ""):
        found = result(contender.name, contender.variant, workload)
        assert found.shape == naive[workload].shape
        assert float(naive[workload].std()) > 1e-3
        torch.testing.assert_close(found.float(), naive[workload], atol=1e-5, rtol=0)


def test_several_prompts_agree() -> None:
    found, expected = (
        result(*way, "c", prompts=3) for way in (("microtome", "fast"), ("raw", "naive"))
    )
    assert found.shape == (3, 2, 16)
    torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=0)


def test_a_sample_holds_the_cells_it_says(naive) -> None:
    part = result("raw", "naive", "c", every=4)
    known = ~part.isnan()
    assert int(known.sum()) == replace(SHAPE, workload="c", every=4).sampled == 8
    torch.testing.assert_close(part[known], naive["c"][known], atol=0, rtol=0)


def test_a_task_survives_its_command_line() -> None:
    task = replace(SHAPE, workload="d", every=3, save="x.npy")
    assert parse(task.arguments()) == task


def test_contenders_are_chosen_by_name() -> None:
    assert [c.variant for c in select(["raw/smart", "nnsight"])] == ["smart", "default", "batched"]
    with pytest.raises(SystemExit, match="no contender 'nsight'"):
        select(["nsight"])


def test_without_a_gpu_the_large_table_is_one_line(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert large.table(Options())[0].count("\n") == 1


def test_what_cannot_be_installed_is_said(tmp_path) -> None:
    where = Environment("captum", None, "ERROR: no such version")
    assert call(where, "captum", SHAPE) == {"failure": "not installed: ERROR: no such version"}
    cells, _ = run(
        select(["captum/default"]), {"captum": where, "raw": Environment("raw", None)}, SHAPE,
        workloads="f", rounds=1, quick=True, folder=tmp_path,
    )  # fmt: skip
    assert "failed" in block("f", cells)
    assert "captum default on f: not installed" in notes({"captum": where}, cells, {})


def test_a_result_of_another_shape_is_refused(tmp_path) -> None:
    for name, size in (("whole", 3), ("part", 4)):
        np.save(tmp_path / f"{name}.npy", np.zeros(size))
    with pytest.raises(ValueError, match="its shape is"):
        difference(tmp_path / "whole.npy", tmp_path / "part.npy")


@pytest.mark.slow
def test_the_table_of_a_small_shape() -> None:
    chosen = Options(
        contenders=select(["raw/smart", "microtome/fast"]), workloads="c", rounds=1, quick=True,
        threads=1, smaller=SMALL,
    )  # fmt: skip
    text, data = table(chosen)
    assert not [cell["failure"] for cell in data["cells"] if cell["failure"]]
    for cell in data["cells"]:
        assert cell["difference"] < 1e-5 and cell["wall_s"] > 0 and cell["peak_mb"] > 50
    assert "microtome fast" in text and "to naive" in text and "certified to" in text


def test_the_table_of_edges_counts_and_says_what_failed() -> None:
    from benchmarks import circuits

    from microtome.circuits import ComponentGraph
    from microtome.tracing.opening import load

    model = load(common.build(SHAPE))
    assert circuits._count(2, 4) == ComponentGraph.of(model).n_edges == 110
    assert circuits._count(12, 12) == 32_491
    rows = circuits.rows()
    for seconds, row in zip((2.0, 3.0, 8.0, 9.0), rows[:4], strict=True):
        row.reports.append({"wall_s": [seconds], "cpu_s": [2 * seconds], "peak_mb": 700.0})
    rows[4].failure = "not installed: no wheel"
    text = circuits._text(rows, SHAPE, float("nan"))
    assert "1.50" in text and "1.12" in text and "failed: not installed: no wheel" in text


def test_workers_of_edges_score_the_same_pairs() -> None:
    from benchmarks.peers import edges

    ways = edges.ways(replace(SHAPE, prompts=3, variant="eap"), common.build(SHAPE))
    assert ways["eap"]().shape == (11, 27)
    raw_ways = edges.ways(replace(SHAPE, prompts=3, variant="raw eap"), common.build(SHAPE))
    assert raw_ways["raw eap"]() is None


@pytest.mark.slow
def test_the_table_of_coders(monkeypatch, tmp_path) -> None:
    small = {"STEPS": 8, "ROWS": 2000, "BATCH": 128, "LATENTS": 2048, "WIDTH": 32, "TRUTHS": 64}
    for name, value in small.items():
        monkeypatch.setenv(f"MICROTOME_BENCH_CODER_{name}", str(value))
    only = "coders_microtome default,coders_raw default"
    monkeypatch.setenv("MICROTOME_BENCH_CODERS", only)
    monkeypatch.setattr(coders, "FOLDER", tmp_path)
    text, data = coders.table(Options(rounds=1))
    assert [row["failure"] for row in data] == [""] * 4
    for row in data:
        assert row["reports"][0]["cpu_ms"] > 0 and row["reports"][0]["peak_mb"] > 50
        assert row["reports"][0]["fvu"] > 0 and 0 < row["reports"][0]["mmcs"] <= 1
    assert data[0]["reports"][0]["l0"] == data[1]["reports"][0]["l0"] == 32
    assert "topk      microtome" in text


def test_coders_of_packages_that_are_missing_are_said(monkeypatch) -> None:
    row = coders.Row("saelens", "topk")
    monkeypatch.setattr(coders, "environment", lambda name: Environment(name, None, "no wheel"))
    coders._measure(row, CoderTask(data="x"))
    assert "failed: not installed: no wheel" in coders.text([row], CoderTask(rows=10))
    task = CoderTask(steps=3, activation="batchtopk")
    assert parse_coder_task(task.arguments()) == task
