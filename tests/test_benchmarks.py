"""The benchmarks' workers agree on a small model, and the command makes its table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks import coders, large, trained, trained_cases
from benchmarks.contenders import CONTENDERS, select
from benchmarks.environments import Environment
from benchmarks.false_claims import material, verdicts
from benchmarks.false_claims.counting import Ledger, rate
from benchmarks.options import Options
from benchmarks.peers import common, microtome, raw
from benchmarks.peers.coder_task import CoderTask
from benchmarks.peers.coder_task import parse as parse_coder_task
from benchmarks.peers.task import Task, parse
from benchmarks.running import call, difference, run
from benchmarks.workloads import block, notes, table

from microtome.behaviors import bracket_balance
from microtome.circuits import find
from tests.small import classifier

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


def test_trained_models_are_skipped_without_the_shared_data(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(trained_cases, "FOLDER", tmp_path)
    for case in trained_cases.CASES:
        if case.needs:
            row = trained.measured(case, 20)
            assert "shared data not found" in row.skipped and not row.along
            assert "skipped" in trained._text([row])
    assert [c.model for c in trained_cases.CASES if not c.missing] == ["python-code"] * 4


def test_agreement_with_exact_patching() -> None:
    model = classifier()
    examples = bracket_balance(20, end=" [end]").prepare(model)
    exact = find(model, examples.split("train"), method="exact-edges")
    assert trained.agreement(exact, exact) == (1.0, 1.0, 1.0)
    backwards = replace(exact, mean=1 / (1 + np.abs(exact.mean)))
    correlation, auc, overlap = trained.agreement(exact, backwards)
    assert correlation < -0.9 and auc < 0.1 and overlap == 0


def test_a_trained_model_gets_its_row(monkeypatch) -> None:
    case = trained_cases.Case(
        "random", "", classifier, lambda n: bracket_balance(n, end=" [end]"), gate=False
    )
    monkeypatch.setattr(trained, "CASES", (case,))
    text, data = trained.table(Options(quick=True, threads=1))
    (row,) = data
    assert row["nodes"] == 6 and row["edges"] == 46
    assert [a["method"] for a in row["along"]] == ["attribution", *trained.CHEAP]
    assert row["judged"]["level"] == "node" and row["judged"]["grade"] in text
    assert "gate: switched off" in text


def test_cases_of_false_claims_are_kept_and_resumed(tmp_path) -> None:
    file, ran = tmp_path / "rows.jsonl", []

    def case(number: int):
        def make():
            ran.append(number)
            return {"hit": number == 1}

        return f"case/{number}", make

    first = Ledger(file).run(case(n) for n in range(2))
    with file.open("a") as rest:
        rest.write('{"case": "case/2", "hi')  # killed while it wrote
    again = Ledger(file)
    rows = again.run(case(n) for n in range(3))
    assert ran == [0, 1, 2] and rows[:2] == first
    late = Ledger(file, minutes=-1.0)
    assert late.run([case(7)]) == [] and late.left == 1
    assert rate(1, 3).startswith("1/3 = 33.3% [0.8%, 90.6%]")
    assert rate(0, 0) == "none run"


def test_a_twin_is_judged_and_its_model_restored() -> None:
    model, behavior = material.specimen("previous-token", 0)
    before = {name: p.clone() for name, p in model.module.named_parameters()}
    row = verdicts._twin("previous-token", "node", 0)
    assert row["grade"] == "not established" and row["of"] == 8
    assert row == verdicts._twin("previous-token", "node", 0)
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())
    assert behavior.items == material.specimen("previous-token", 0)[1].items


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
