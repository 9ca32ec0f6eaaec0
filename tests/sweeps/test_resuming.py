"""Files of stopped sweeps: written at once and on Ctrl-C, refused where damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.sweeps.test_sweeps import pairs

from microtome.errors import FormatError, OutputError
from microtome.models.families import build
from microtome.store.arrays import load_metadata, save_arrays
from microtome.sweeps import Plan, plan, plans
from microtome.tracing.opening import load

MODEL = load(build("llama"))
LENGTHS = (8, 9, 10, 8)


def planned() -> Plan:
    return plan(MODEL, pairs(LENGTHS), over="role")


class Stop:
    """Interrupts after some steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, *_args: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def stopped(file: Path, after: int = 1) -> None:
    with pytest.raises(KeyboardInterrupt):
        planned().execute(Stop(after), resume=file)


@pytest.mark.parametrize("after", [1, 2])
def test_ctrl_c_leaves_what_is_done_at_once(tmp_path: Path, after: int) -> None:
    file = tmp_path / "sweep.safetensors"
    stopped(file, after)
    steps = []

    class Steps:
        def step(self, done: int, *_args: Any) -> None:
            steps.append(done)

    again = planned().execute(Steps(), resume=file)
    np.testing.assert_array_equal(again.values, planned().execute().values)
    assert not file.exists()
    # more is done at the first step than a sweep from the beginning has done by then
    first: list[int] = []
    planned().execute(type("First", (), {"step": lambda _self, done, *_: first.append(done)})())
    assert steps[0] > first[0]


def test_a_file_that_cannot_be_written_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a part of the path is a file"):
        planned().execute(Stop(0), resume=tmp_path / "file" / "sweep.safetensors")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "sweep.safetensors"
    stopped(file)
    whole, notes = file.read_bytes(), load_metadata(file)
    for damaged in (whole[: len(whole) // 2], b"", b"garbage"):
        file.write_bytes(damaged)
        with pytest.raises(FormatError, match="keeps no sweep that could go on"):
            planned().execute(resume=file)
    for values in (np.zeros((2, 2)), np.zeros((4, 6), dtype=np.int32)):
        save_arrays(file, {"values": values}, metadata=notes)
        with pytest.raises(FormatError, match="is damaged"):
            planned().execute(resume=file)
    with pytest.raises(FormatError, match="Name another file"):
        planned().execute(resume=tmp_path)
    assert tmp_path.is_dir()


def test_a_sweep_that_had_fallen_back_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, fast = plans.run_wave, [0]

    def wrong(chosen: Plan, *rest: Any) -> Any:
        values = run(chosen, *rest)
        fast[0] += "fast" in chosen.rules
        return values + 1.0 if "fast" in chosen.rules else values

    monkeypatch.setattr(plans, "run_wave", wrong)
    whole = planned().execute()
    assert len(whole.certificate["fell_back_from"]) == 1
    steps = fast[0]
    file = tmp_path / "sweep.safetensors"
    stopped(file, steps + 1)
    fast[0] = 0
    again = planned().execute(resume=file)
    assert fast[0] == 0
    np.testing.assert_array_equal(again.values, whole.values)
    assert again.certificate["fell_back_from"] == whole.certificate["fell_back_from"]
