"""Training with what does not fit: settings, devices, sizes, damaged and shared folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.sae import killed

from microtome.errors import ConfigError, DataError, FormatError, OutputError, ShapeError
from microtome.sae import ActivationStore, Config, train
from microtome.sae.checkpoints import FILE, Checkpoint
from microtome.store.arrays import load_arrays, load_metadata, save_arrays

CONFIG = Config(d_sae=24, k=3, steps=4, batch_size=32, eval_rows=64)
METRICS = "metrics.jsonl"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefixes": 5}, "prefixes is 5; expected several numbers"),
        ({"prefixes": "24"}, "prefixes is '24'; expected several numbers"),
        ({"encoder": "kronecker", "kronecker": 5}, "kronecker is 5"),
        ({"betas": 0.9}, "betas is 0.9"),
        ({"betas": ("a", "b")}, "betas are"),
        ({"unit_norm": "no"}, "unit_norm is 'no'"),
        *(({name: float("inf")}, f"{name} is inf; expected a finite number")
          for name in ("lr", "sparsity", "aux", "threshold", "bandwidth")),
    ],
)  # fmt: skip
def test_settings_that_are_none_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**changes)


@pytest.mark.parametrize("device", ["cdua", "", "meta", "cuda:99"])
def test_a_device_that_cannot_compute_is_refused(device: str, tmp_path: Path) -> None:
    config = replace(CONFIG, device=device)
    with pytest.raises(ConfigError, match=f"device is '{device}', which cannot be used"):
        train(ActivationStore.of(killed.data()), config, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sizes_that_float32_does_not_hold_are_named() -> None:
    rows = killed.data().double()
    for factor in (1e-100, 1e300):
        with pytest.raises(DataError, match="'activations' would have to be multiplied by"):
            train(ActivationStore.of(rows * factor), CONFIG)
    with pytest.raises(ShapeError, match="16 bits or more"):
        ActivationStore.of(rows.to(torch.float8_e4m3fn))


@pytest.mark.parametrize("factor", [1e-37, 1e-20, 1e20, 1e33])
@pytest.mark.parametrize("activation", ["batchtopk", "gated", "jumprelu"])
def test_the_size_of_the_activations_changes_nothing_else(factor: float, activation: str) -> None:
    config = replace(CONFIG, activation=activation, k=3 if activation == "batchtopk" else 0)
    rows = killed.data()[:300]
    usual, other = (train(ActivationStore.of(rows * f), config) for f in (1.0, factor))
    with torch.no_grad():
        wanted, got = usual(rows), other(rows * factor)
    torch.testing.assert_close(got.double() / factor, wanted.double(), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run that was stopped after two steps."""
    folder = tmp_path_factory.mktemp("stopped") / "run"

    class Stops:
        def step(self, done: int, total: int, message: str = "") -> None:
            if done == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(_rows(), CONFIG, folder=folder, progress=Stops())
    return folder


def _rows() -> Any:
    return ActivationStore.of(killed.data()[:300])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c, a: c.pop("step"), "step"),
        (lambda c, a: c.update(step=-1), "step -1 of 4"),
        (lambda c, a: c.update(step="2"), "step '2' of 4"),
        (lambda c, a: c.update(step=5), "step 5 of 4"),
        (lambda c, a: c.pop("selector"), "selector"),
        (lambda c, a: c.update(selector={}), "precision"),
        (lambda c, a: c["tally"].update(cows=1), "cows"),
        (lambda c, a: a.pop("weights.W_dec"), r"weights\.W_dec"),
        (lambda c, a: a.update({"weights.W_dec": a["weights.W_dec"][:5]}), r"weights\.W_dec"),
        (lambda c, a: a.pop("silent"), "silent"),
        (lambda c, a: a.pop("adam.b_enc.step"), r"adam\.b_enc\.step"),
        (lambda c, a: a.update({"adam.W_enc.exp_avg": np.zeros(3, "f4")}), r"adam\.W_enc\.exp"),
    ],
)
def test_a_checkpoint_that_is_whole_but_wrong_is_refused(
    change: Callable[[dict[str, Any], dict[str, Any]], Any],
    named: str,
    stopped: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    path = folder / FILE
    head, arrays = json.loads(load_metadata(path)["microtome"]), load_arrays(path)
    change(head["counters"], arrays)
    save_arrays(path, arrays, metadata={"microtome": json.dumps(head)})
    metrics = (folder / METRICS).read_bytes()
    with pytest.raises(FormatError, match=rf"{FILE} is damaged \(.*{named}"):
        train(_rows(), CONFIG, folder=folder)
    assert (folder / METRICS).read_bytes() == metrics


@pytest.mark.parametrize("text", [b"\xff\xfe\0{]\n", b"[1]\n3\n", b'{"step": "x"}\n'])
def test_a_damaged_file_of_metrics_is_begun_again(text: bytes, tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(text)
    found = train(_rows(), CONFIG, folder=tmp_path)
    assert found.summary.history["step"].tolist() == [1, 2, 3, 4]


def test_rows_that_two_processes_wrote_are_kept_once(stopped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    path = folder / METRICS
    path.write_text(path.read_text() + path.read_text())
    found = train(_rows(), CONFIG, folder=folder)
    steps = found.summary.history["step"]
    assert steps.is_unique and steps.is_monotonic_increasing


def test_a_folder_that_goes_away_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(OutputError, match="metrics.jsonl: No such file"):
        train(_rows(), CONFIG, folder=folder, watch=lambda row: shutil.rmtree(folder))


def test_a_name_that_the_disk_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="name too long"):
        train(_rows(), CONFIG, folder=tmp_path / ("a" * 300))
    assert Checkpoint.load(tmp_path) is None
