"""What training sparse coders costs and gives: microtome, the raw reference and the packages."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.environments import FOLDER, environment
from benchmarks.options import Options
from benchmarks.peers.coder_task import CoderTask, activations
from benchmarks.running import call

STEPS, QUICK = 60, 12
"""Steps of a run, and with ``--quick``: the packages take seconds for each."""

SHAPES = {
    "MICROTOME_BENCH_CODER_STEPS": "steps",
    "MICROTOME_BENCH_CODER_ROWS": "rows",
    "MICROTOME_BENCH_CODER_BATCH": "batch",
    "MICROTOME_BENCH_CODER_LATENTS": "d_sae",
    "MICROTOME_BENCH_CODER_WIDTH": "d_in",
    "MICROTOME_BENCH_CODER_TRUTHS": "truths",
}
"""Environment variables that change the task, to try the table or to train for longer."""


@dataclass
class Row:
    """One line of the table.

    Attributes:
        worker: Program of ``benchmarks/peers``.
        activation: ``topk`` or ``batchtopk``.
        variant: Which of the worker's ways.
        reports: One for each round.
        failure: Why there are none.
    """

    worker: str
    activation: str
    variant: str = "default"
    reports: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""

    @property
    def label(self) -> str:
        """Worker and way."""
        return f"{self.worker} {self.variant}"

    def median(self, key: str) -> float:
        """Return the median over the rounds; not a number without any."""
        values = [report[key] for report in self.reports]
        return statistics.median(values) if values else float("nan")


def rows(only: Sequence[str] = ()) -> list[Row]:
    """Return the lines of the table, nothing measured yet: all, or those of workers or labels."""
    found = []
    for activation in ("topk", "batchtopk"):
        found += [
            Row("coders_microtome", activation),
            Row("coders_microtome", activation, "float32"),
            Row("coders_microtome", activation, "kronecker"),
            Row("coders_raw", activation),
            Row("coders_raw", activation, "bfloat16"),
            Row("saelens", activation),
            Row("saelens", activation, "autocast"),
            Row("dictionary_learning", activation),
        ]
    found.insert(8, Row("sparsify", "topk"))
    return [row for row in found if not only or {row.worker, row.label} & set(only)]


def table(options: Options) -> tuple[str, Any]:
    """Run everything in fresh processes, the order turned in every second round."""
    changes = {name: int(os.environ[key]) for key, name in SHAPES.items() if key in os.environ}
    task = CoderTask(threads=1, steps=QUICK if options.quick else STEPS)
    task = replace(task, **changes)
    name = "-".join(str(n) for n in (task.d_in, task.truths, task.rows))
    task = replace(task, data=str(FOLDER / f"coders-{name}.pt"))
    activations(task)  # made once, before any process is measured
    only = [name for name in os.environ.get("MICROTOME_BENCH_CODERS", "").split(",") if name]
    found = rows(only)
    for number in range(options.rounds):
        for row in found if number % 2 == 0 else reversed(found):
            _measure(row, task)
    return text(found, task), [asdict(row) for row in found]


def _measure(row: Row, task: CoderTask) -> None:
    if row.failure:
        return
    asked = replace(task, activation=row.activation, variant=row.variant)
    report = call(environment(row.worker), row.worker, asked)
    if "failure" in report:
        row.failure = report["failure"]
    else:
        row.reports.append(report)


def text(found: list[Row], task: CoderTask) -> str:
    """Return the table."""
    lines = [
        f"Sparse coders: width {task.d_in}, {task.d_sae} latents, {task.k} kept, batches of "
        f"{task.batch}, {task.steps} steps at learning rate {task.lr:g}, {task.threads} thread, "
        f"load {os.getloadavg()[0]:.1f}",
        f"   {'':40s}{'CPU ms':>8s}{'wall ms':>9s}{'to own':>8s}{'peak MB':>9s}{'FVU':>8s}"
        f"{'L0':>7s}{'MMCS':>7s}{'recall':>8s}",
    ]
    own = {row.activation: row for row in found if row.label == "coders_microtome default"}
    for row in found:
        name = f"{row.activation:10s}{row.label.replace('coders_', '').replace(' default', '')}"
        if row.failure:
            lines.append(f"   {name:40s}   failed: {row.failure}")
            continue
        base = own.get(row.activation, row)
        ratio = row.median("cpu_ms") / base.median("cpu_ms")
        lines.append(
            f"   {name:40s}{row.median('cpu_ms'):8.0f}{row.median('wall_ms'):9.0f}{ratio:8.2f}"
            f"{row.median('peak_mb'):9.0f}{row.median('fvu'):8.4f}{row.median('l0'):7.1f}"
            f"{row.median('mmcs'):7.3f}{row.median('recall'):8.4f}"
        )
    lines.append(
        "to own: CPU time of a step over microtome's. Wanted: raw at least 0.91 (microtome takes "
        "at most 1.1\ntimes its time and memory), saelens 9, with autocast 5.5, "
        "dictionary_learning 9, sparsify 2.8.\nPeak memory holds the activations "
        f"({task.rows * task.d_in * 4 / 2**20:.0f} MB). microtome counts dead latents, cuts "
        "gradients and\nsums metrics, raw does not; raw bfloat16 is fast where the processor "
        "multiplies it fast."
    )
    return "\n".join(lines) + "\n"
