"""The benchmark of the finders: its scores, its controls, its command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from microtome.circuits.truth import FinderBenchmark, benchmark, separation
from microtome.cli.app import app
from microtome.errors import ConfigError, ShapeError, UnknownNameError


def test_separation() -> None:
    universe = ("a", "b", "c", "d")
    perfect = separation(universe, np.array([4.0, 3.0, 2.0, 1.0]), {"a", "b"})
    assert (perfect.auc, perfect.average_precision, perfect.best_f1) == (1.0, 1.0, 1.0)
    assert (perfect.last_rank, perfect.true, perfect.parts) == (2, 2, 4)
    worst = separation(universe, np.array([1.0, 2.0, 3.0, 4.0]), {"a"})
    assert worst.auc == 0.0 and worst.last_rank == 4
    # ties are neither right nor wrong, and are taken together
    tied = separation(universe, np.zeros(4), {"a"})
    assert tied.auc == 0.5 and tied.average_precision == 0.25 and tied.last_rank == 4
    # what float32 cannot tell apart is a tie
    close = separation(universe, np.array([1e-9, 2e-9, 1.0, 0.0]), {"a"})
    assert close.auc == pytest.approx((0.5 + 0.0 + 0.5) / 3)


def test_what_cannot_be_separated() -> None:
    with pytest.raises(ShapeError, match="one for each"):
        separation(("a", "b"), np.zeros(3), {"a"})
    with pytest.raises(ShapeError, match="finite"):
        separation(("a", "b"), np.array([0.0, np.nan]), {"a"})
    with pytest.raises(ConfigError, match="not all"):
        separation(("a", "b"), np.zeros(2), {"a", "b"})


@pytest.fixture(scope="module")
def small() -> FinderBenchmark:
    return benchmark(
        programs=["previous-token", "histogram"],
        methods=["exact", "eap", "mask-ig", "exact-edges"],
        n=40,
    )


def test_the_finders_are_told_apart(small: FinderBenchmark) -> None:
    table = small.summary().set_index("method")
    area = {method: interval.value for method, interval in table["auc"].items()}
    assert area["exact-edges"] == 1.0 and area["exact"] == 1.0
    assert area["mask-ig"] >= 0.95 and table["average_precision"]["mask-ig"].value >= 0.9
    assert area["eap"] < area["mask-ig"]  # the histogram saturates the gradient
    assert abs(small.draws.mean() - 0.5) < 0.03 and len(small.draws) == 100
    assert set(small.to_frame()["truth"]) == {"functional", "structural"}


def test_a_vote_of_copies_defeats_single_edges(small: FinderBenchmark) -> None:
    table = small.by_program()
    assert table["exact-edges"]["previous-token"] == 1.0
    assert table["exact-edges"]["previous-token, vote"] < 0.5
    assert table["mask-ig"]["previous-token, vote"] > 0.9
    # under resampling no method finds edges that carry what never changes
    structural = small.by_program("auc", truth="structural")
    assert structural["exact-edges"]["previous-token"] < 1.0


def test_it_is_saved_and_loaded(small: FinderBenchmark, tmp_path) -> None:
    again = FinderBenchmark.load(small.save(tmp_path / "benchmark.json"))
    assert again.to_frame().equals(small.to_frame())
    np.testing.assert_array_equal(again.draws, small.draws)


def test_refusals() -> None:
    with pytest.raises(UnknownNameError, match="mask-ig"):
        benchmark(methods=["mask-igg"])
    with pytest.raises(UnknownNameError, match="induction"):
        benchmark(programs=["inductoin"])
    with pytest.raises(ConfigError, match="draws=0"):
        benchmark(draws=0)


def test_the_command(tmp_path) -> None:
    out = tmp_path / "benchmark.json"
    words = ["circuit", "benchmark", "--program", "and", "--method", "eap", "--draws", "5"]
    found = CliRunner().invoke(app, [*words, "--threads", "1", "--out", str(out), "--json"])
    assert found.exit_code == 0, found.output
    printed = json.loads(found.stdout)
    rows = printed["summaries"]["functional, resample"]
    assert [r["method"] for r in rows] == ["eap", "random"]
    assert printed["random_auc"]["draws"] == 5 and out.exists()
    shown = CliRunner().invoke(app, [*words, "--threads", "1", "--out", str(out)])
    assert shown.exit_code == 0 and "average precision" in shown.stdout and "eap" in shown.stdout
