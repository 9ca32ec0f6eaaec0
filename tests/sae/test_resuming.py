"""Runs that are interrupted: killed, refused, damaged, diverged; nothing is lost or changed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.sae import killed

from microtome.errors import ConfigError, DataError, FormatError, OutputError, TrainingError
from microtome.sae import SAE, ActivationStore, Config, products, train
from microtome.sae.checkpoints import FILE, Checkpoint

ROOT = Path(__file__).resolve().parents[2]

KILLS = int(os.environ.get("MICROTOME_KILLS", "3"))
"""How often the run is killed."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(left: SAE, right: SAE) -> None:
    """Require the same bits in every weight, and the same metrics but for the time."""
    for name, weight in left.weights.items():
        assert torch.equal(weight, right.weights[name]), name
    assert (left.summary.fvu, left.summary.l0) == (right.summary.fvu, right.summary.l0)
    times = ["seconds", "seconds_left"]
    tables = [run.summary.history.drop(columns=times) for run in (left, right)]
    assert tables[0].equals(tables[1])


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sae.killed", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )


def kill_once(folder: Path, delay: float) -> bool:
    """Start or go on, kill after a delay from the first new checkpoint; whether it was still on."""
    before = (folder / FILE).stat().st_mtime_ns if (folder / FILE).exists() else 0
    process = start(folder)
    while process.poll() is None:
        if (folder / FILE).exists() and (folder / FILE).stat().st_mtime_ns != before:
            break
        time.sleep(0.002)
    time.sleep(delay)
    running = process.poll() is None
    os.kill(process.pid, signal.SIGKILL) if running else None
    process.wait()
    return running


@pytest.mark.slow
def test_a_run_killed_at_random_moments_gives_the_same_bits(tmp_path: Path) -> None:
    whole = killed.run(None)
    moments = random.Random(3)
    kills = [kill_once(tmp_path, moments.uniform(0, 0.6 / KILLS)) for _ in range(KILLS)]
    assert sum(kills) > KILLS / 2, "most runs ended before they were killed"
    print(f"{sum(kills)} of {KILLS} kills met a running process")
    found = Checkpoint.load(tmp_path)
    assert found is not None and found.counters["step"] > 0
    same(killed.run(tmp_path), whole)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 151))


class Stops:
    """Activations that raise after some batches, at once as a kill does between two steps."""

    def __init__(self, values: torch.Tensor, after: int) -> None:
        self._store, self._after = ActivationStore.of(values), after

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def batches(
        self, batch_size: int, *, seed: int, start: int = 0, sites: Sequence[str] | None = None
    ) -> Iterator[dict[str, torch.Tensor]]:
        for number, batch in enumerate(
            self._store.batches(batch_size, seed=seed, start=start, sites=sites)
        ):
            if number == self._after:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "relu", "k": 0, "sparsity": 0.2},
        {"activation": "jumprelu", "k": 0},
        {"precision": "int8"},
        {"precision": "int8", "activation": "topk"},
        {"precision": "bfloat16", "activation": "topk"},
        {"activation": "gated", "k": 0, "clip": 0.0},
        {"prefixes": (8, 96)},
        {"activation": "abstopk", "encoder": "tied", "resample_every": 0},
        {"encoder": "kronecker", "kronecker": (8, 3, 4), "resample_every": 0},
    ],
    ids=lambda c: "-".join(map(str, c.values())),
)
def test_every_kind_resumes_exactly(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "ESTIMATED_WEIGHTS", 1)
    monkeypatch.setattr(products, "ESTIMATED_ROWS", 1)
    config = replace(killed.CONFIG, steps=24, log_every=7, **changes)
    whole = killed.run(None, config)
    for after in (5, 10):
        with pytest.raises(KeyboardInterrupt):
            train(Stops(killed.data(), after), config, folder=tmp_path, checkpoint_seconds=0)  # type: ignore[arg-type]
    same(killed.run(tmp_path, config), whole)
    same(killed.run(tmp_path, config), whole)  # a finished run is read, not trained again


def test_ctrl_c_keeps_the_state_at_once(tmp_path: Path) -> None:
    config = replace(killed.CONFIG, steps=12)
    with pytest.raises(KeyboardInterrupt):
        train(Stops(killed.data(), 7), config, folder=tmp_path)  # type: ignore[arg-type]
    found = Checkpoint.load(tmp_path)
    assert found is not None and found.counters["step"] == 7
    same(killed.run(tmp_path, config), killed.run(None, config))


def test_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    config = replace(killed.CONFIG, steps=4)
    killed.run(tmp_path, config)
    kept = (tmp_path / FILE).read_bytes()
    with pytest.raises(ConfigError, match=r"another run after 4 steps: .*config\.k is 5, was 4"):
        killed.run(tmp_path, replace(config, k=5))
    with pytest.raises(ConfigError, match="data is"):
        train(ActivationStore.of(killed.data(1)), config, folder=tmp_path)
    assert (tmp_path / FILE).read_bytes() == kept


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    config = replace(killed.CONFIG, steps=4)
    killed.run(tmp_path, config)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match=FILE):
        killed.run(tmp_path, config)


def test_a_metrics_line_cut_off_by_a_kill_is_written_again(tmp_path: Path) -> None:
    config = replace(killed.CONFIG, steps=6)
    with pytest.raises(KeyboardInterrupt):
        train(Stops(killed.data(), 4), config, folder=tmp_path, checkpoint_seconds=0)  # type: ignore[arg-type]
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 5, "fv')
    same(killed.run(tmp_path, config), killed.run(None, config))


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(killed.CONFIG, steps=6)
    saved = Checkpoint.save

    def full(self: Checkpoint, folder: Path) -> Path:
        if self.counters["step"] == 3:
            raise OutputError("cannot write: No space left on device")
        return saved(self, folder)

    monkeypatch.setattr(Checkpoint, "save", full)
    with pytest.raises(OutputError, match="No space"):
        killed.run(tmp_path, config)
    monkeypatch.undo()
    found = Checkpoint.load(tmp_path)
    assert found is not None and found.counters["step"] == 2
    same(killed.run(tmp_path, config), killed.run(None, config))


def test_divergence_keeps_the_last_good_state(tmp_path: Path) -> None:
    config = Config(
        d_sae=32, activation="relu", steps=50, batch_size=64, lr=1e30, clip=0.0, unit_norm=False
    )
    with pytest.raises(TrainingError, match=r"diverged in step \d+ of 50.*kept in.*lower lr"):
        train(ActivationStore.of(killed.data()), config, folder=tmp_path)
    found = Checkpoint.load(tmp_path)
    assert found is not None and found.counters["step"] >= 1
    for name, value in found.tensors.items():
        assert bool(torch.isfinite(value.float()).all()), name


class Broken(Stops):
    """Activations with NaN in the third batch."""

    def batches(
        self, batch_size: int, *, seed: int, start: int = 0, sites: Sequence[str] | None = None
    ) -> Iterator[dict[str, torch.Tensor]]:
        for number, batch in enumerate(self._store.batches(batch_size, seed=seed, start=start)):
            if number == 2:
                batch["activations"][5, 3] = float("nan")
            yield batch


def test_rows_that_are_not_finite_are_named(tmp_path: Path) -> None:
    config = replace(killed.CONFIG, steps=6)
    with pytest.raises(DataError, match=r"NaN or infinities in 1 of 64 rows of batch 2"):
        train(Broken(killed.data(), 0), config, folder=tmp_path)  # type: ignore[arg-type]
    found = Checkpoint.load(tmp_path)
    assert found is not None and found.counters["step"] == 2
    same(killed.run(tmp_path, config), killed.run(None, config))
