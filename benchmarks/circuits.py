"""What scoring every edge costs: microtome beside bare passes and auto-circuit."""

from __future__ import annotations

import os
import statistics
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environments import environment
from benchmarks.options import Options
from benchmarks.peers.task import Task
from benchmarks.running import call

PAIRS, POSITIONS = 10, 16

TARGET, MEMORY_MB = 1.3, 1600
"""What microtome may cost, as a multiple of the bare passes, and how much memory it may take."""


@dataclass
class Row:
    """One line of the table.

    Attributes:
        worker: Program of ``benchmarks/peers``.
        variant: Which of its ways.
        against: The way whose seconds its own are a multiple of, empty for none.
        reports: One for each round.
        failure: Why there are none.
    """

    worker: str
    variant: str
    against: str = ""
    reports: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""

    def median(self, key: str) -> float:
        """Return the median of all timed repeats; not a number without any."""
        values = [seconds for report in self.reports for seconds in report[key]]
        return statistics.median(values) if values else float("nan")

    @property
    def peak_mb(self) -> float:
        """Return the largest memory of a round."""
        return max((report["peak_mb"] for report in self.reports), default=float("nan"))


def rows() -> list[Row]:
    """Return the lines of the table, nothing measured yet."""
    return [
        Row("edges", "raw eap"),
        Row("edges", "eap", "raw eap"),
        Row("edges", "raw eap-ig"),
        Row("edges", "eap-ig", "raw eap-ig"),
        Row("auto_circuit", "eap", "raw eap"),
    ]


def table(options: Options) -> tuple[str, Any]:
    """Run everything in fresh processes, the order turned in every second round."""
    shape = replace(options.shape(), prompts=PAIRS, positions=POSITIONS, workload="e")
    found = rows()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for row in found if number % 2 == 0 else reversed(found):
                _measure(row, shape, Path(folder), options.quick)
        difference = _difference(Path(folder))
    return _text(found, shape, difference), [vars(row) for row in found]


def _measure(row: Row, shape: Task, folder: Path, quick: bool) -> None:
    if row.failure:
        return
    repeats = 1 if quick or row.worker == "auto_circuit" else 3
    save = str(folder / f"{row.worker}-{row.variant}.npy")
    task = replace(shape, variant=row.variant, repeats=repeats, save=save)
    report = call(environment(row.worker), row.worker, task)
    if "failure" in report:
        row.failure = report["failure"]
    else:
        row.reports.append(report)


def _difference(folder: Path) -> float:
    """Return by how much both EAPs differ, as a share of the largest score."""
    files = [folder / f"{worker}-eap.npy" for worker in ("edges", "auto_circuit")]
    if not all(file.is_file() for file in files):
        return float("nan")
    ours, theirs = (np.load(file) for file in files)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _text(found: list[Row], shape: Task, difference: float) -> str:
    edges = _count(shape.layers, shape.heads)
    lines = [
        f"Scores of all {edges:,} edges: {shape.layers} layers, {shape.heads} heads, width "
        f"{shape.width}, {PAIRS} pairs of {POSITIONS} tokens, {shape.threads} threads, load "
        f"{os.getloadavg()[0]:.1f}",
        f"   {'':24s}{'wall s':>9s}{'CPU s':>9s}{'to bare':>9s}{'CPU to bare':>13s}{'peak MB':>9s}",
    ]
    by_name = {row.variant: row for row in found if row.worker == "edges"}
    for row in found:
        name = row.variant if row.variant.startswith("raw") else f"{row.worker} {row.variant}"
        name = name.replace("edges", "microtome")
        if row.failure:
            lines.append(f"   {name:24s}   failed: {row.failure}")
            continue
        bare = by_name.get(row.against)
        ratios = ["-", "-"]
        if bare is not None and bare.reports:
            ratios = [f"{row.median(k) / bare.median(k):.2f}" for k in ("wall_s", "cpu_s")]
        lines.append(
            f"   {name:24s}{row.median('wall_s'):9.2f}{row.median('cpu_s'):9.2f}{ratios[0]:>9s}"
            f"{ratios[1]:>13s}{row.peak_mb:9.0f}"
        )
    lines.append(
        "raw eap: one forward pass of 20 rows and one forward and backward pass of 10, weights "
        "frozen;\nraw eap-ig: the same with five. "
        f"Wanted: at most {TARGET} times these and {MEMORY_MB} MB.\n"
        f"Largest difference from auto-circuit as a share of the largest score: {difference:.1e}"
    )
    return "\n".join(lines) + "\n"


def _count(layers: int, heads: int) -> int:
    """Return the number of edges of a sequential model."""
    before = [1 + layer * (heads + 1) for layer in range(layers)]
    return sum(3 * heads * n + n + heads for n in before) + 1 + layers * (heads + 1)
