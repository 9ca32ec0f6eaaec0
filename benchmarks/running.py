"""Running workers: one process for each cell of a table, one at a time, in interleaved rounds."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import NAIVE, Contender
from benchmarks.environments import OWN, ROOT, Environment
from benchmarks.peers.coder_task import CoderTask
from benchmarks.peers.task import Task

LIMIT_S = 3600
"""A worker that takes longer is given up."""


@dataclass
class Measured:
    """What the rounds of one contender on one workload gave.

    Attributes:
        contender: The contender.
        workload: The letter.
        reports: One for each round.
        failure: Why there are none, or fewer.
        difference: Largest absolute difference from the naive result, over the cells both ran.
    """

    contender: Contender
    workload: str
    reports: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""
    difference: float | None = None

    def times(self, key: str) -> list[float]:
        """Return all timed repeats, ``wall_s`` or ``cpu_s``."""
        return [seconds for report in self.reports for seconds in report.get(key, ())]

    def median(self, key: str) -> float | None:
        """Return the median of repeats, or of one figure a round such as ``wrap_s``."""
        values = self.times(key) if key in ("wall_s", "cpu_s") else self.figures(key)
        return statistics.median(values) if values else None

    def figures(self, key: str) -> list[float]:
        """Return one figure of each round."""
        return [report[key] for report in self.reports if key in report]

    @property
    def peak_mb(self) -> float | None:
        """Largest memory of a round: of the device where there is one, else resident."""
        return max(self.figures("device_mb") or self.figures("peak_mb"), default=None)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "name": self.contender.name,
            "variant": self.contender.variant,
            "workload": self.workload,
            "wall_s": self.median("wall_s"),
            "cpu_s": self.median("cpu_s"),
            "peak_mb": self.peak_mb,
            "difference": self.difference,
            "failure": self.failure,
            "rounds": self.reports,
        }


def call(where: Environment, name: str, task: Task | CoderTask) -> dict[str, Any]:
    """Run one worker and return its report, or ``{"failure": ...}``."""
    if where.python is None:
        return {"failure": f"not installed: {where.note}"}
    command = [str(where.python), "-m", f"benchmarks.peers.{name}", *task.arguments()]
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=_surroundings(name, task), capture_output=True, text=True,
            timeout=LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failure": f"took longer than {LIMIT_S} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return {"failure": said[-1] if said else f"ended with {done.returncode}"}
    took = time.perf_counter() - began
    return {**json.loads(lines[-1]), "process_s": took, "load": os.getloadavg()[0]}


def _surroundings(name: str, task: Task | CoderTask) -> dict[str, str]:
    """Return the environment variables of a worker."""
    paths = [str(ROOT)]
    if name in OWN:
        found = find_spec("microtome")
        if found and found.origin:
            paths.append(str(Path(found.origin).parents[1]))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(task.threads),
        "MKL_NUM_THREADS": str(task.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


def run(
    contenders: Sequence[Contender],
    environments: Mapping[str, Environment],
    shape: Task,
    *,
    workloads: str,
    rounds: int,
    quick: bool,
    folder: Path,
) -> tuple[list[Measured], dict[str, Any]]:
    """Time every contender on every workload; also return the whole naive run of each workload.

    Within a round the contenders of a workload follow each other, so that a change of the
    machine's load meets all; every second round runs in the opposite order.

    Args:
        contenders: Who.
        environments: By package.
        shape: The model and inputs.
        workloads: Letters.
        rounds: How often each cell of the table gets a process.
        quick: Time each only once in a round.
        folder: For the results.

    Returns:
        A cell of the table for each, and the reports of the naive runs by workload.
    """
    cells = [Measured(c, w) for w in workloads for c in contenders if w in c.workloads]
    wholes = _whole(cells, environments, shape, folder)
    for number in range(rounds):
        for cell in cells if number % 2 == 0 else reversed(cells):
            if cell.failure:
                continue
            save = folder / f"{cell.contender.name}-{cell.contender.variant}-{cell.workload}.npy"
            task = cell.contender.task(shape, cell.workload, save=str(save), quick=quick)
            _say(f"round {number + 1} of {rounds}: {cell.workload} {cell.contender.label}")
            found = call(environments[cell.contender.name], cell.contender.name, task)
            if "failure" in found:
                cell.failure = found["failure"]
                continue
            cell.reports.append(found)
            if cell.workload in wholes:
                _compare(cell, _whole_file(folder, cell.workload), save)
    return cells, wholes


def _whole(
    cells: Sequence[Measured], environments: Mapping[str, Environment], shape: Task, folder: Path
) -> dict[str, Any]:
    """Run the naive reference once on every cell: what all results are compared with."""
    found = {}
    for workload in sorted({c.workload for c in cells if c.workload != "f"}):
        save = str(_whole_file(folder, workload))
        task = replace(NAIVE.task(shape, workload, save=save, quick=True), every=1)
        _say(f"whole naive result of {workload}")
        report = call(environments[NAIVE.name], NAIVE.name, task)
        if "failure" in report:
            _say(f"no naive result of {workload}: {report['failure']}")
        else:
            found[workload] = report
    return found


def _whole_file(folder: Path, workload: str) -> Path:
    return folder / f"whole-{workload}.npy"


def _compare(cell: Measured, whole: Path, part: Path) -> None:
    """Note by how much a result is off, or that it is not even of the right shape."""
    try:
        off = difference(whole, part)
    except ValueError as error:
        cell.failure = f"wrong result: {error}"
        return
    cell.difference = off if cell.difference is None else max(off, cell.difference)


def difference(whole: Path, part: Path) -> float:
    """Return the largest absolute difference over the cells that were run."""
    expected, found = np.load(whole), np.load(part)
    if expected.shape != found.shape:
        raise ValueError(f"its shape is {list(found.shape)}, not {list(expected.shape)}")
    return float(np.nanmax(np.abs(expected - found)))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
